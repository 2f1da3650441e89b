package disk

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Images holds the disks of images in one directory, one file for each distinct stack of layers. They are made when first needed
// and removed by Sweep when the layers are gone from the host.
type Images struct {
	Dir string
}

const (
	diskSuffix   = ".erofs"
	layersSuffix = ".layers"
)

// Key names the disk of a stack of layers, the uppermost first. Layers are directories that are never changed and whose paths are
// never used again (containerd's snapshots).
func Key(layers []string) string {
	sum := sha256.Sum256([]byte(strings.Join(layers, "\n")))
	return hex.EncodeToString(sum[:16])
}

// Open opens the disk of the layers for reading, and makes it first if it is not there. Others that ask for the same wait.
func (s Images) Open(ctx context.Context, layers []string) (*os.File, error) {
	if len(layers) == 0 {
		return nil, errors.New("the image has no layers")
	}
	path := filepath.Join(s.Dir, Key(layers)+diskSuffix)
	file, err := os.Open(path)
	if err == nil || !errors.Is(err, fs.ErrNotExist) {
		return file, err
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of image disks: %w", err)
	}
	release, err := lock(filepath.Join(s.Dir, Key(layers)+".lock"))
	if err != nil {
		return nil, err
	}
	defer release()
	if file, err := os.Open(path); err == nil {
		return file, nil
	}
	if err := s.build(ctx, path, layers); err != nil {
		return nil, fmt.Errorf("make the image's disk: %w", err)
	}
	return os.Open(path)
}

// build writes the layers, one over the other, into a file system. It is complete or not there.
func (s Images) build(ctx context.Context, path string, layers []string) error {
	work, err := os.MkdirTemp(s.Dir, "build-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(work)
	source := layers[0]
	if len(layers) > 1 {
		source = filepath.Join(work, "view")
		if err := os.Mkdir(source, 0o700); err != nil {
			return err
		}
		if err := mountLayers(source, layers); err != nil {
			return err
		}
		defer func() { _ = unix.Unmount(source, unix.MNT_DETACH) }()
	}
	made := filepath.Join(work, "disk")
	if err := run(ctx, "erofs-utils", "mkfs.erofs", "--quiet", "-Enoinline_data", made, source); err != nil {
		return err
	}
	if err := os.Chmod(made, 0o400); err != nil {
		return err
	}
	if err := os.WriteFile(strings.TrimSuffix(path, diskSuffix)+layersSuffix, []byte(strings.Join(layers, "\n")), 0o600); err != nil {
		return err
	}
	return os.Rename(made, path)
}

// mountLayers mounts the layers over one another, read-only. The kernel's limit on mount(2)'s options, a page, is avoided by naming layers by
// descriptors: fsconfig(2) takes them one by one.
func mountLayers(target string, layers []string) error {
	ctx, err := unix.Fsopen("overlay", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open overlayfs: %w", err)
	}
	defer unix.Close(ctx)
	set := func(layers string) error { return unix.FsconfigSetString(ctx, "lowerdir", layers) }
	if err := set(strings.Join(layers, ":")); err != nil {
		for _, layer := range layers { // too long for one string
			if err := unix.FsconfigSetString(ctx, "lowerdir+", layer); err != nil {
				return fmt.Errorf("stack %d layers: %w", len(layers), err)
			}
		}
	}
	if err := unix.FsconfigCreate(ctx); err != nil {
		return fmt.Errorf("stack %d layers: %w", len(layers), err)
	}
	view, err := unix.Fsmount(ctx, unix.FSMOUNT_CLOEXEC, unix.MOUNT_ATTR_RDONLY)
	if err != nil {
		return fmt.Errorf("mount the layers: %w", err)
	}
	defer unix.Close(view)
	if err := unix.MoveMount(view, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount the layers: %w", err)
	}
	return nil
}

// Sweep removes the disks of layers that are gone, and what an interrupted build left. Machines that run from a removed disk keep it open.
func (s Images) Sweep() error {
	entries, err := os.ReadDir(s.Dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list image disks: %w", err)
	}
	var failed []error
	for _, e := range entries {
		name, isList := strings.CutSuffix(e.Name(), layersSuffix)
		if !isList {
			continue
		}
		layers, err := os.ReadFile(filepath.Join(s.Dir, e.Name()))
		if err != nil || !gone(strings.Split(string(layers), "\n")) {
			failed = append(failed, err)
			continue
		}
		for _, suffix := range []string{diskSuffix, ".lock", layersSuffix} {
			if err := os.Remove(filepath.Join(s.Dir, name+suffix)); err != nil && !errors.Is(err, fs.ErrNotExist) {
				failed = append(failed, err)
			}
		}
	}
	return errors.Join(failed...)
}

func gone(layers []string) bool {
	for _, layer := range layers {
		if _, err := os.Stat(layer); errors.Is(err, fs.ErrNotExist) {
			return true
		}
	}
	return false
}
