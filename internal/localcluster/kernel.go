package localcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/hostagent/network"
	"github.com/berth-run/berth/internal/layout"
)

const cgroupRoot = "/sys/fs/cgroup"

// controllers are the cgroup controllers that hold a pod to its size.
var controllers = []string{"cpu", "memory", "pids"}

// checkKernel tries what the cluster is going to do, where it leaves no trace; each failure names what the kernel lacks.
func checkKernel(ctx context.Context, dirs layout.Dirs) error {
	errs := []error{checkOverlay(dirs.State)}
	for _, c := range controllers {
		errs = append(errs, checkController(c))
	}
	return errors.Join(append(errs, network.Try(ctx))...)
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

// checkController says whether a cgroup controller can be used, in cgroup v2 or v1.
func checkController(name string) error {
	if unified, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers")); err == nil {
		if slices.Contains(strings.Fields(string(unified)), name) {
			return nil
		}
	} else if _, err := os.Stat(filepath.Join(cgroupRoot, name, "cgroup.procs")); err == nil {
		return nil
	}
	return fmt.Errorf("cgroup controller %q is not there: mount cgroups at %s, and do not switch the controller off on the kernel's command line (cgroup_disable=, cgroup_enable=)", name, cgroupRoot)
}
