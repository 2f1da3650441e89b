package hostagent

import (
	"path/filepath"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/nodeconfig"
)

// monitorMemory is what a virtual machine's monitor may take beside the memory of its guest.
var monitorMemory = resource.MustParse("128Mi")

// runtimeHandler is that of an isolation.
func runtimeHandler(i v1alpha1.Isolation) string {
	if i == v1alpha1.IsolationMicroVM {
		return layout.RuntimeHandlerMicroVM
	}
	return layout.RuntimeHandlerGVisor
}

// portForward is how ports inside a sandbox of the isolation are reached.
func portForward(i v1alpha1.Isolation, o Options) *nodeconfig.PortForward {
	if i == v1alpha1.IsolationMicroVM {
		return &nodeconfig.PortForward{Command: []string{filepath.Join(o.BinDir, microVMShim), "port-forward"}}
	}
	runsc, root := filepath.Join(o.BinDir, "runsc"), filepath.Join(o.Dirs.Run, "runsc", "k8s.io")
	return &nodeconfig.PortForward{Command: []string{runsc, "--root=" + root, "port-forward"}, SocketFlag: "--stream"}
}

// cgroupSize is what the pod's cgroup on the host is limited to. What gVisor needs for itself comes out of the pod's memory. In a
// virtual machine the guest's own kernel, whose memory is not more than the size, holds the pod to it; the cgroup also holds
// the monitor, and must not end the machine before the guest has ended a process.
func cgroupSize(spec v1alpha1.BerthSpec) v1alpha1.Size {
	size := spec.Size
	if spec.Isolation == v1alpha1.IsolationMicroVM {
		size.Memory = size.Memory.DeepCopy()
		size.Memory.Add(monitorMemory)
	}
	return size
}
