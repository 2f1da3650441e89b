package node

import (
	"k8s.io/mount-utils"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/microvm/remotefs"
	"github.com/berth-run/berth/internal/nodeconfig"
)

// newMounter mounts the pod's volumes on the host; network file systems of a microVM are mounted inside it.
func newMounter(cfg nodeconfig.Config) mount.Interface {
	host := mount.New("")
	if cfg.RuntimeHandler == layout.RuntimeHandlerMicroVM {
		return remotefs.New(host)
	}
	return host
}
