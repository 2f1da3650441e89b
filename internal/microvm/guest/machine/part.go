package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

// bindPart mounts a part of a volume at target. Containers may write to the volume meanwhile: no step of the part's path leads out of it, and what is
// mounted is what was opened, whatever has that name by then.
func bindPart(volume, part, target string) error {
	if err := inside(volume, guestapi.MountsDir, guestapi.VolumesDir); err != nil {
		return fmt.Errorf("mount.source: %w", err)
	}
	if !filepath.IsLocal(part) || filepath.Clean(part) != part {
		return fmt.Errorf("mount.part %q is no path below a volume", part)
	}
	root, err := unix.Open(volume, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the volume %s: %w", volume, err)
	}
	defer func() { _ = unix.Close(root) }()
	opened, err := openPart(root, part)
	if err != nil {
		return fmt.Errorf("part %s of volume %s: %w", part, filepath.Base(volume), err)
	}
	defer func() { _ = unix.Close(opened) }()
	if err := makeTarget(opened, target); err != nil {
		return err
	}
	tree, err := unix.OpenTree(opened, "", unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_EMPTY_PATH)
	if err != nil {
		return fmt.Errorf("bind part %s of volume %s: %w", part, filepath.Base(volume), err)
	}
	defer func() { _ = unix.Close(tree) }()
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("bind part %s of volume %s: %w", part, filepath.Base(volume), err)
	}
	return nil
}

// openPart opens what has the path below root, and makes directories of what is missing, with the mode of root, as the kubelet does.
func openPart(root int, part string) (int, error) {
	var stat unix.Stat_t
	if err := unix.Fstat(root, &stat); err != nil {
		return -1, err
	}
	how := unix.OpenHow{Flags: unix.O_PATH | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_MAGICLINKS}
	at, err := unix.Dup(root)
	names := strings.Split(part, "/")
	for i := 0; i < len(names) && err == nil; i++ {
		path := strings.Join(names[:i+1], "/")
		var next int
		next, err = unix.Openat2(root, path, &how)
		if errors.Is(err, unix.ENOENT) {
			if err = makeDirectory(at, names[i], stat.Mode&0o2777); err == nil {
				next, err = unix.Openat2(root, path, &how)
			}
		}
		_ = unix.Close(at)
		at = next
	}
	if errors.Is(err, unix.EXDEV) {
		err = errors.New("a symbolic link in it leads out of the volume")
	}
	return at, err
}

// makeDirectory makes one with that mode, whatever the process's mask.
func makeDirectory(parent int, name string, mode uint32) error {
	if err := unix.Mkdirat(parent, name, 0o700); err != nil {
		return err
	}
	made, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(made) }()
	return unix.Fchmod(made, mode)
}

// makeTarget makes what a file or a directory can be mounted on.
func makeTarget(opened int, target string) error {
	var stat unix.Stat_t
	if err := unix.Fstat(opened, &stat); err != nil {
		return err
	}
	if stat.Mode&unix.S_IFMT == unix.S_IFDIR {
		return os.MkdirAll(target, 0o755)
	}
	if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
		return err
	}
	return os.WriteFile(target, nil, 0o644)
}

// DropParts unmounts the parts of volumes that a container had.
func DropParts(container string) {
	dir := filepath.Join(guestapi.PartsDir, container)
	parts, _ := os.ReadDir(dir) // most containers have none
	for _, part := range parts {
		target := filepath.Join(dir, part.Name())
		_ = unix.Unmount(target, unix.MNT_DETACH)
		_ = os.Remove(target) // what is still mounted stays, and all that is in it
	}
	_ = os.Remove(dir)
}
