package machine

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/guest/reaper"
	"github.com/berth-run/berth/internal/microvm/guestapi"
)

// mountLimit bounds the wait for a file server. The host waits a little longer, to hear what failed.
const mountLimit = 20 * time.Second

// Mounter mounts what the host asks for: volumes.
type Mounter struct {
	Disks  *Disks
	Reaper *reaper.Reaper
}

// Mount makes a file system or directory with its owner and mode. What is there already is left alone.
func (m *Mounter) Mount(ctx context.Context, wanted *guestapi.Mount) error {
	if err := inside(wanted.Target, guestapi.MountsDir, guestapi.VolumesDir); err != nil {
		return fmt.Errorf("mount.target: %w", err)
	}
	if wanted.Type == "bind" {
		return bindPart(wanted.Source, wanted.Part, wanted.Target)
	}
	if err := os.MkdirAll(wanted.Target, 0o755); err != nil {
		return err
	}
	if filepath.Dir(wanted.Target) == guestapi.VolumesDir {
		if err := Count(wanted.Target); err != nil {
			return err
		}
	}
	if wanted.Type != "" && !isMountPoint(wanted.Target) {
		if err := m.mountFileSystem(ctx, wanted); err != nil {
			return err
		}
	}
	if wanted.Mode == 0 {
		return nil
	}
	if err := os.Chown(wanted.Target, wanted.UID, wanted.GID); err != nil {
		return err
	}
	// After chown, which clears the set-group-ID bit.
	if err := unix.Chmod(wanted.Target, wanted.Mode); err != nil {
		return fmt.Errorf("set the mode of %s: %w", wanted.Target, err)
	}
	return nil
}

func (m *Mounter) mountFileSystem(ctx context.Context, wanted *guestapi.Mount) error {
	var source string
	options := wanted.Options
	switch wanted.Type {
	case "tmpfs":
		source = "tmpfs"
		var err error
		if options, err = fitMemory(options); err != nil {
			return err
		}
	case "erofs", "ext4":
		device, err := m.Disks.device(ctx, wanted.LUN)
		if err != nil {
			return err
		}
		source = device
	default:
		return m.mountByProgram(ctx, wanted)
	}
	flags, data := parseOptions(options)
	if wanted.Type == "erofs" {
		flags |= unix.MS_RDONLY
	}
	if err := unix.Mount(source, wanted.Target, wanted.Type, flags, data); err != nil {
		return fmt.Errorf("mount %s on %s (options %s): %w", wanted.Type, wanted.Target, strings.Join(options, ","), err)
	}
	return nil
}

// mountByProgram leaves the file systems that need a helper of their own, such as NFS, to it. What fails is said at once, and tried again by who
// wants the mount; a server that is silent is not waited for longer than mountLimit.
func (m *Mounter) mountByProgram(ctx context.Context, wanted *guestapi.Mount) error {
	ctx, cancel := context.WithTimeout(ctx, mountLimit)
	defer cancel()
	options := strings.Join(append([]string{"retry=0"}, wanted.Options...), ",")
	said, err := m.Reaper.Run(ctx, []string{"/sbin/mount." + wanted.Type, wanted.Source, wanted.Target, "-o", options})
	if errors.Is(err, context.DeadlineExceeded) {
		return fmt.Errorf("mount %s from %s: no answer within %v; is the server there, and may the pod reach it?", wanted.Type, wanted.Source, mountLimit)
	}
	if err != nil {
		return fmt.Errorf("mount %s from %s: %w: %s", wanted.Type, wanted.Source, err, strings.TrimSpace(said))
	}
	return nil
}

// mountFlags are the options of mount(8) that are flags of mount(2).
var mountFlags = map[string]uintptr{
	"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC, "sync": unix.MS_SYNCHRONOUS,
	"noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME, "strictatime": unix.MS_STRICTATIME,
	"dirsync": unix.MS_DIRSYNC, "mand": unix.MS_MANDLOCK,
}

// noFlags are options that say what is so anyway.
var noFlags = []string{"", "defaults", "rw", "suid", "dev", "exec", "async", "atime", "diratime"}

func parseOptions(options []string) (uintptr, string) {
	var flags uintptr
	var data []string
	for _, option := range options {
		switch flag, known := mountFlags[option]; {
		case known:
			flags |= flag
		case !slices.Contains(noFlags, option):
			data = append(data, option)
		}
	}
	return flags, strings.Join(data, ",")
}

// inside tells whether the path is clean and lies below one of the directories.
func inside(path string, directories ...string) error {
	for _, directory := range directories {
		if strings.HasPrefix(path, directory+"/") && filepath.Clean(path) == path {
			return nil
		}
	}
	return errors.New(path + " is not below " + strings.Join(directories, " or "))
}
