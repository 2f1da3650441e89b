// Package disk makes the files behind a microVM's disks: for each pod an empty file system for what it writes, and for each
// image one read-only file system that all microVMs of the host share through the host's page cache.
package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrNoProgram says that a program that makes file systems is not installed.
var ErrNoProgram = errors.New("the program is not installed")

// leastRoom is what the host's disk must have left for another pod's, in bytes: a machine that has no room to begin with stands still soon.
const leastRoom = 64 << 20

// MakeEphemeral makes an empty ext4 file system in a sparse file of the given size, in bytes. The file takes room in dir as the pod writes. It has
// no name: it goes when the last who has it open does, whatever happens. It has no journal: it does not outlive the machine that writes it. It
// counts what its directories hold (project quotas).
func MakeEphemeral(ctx context.Context, dir string, size int64) (_ *os.File, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("make the pod's ephemeral disk of %d bytes in %s: %w", size, dir, err)
		}
	}()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return nil, fmt.Errorf("look how much room there is: %w", err)
	}
	if room := int64(fs.Bavail) * fs.Bsize; room < leastRoom {
		return nil, fmt.Errorf("%w: %d MiB are left, at least %d are needed; free some space there", unix.ENOSPC, room>>20, leastRoom>>20)
	}
	file, err := os.CreateTemp(dir, "ephemeral-")
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.Remove(file.Name()), file.Truncate(size)); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	if err := run(ctx, "e2fsprogs", "mkfs.ext4", "-q", "-F", "-m", "0", "-G", "4096", "-O", "^has_journal,^resize_inode,quota,project",
		"-E", "lazy_itable_init=1,nodiscard,packed_meta_blocks=1,quotatype=prj", PathOf(file)); err != nil {
		return nil, errors.Join(err, file.Close())
	}
	return file, nil
}

// PathOf names a file that has no name, for programs that this process starts.
func PathOf(file *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), file.Fd()) }

// run executes a program of the Debian package.
func run(ctx context.Context, pkg, program string, args ...string) error {
	cmd := exec.CommandContext(ctx, program, args...)
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &said, &said
	err := cmd.Run()
	if errors.Is(err, exec.ErrNotFound) {
		return fmt.Errorf("%s (install Debian package %s): %w", program, pkg, ErrNoProgram)
	}
	if err != nil {
		return fmt.Errorf("%s: %w: %s", program, err, strings.TrimSpace(said.String()))
	}
	return nil
}

// lock holds path for this process until the returned function is called. Waiting for it is bounded by what others do there.
func lock(path string) (release func(), err error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the lock %s: %w", filepath.Base(path), err)
	}
	for {
		err = unix.Flock(int(file.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		file.Close()
		return nil, fmt.Errorf("lock %s: %w", filepath.Base(path), err)
	}
	return func() { file.Close() }, nil
}
