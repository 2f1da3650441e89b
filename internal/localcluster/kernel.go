package localcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/hostagent/network"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/podcgroup"
)

// checkKernel tries what the cluster is going to do, where it leaves no trace; each failure names what the kernel lacks.
func checkKernel(ctx context.Context, dirs layout.Dirs) error {
	return errors.Join(checkOverlay(dirs.State), podcgroup.Check(), network.Try(ctx))
}

// checkOverlay mounts one overlay where containerd will mount those of containers.
func checkOverlay(state string) error {
	if err := os.MkdirAll(state, 0o700); err != nil {
		return fmt.Errorf("make %s: %w", state, err)
	}
	dir, err := os.MkdirTemp(state, "overlay-")
	if err != nil {
		return fmt.Errorf("try an overlay in %s: %w", state, err)
	}
	defer os.RemoveAll(dir)
	for _, name := range []string{"lower", "upper", "work", "merged"} {
		if err := os.Mkdir(filepath.Join(dir, name), 0o700); err != nil {
			return fmt.Errorf("try an overlay in %s: %w", state, err)
		}
	}
	merged := filepath.Join(dir, "merged")
	options := fmt.Sprintf("lowerdir=%s/lower,upperdir=%s/upper,workdir=%s/work", dir, dir, dir)
	switch err := unix.Mount("overlay", merged, "overlay", 0, options); {
	case errors.Is(err, unix.ENODEV):
		return errors.New("the kernel has no overlayfs: use one with CONFIG_OVERLAY_FS (module overlay)")
	case err != nil:
		return fmt.Errorf("overlayfs does not work in %s (%w): put that directory on ext4 or xfs", state, err)
	}
	return unix.Unmount(merged, unix.MNT_DETACH)
}
