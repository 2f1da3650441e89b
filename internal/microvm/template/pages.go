package template

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

const (
	pageBytes  = 4096
	chunkPages = 256
)

var emptyPage [pageBytes]byte

// copyPages copies the pages of a file that are not empty, to the same places of another, and leaves holes for the others. The digest is over each copied
// page and its place, and the file's size: it is the same however the file is stored.
func copyPages(to, from *os.File) (File, error) {
	var f File
	info, err := from.Stat()
	if err != nil {
		return f, err
	}
	if err := to.Truncate(info.Size()); err != nil {
		return f, err
	}
	sum := sha256.New()
	number := func(n int64) {
		_ = binary.Write(sum, binary.LittleEndian, n) // hashes do not fail
	}
	number(info.Size())
	buffer := make([]byte, chunkPages*pageBytes)
	err = eachExtent(from, info.Size(), func(start, end int64) error {
		start -= start % pageBytes
		for at := start; at < end; {
			n, err := from.ReadAt(buffer[:min(int64(len(buffer)), end-at)], at)
			if err != nil && (n == 0 || !errors.Is(err, io.EOF)) {
				return err
			}
			for page := range bytesOfPages(buffer[:n]) {
				place := at + int64(page)
				content := buffer[page:min(page+pageBytes, n)]
				if bytes.Equal(content, emptyPage[:len(content)]) {
					continue
				}
				number(place)
				sum.Write(content)
				if _, err := to.WriteAt(content, place); err != nil {
					return err
				}
				f.Bytes += int64(len(content))
			}
			at += int64(n)
		}
		return nil
	})
	if err != nil {
		return f, fmt.Errorf("copy %s: %w", from.Name(), explainSpace(err))
	}
	f.Digest = hex.EncodeToString(sum.Sum(nil))
	return f, nil
}

// bytesOfPages yields where the pages begin.
func bytesOfPages(b []byte) func(func(int) bool) {
	return func(yield func(int) bool) {
		for at := 0; at < len(b); at += pageBytes {
			if !yield(at) {
				return
			}
		}
	}
}

// eachExtent calls do for the parts of a file that are not holes.
func eachExtent(f *os.File, size int64, do func(start, end int64) error) error {
	for at := int64(0); at < size; {
		start, err := f.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return nil // nothing but a hole
		}
		if err != nil {
			return err
		}
		end, err := f.Seek(start, unix.SEEK_HOLE)
		if err != nil {
			return err
		}
		if err := do(start, end); err != nil {
			return err
		}
		at = end
	}
	return nil
}

// MemoryFile is an empty file in memory that can be sealed. Anybody who has it open may open it anew.
func MemoryFile(name string) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("make a file in memory for the template: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}

// seal makes a memory file unchangeable for good.
func seal(f *os.File) error {
	const seals = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return fmt.Errorf("seal the template's %s: %w", f.Name(), err)
	}
	return nil
}

// loadFile reads a template's file into sealed memory, and checks it.
func loadFile(path, name string, want File) (*os.File, error) {
	from, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	defer from.Close()
	to, err := MemoryFile(name)
	if err != nil {
		return nil, err
	}
	got, err := copyPages(to, from)
	if err == nil && got != want {
		err = fmt.Errorf("%w: %s has digest %.16s, not %.16s as its manifest says", ErrDamaged, path, got.Digest, want.Digest)
	}
	if err == nil {
		err = seal(to)
	}
	if err != nil {
		return nil, errors.Join(err, to.Close())
	}
	return to, nil
}

// digestOf a whole file, in sha256.
func digestOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return hex.EncodeToString(sum.Sum(nil)), nil
}

func explainSpace(err error) error {
	if errors.Is(err, unix.ENOSPC) {
		return fmt.Errorf("%w: free some space there, a template needs about 100 MB", err)
	}
	return err
}
