package hostagent

import (
	"path/filepath"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/nodeconfig"
)

var (
	// machineMemory is the least that a virtual machine is limited to: its guest's first memory, and its monitor.
	machineMemory = resource.MustParse("256Mi")
	// blockMemory is what a guest may have beyond the pod's size, because its memory comes in whole blocks (vmm.BlockMemory).
	blockMemory = resource.MustParse("128Mi")
)

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

// cgroupSize is what the pod's cgroup on the host is limited to. What a sandbox needs for itself comes out of the pod's memory. It
// is the kernel of a virtual machine's guest that holds its pod to the size: the cgroup must not end the machine, and so all
// containers, before the guest has ended the process that took too much.
func cgroupSize(spec v1alpha1.BerthSpec) v1alpha1.Size {
	size := spec.Size
	if spec.Isolation != v1alpha1.IsolationMicroVM {
		return size
	}
	size.Memory = size.Memory.DeepCopy()
	if size.Memory.Cmp(machineMemory) < 0 {
		size.Memory = machineMemory.DeepCopy()
	}
	size.Memory.Add(blockMemory)
	return size
}
