package node

import (
	"os"
	"strings"

	"k8s.io/kubernetes/pkg/kubelet"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
)

// hostOS is the operating system less the links that kubelets make in /var/log/containers: the directory is shared by
// all kubelets of the machine, and nobody would remove a link whose kubelet went with its pod.
type hostOS struct{ kubecontainer.RealOS }

func shared(path string) bool { return strings.HasPrefix(path, kubelet.ContainerLogsDir) }

// MkdirAll makes a directory, unless it is the shared one.
func (o hostOS) MkdirAll(path string, perm os.FileMode) error {
	if shared(path) {
		return nil
	}
	return o.RealOS.MkdirAll(path, perm)
}

// Symlink makes a link, unless it is in the shared directory.
func (o hostOS) Symlink(oldname, newname string) error {
	if shared(newname) {
		return nil
	}
	return o.RealOS.Symlink(oldname, newname)
}
