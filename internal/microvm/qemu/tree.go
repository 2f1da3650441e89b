package qemu

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/vmm"
)

// A tree is the whole file system of the monitors: QEMU, the libraries and modules it loads, firmware, and nothing else. It is a copy, so that
// a template is restored by the very program that made it when the distribution's package is upgraded, and until the template is made anew.

// firmware that the microvm machine loads.
var firmware = []string{"bios-microvm.bin", "pvh.bin", "linuxboot_dma.bin"}

// Places of QEMU's files, relative to the directory of its program. Distributions agree on them.
var (
	firmwareDirs = []string{"../share/qemu", "../share/seabios", "../share/qemu-firmware"}
	moduleDirs   = []string{"../lib/*/qemu", "../lib/qemu", "../lib64/qemu"}
)

const (
	emulationModule = "accel-tcg-x86_64.so"
	// loaderCache is where the dynamic loader looks first. It changes with packages that have nothing to do with QEMU, so it is no
	// part of the digest.
	loaderCache   = "/etc/ld.so.cache"
	treeLock      = ".tree.lock"
	treeBeingMade = ".tree"
)

// A treeFile is the host's file from, in a tree at the absolute path to.
type treeFile struct{ from, to string }

// findFiles lists what of QEMU belongs into a tree, where it is on the host.
func findFiles(ctx context.Context, program string) ([]treeFile, error) {
	libraries, err := libraries(ctx, program)
	if err != nil {
		return nil, err
	}
	files := append([]string{program}, libraries...)
	for _, name := range firmware {
		if file := firstFile(filepath.Dir(program), firmwareDirs, name); file != "" {
			files = append(files, file)
		}
	}
	if module := firstFile(filepath.Dir(program), moduleDirs, emulationModule); module != "" {
		files = append(files, module) // it needs no library that QEMU does not
	}
	slices.Sort(files)
	var list []treeFile
	for _, path := range slices.Compact(files) {
		list = append(list, treeFile{path, path})
	}
	return list, nil
}

func firstFile(base string, dirs []string, name string) string {
	for _, dir := range dirs {
		found, err := filepath.Glob(filepath.Join(base, dir, name))
		if err == nil && len(found) > 0 {
			return found[0]
		}
	}
	return ""
}

// libraries asks the dynamic loader that the program names what it would load.
func libraries(ctx context.Context, program string) ([]string, error) {
	loader, err := interpreter(program)
	if err != nil || loader == "" {
		return nil, err
	}
	var complaints bytes.Buffer
	list := exec.CommandContext(ctx, loader, "--list", program)
	list.Stderr = &complaints
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("%w: %s cannot be loaded: %s; reinstall the package qemu-system-x86", vmm.ErrUnavailable, program, firstLine(complaints.String()))
	}
	files := []string{loader}
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		for field := range strings.FieldsSeq(lines.Text()) {
			if filepath.IsAbs(field) {
				files = append(files, filepath.Clean(field))
			}
		}
	}
	return files, lines.Err()
}

// interpreter is the program's dynamic loader, empty if it needs none.
func interpreter(program string) (string, error) {
	file, err := elf.Open(program)
	if err != nil {
		return "", fmt.Errorf("%w: %s is no program: %w; reinstall the package qemu-system-x86", vmm.ErrUnavailable, program, err)
	}
	defer file.Close()
	for _, segment := range file.Progs {
		if segment.Type == elf.PT_INTERP {
			path, err := io.ReadAll(segment.Open())
			return string(bytes.TrimRight(path, "\x00")), err
		}
	}
	return "", nil
}

// digestFiles is a digest of the files' paths in the tree and contents.
func digestFiles(files []treeFile) (string, error) {
	sum := sha256.New()
	for _, f := range files {
		file, err := os.Open(f.from)
		if err != nil {
			return "", err
		}
		one := sha256.New()
		_, err = io.Copy(one, file)
		file.Close()
		if err != nil {
			return "", fmt.Errorf("read %s: %w", f.from, err)
		}
		fmt.Fprintf(sum, "%s %x\n", f.to, one.Sum(nil))
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

// makeTree copies the files to a directory, unless it is there, and removes older trees beside it (pattern). Machines that run in one of those
// do not mind.
func makeTree(dir, pattern string, files []treeFile) error {
	parent := filepath.Dir(dir)
	if err := os.MkdirAll(parent, 0o755); err != nil {
		return explainSpace(err)
	}
	unlock, err := lock(filepath.Join(parent, treeLock))
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	old, err := filepath.Glob(filepath.Join(parent, pattern))
	if err != nil {
		return err
	}
	temporary := filepath.Join(parent, treeBeingMade)
	if err := os.RemoveAll(temporary); err != nil { // of a process that was killed
		return err
	}
	if err := fillTree(temporary, files); err != nil {
		return errors.Join(err, os.RemoveAll(temporary))
	}
	if err := os.Rename(temporary, dir); err != nil {
		return err
	}
	for _, path := range old {
		if err := os.RemoveAll(path); err != nil {
			return err
		}
	}
	return nil
}

// lock waits for whoever else makes a tree, which takes a second.
func lock(path string) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, explainSpace(err)
	}
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX)
		if err == nil {
			return func() { file.Close() }, nil
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(err, file.Close())
		}
	}
}

func fillTree(dir string, files []treeFile) error {
	for _, sub := range []string{"proc", "dev"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	if _, err := os.Stat(loaderCache); err == nil {
		files = append(slices.Clone(files), treeFile{loaderCache, loaderCache})
	}
	for _, f := range files {
		if err := copyFile(filepath.Join(dir, f.to), f.from); err != nil {
			return fmt.Errorf("copy %s: %w", f.from, explainSpace(err))
		}
	}
	// QEMU is nobody's user in there, whatever our umask is.
	return filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.IsDir() {
			return err
		}
		return os.Chmod(path, 0o755)
	})
}

func copyFile(to, from string) error {
	info, err := os.Stat(from)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(to), 0o755); err != nil {
		return err
	}
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Sync(), out.Chmod(0o644|info.Mode().Perm()&0o111), out.Close())
}

func explainSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("%w: free some space on that file system", err)
	}
	return err
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	return line
}
