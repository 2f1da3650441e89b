package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

// ContainersDir holds a directory for each container's writable layer.
const ContainersDir = guestapi.PodDir + "/containers"

// What a directory of the pod's disk holds is counted by ext4 itself: each is a project (quota) without limits, whose number is that of the
// directory's inode. To ask costs next to nothing, however many files there are.

// Constants and structures of the kernel: linux/fs.h and linux/quota.h.
const (
	getAttributes  = 0x801c581f // FS_IOC_FSGETXATTR
	setAttributes  = 0x401c5820 // FS_IOC_FSSETXATTR
	inheritProject = 0x200      // FS_XFLAG_PROJINHERIT
	getQuota       = 0x800007<<8 | 2
)

type attributes struct {
	flags, _, _, project, _ uint32
	_                       [8]byte
}

type quota struct {
	_, _, space, _, _, inodes, _, _ uint64
	_                               uint64 // the valid fields, padded
}

// Count begins to count what an empty directory is going to hold. Not so in memory, where a template's first container is.
func Count(dir string) error {
	file, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	var in unix.Statfs_t
	var stat unix.Stat_t
	if err := errors.Join(unix.Fstatfs(int(file.Fd()), &in), unix.Fstat(int(file.Fd()), &stat)); err != nil {
		return fmt.Errorf("look at %s: %w", dir, err)
	}
	if in.Type == unix.TMPFS_MAGIC {
		return nil
	}
	var a attributes
	if err := control(file, getAttributes, unsafe.Pointer(&a)); err != nil {
		return fmt.Errorf("read the attributes of %s: %w", dir, err)
	}
	a.flags, a.project = a.flags|inheritProject, uint32(stat.Ino)
	if err := control(file, setAttributes, unsafe.Pointer(&a)); err != nil {
		return fmt.Errorf("count what %s holds: %w", dir, err)
	}
	return nil
}

func control(file *os.File, request uintptr, argument unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, file.Fd(), request, uintptr(argument)); errno != 0 {
		return errno
	}
	return nil
}

// Usage tells what is used of the pod's disk, and of its volumes in memory.
func Usage() (*guestapi.Usage, error) {
	disk, err := os.Open(guestapi.PodDir)
	if err != nil {
		return nil, err
	}
	defer func() { _ = disk.Close() }()
	out := &guestapi.Usage{}
	if out.Disk, err = space(guestapi.PodDir); err != nil {
		return nil, err
	}
	counted := func(dir string) (guestapi.Space, error) { return count(disk, dir) }
	if out.Containers, err = each(ContainersDir, counted); err != nil {
		return nil, err
	}
	if out.Volumes, err = each(guestapi.VolumesDir, counted); err != nil {
		return nil, err
	}
	inMemory, err := each(guestapi.MemoryDir, space)
	for name, used := range inMemory {
		out.Volumes[name] = used
	}
	return out, err
}

// each measures every directory in dir, by name. One that goes meanwhile is left out.
func each(dir string, measure func(string) (guestapi.Space, error)) (map[string]guestapi.Space, error) {
	out := map[string]guestapi.Space{}
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	for _, entry := range entries {
		used, err := measure(filepath.Join(dir, entry.Name()))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if used != (guestapi.Space{}) {
			out[entry.Name()] = used
		}
	}
	return out, nil
}

// count is what Count counted.
func count(disk *os.File, dir string) (guestapi.Space, error) {
	var stat unix.Stat_t
	if err := unix.Stat(dir, &stat); err != nil {
		return guestapi.Space{}, &fs.PathError{Op: "stat", Path: dir, Err: err}
	}
	var q quota
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, disk.Fd(), getQuota, uintptr(uint32(stat.Ino)), uintptr(unsafe.Pointer(&q)), 0, 0)
	if errno != 0 {
		return guestapi.Space{}, fmt.Errorf("measure %s: %w", dir, errno)
	}
	return guestapi.Space{Used: q.space, InodesUsed: q.inodes}, nil
}

// space is that of a whole file system.
func space(dir string) (guestapi.Space, error) {
	var stat unix.Statfs_t
	if err := unix.Statfs(dir, &stat); err != nil {
		return guestapi.Space{}, fmt.Errorf("measure %s: %w", dir, err)
	}
	size := uint64(stat.Bsize)
	return guestapi.Space{Used: (stat.Blocks - stat.Bfree) * size, Capacity: stat.Blocks * size, Available: stat.Bavail * size,
		InodesUsed: stat.Files - stat.Ffree, Inodes: stat.Files, InodesFree: stat.Ffree}, nil
}
