package node

import (
	"context"
	"fmt"
	"path/filepath"

	"k8s.io/mount-utils"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/microvm/podsocket"
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

// mountShares has the pod's virtual machine mount the network file systems that the mounter left to it. A container whose start fails has failed, and may
// be one that is never started again; a container that cannot be created waits, as a pod does whose volumes cannot be mounted.
func (s *runtimeService) mountShares(ctx context.Context, sandbox string) error {
	if s.cfg.RuntimeHandler != layout.RuntimeHandlerMicroVM {
		return nil
	}
	shares, err := filepath.Glob(filepath.Join(s.cfg.RootDir, "pods", string(s.cfg.PodUID), "volumes", "kubernetes.io~nfs", "*"))
	if err != nil {
		return err
	}
	for _, share := range shares {
		if err := podsocket.AskMount(ctx, layout.Dirs{Run: s.cfg.HostRunDir}.MicroVMRun(sandbox), share); err != nil {
			return fmt.Errorf("volume %s: %w", filepath.Base(share), err)
		}
	}
	return nil
}
