// Package files keeps the files that the host puts into the guest: configMaps, secrets, tokens, hosts files. For internal/microvm/guest only.
package files

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
)

// dataLink is the symbolic link by which a kubelet's AtomicWriter changes all files of a volume in one step; newDataLink is what it is
// before it is renamed.
const (
	dataLink    = "..data"
	newDataLink = "..data_tmp"
)

// Put unpacks a tar archive to target, which lies below base: a directory, or a file if the archive's one member is ".".
//
// Files are written in place, so that a file that is mounted somewhere shows its new content there. With atomic, the archive
// is the whole of a directory as the kubelet's AtomicWriter keeps it: its dated directory comes first, then the link ..data changes, then the other
// entries, and what the archive does not have goes.
func Put(base, target string, archive io.Reader, atomic bool) error {
	name, err := below(base, target)
	if err != nil {
		return err
	}
	root, err := os.OpenRoot(base)
	if err != nil {
		return err
	}
	defer func() { _ = root.Close() }()
	members := tar.NewReader(archive)
	header, err := members.Next()
	if errors.Is(err, io.EOF) {
		return root.MkdirAll(name, 0o755)
	}
	if err != nil {
		return fmt.Errorf("read archive for %s: %w", target, err)
	}
	if path.Clean(header.Name) == "." && header.Typeflag == tar.TypeReg {
		if err := root.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			return err
		}
		return writeFile(root, name, header, members)
	}
	if err := root.MkdirAll(name, 0o755); err != nil {
		return err
	}
	directory, err := root.OpenRoot(name)
	if err != nil {
		return err
	}
	defer func() { _ = directory.Close() }()
	w := &writer{root: directory, atomic: atomic, top: map[string]bool{}}
	for ; err == nil; header, err = members.Next() {
		if err := w.add(header, members); err != nil {
			return fmt.Errorf("put %s into %s: %w", header.Name, target, err)
		}
	}
	if !errors.Is(err, io.EOF) {
		return fmt.Errorf("read archive for %s: %w", target, err)
	}
	if err := w.finish(); err != nil {
		return fmt.Errorf("put files into %s: %w", target, err)
	}
	return nil
}

// writer unpacks one archive.
type writer struct {
	root   *os.Root
	atomic bool
	data   string          // target of ..data
	links  []*tar.Header   // links of the top, made after ..data has changed
	top    map[string]bool // names of the top directory that the archive has
}

func (w *writer) add(header *tar.Header, content io.Reader) error {
	name := path.Clean(header.Name)
	first, rest, nested := strings.Cut(name, "/")
	if name != "." {
		w.top[first] = true
	}
	if w.atomic && !nested && rest == "" && header.Typeflag == tar.TypeSymlink {
		if name == dataLink {
			w.data = header.Linkname
		} else {
			w.links = append(w.links, header)
		}
		return nil
	}
	switch header.Typeflag {
	case tar.TypeDir:
		if err := w.root.MkdirAll(name, 0o755); err != nil {
			return err
		}
		return own(w.root, name, header)
	case tar.TypeReg:
		if err := w.root.MkdirAll(path.Dir(name), 0o755); err != nil {
			return err
		}
		return writeFile(w.root, name, header, content)
	case tar.TypeSymlink:
		return link(w.root, name, header)
	}
	return fmt.Errorf("type %q of the archive's member is not supported: directories, files and symbolic links are", header.Typeflag)
}

// finish makes what was unpacked visible, and removes what is no longer there.
func (w *writer) finish() error {
	if !w.atomic {
		return nil
	}
	if w.data == "" {
		return errors.New("the archive has no link " + dataLink + ", as a volume of the kubelet has")
	}
	if err := w.root.Remove(newDataLink); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := w.root.Symlink(w.data, newDataLink); err != nil {
		return err
	}
	if err := w.root.Rename(newDataLink, dataLink); err != nil {
		return err
	}
	for _, header := range w.links {
		if err := link(w.root, path.Clean(header.Name), header); err != nil {
			return err
		}
	}
	directory, err := w.root.Open(".")
	if err != nil {
		return err
	}
	defer func() { _ = directory.Close() }()
	names, err := directory.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if !w.top[name] {
			if err := w.root.RemoveAll(name); err != nil {
				return err
			}
		}
	}
	return nil
}

// link makes a symbolic link, or changes the one that is there.
func link(root *os.Root, name string, header *tar.Header) error {
	if target, err := root.Readlink(name); err == nil && target == header.Linkname {
		return nil
	}
	if err := root.RemoveAll(name); err != nil {
		return err
	}
	if err := root.Symlink(header.Linkname, name); err != nil {
		return err
	}
	return root.Lchown(name, header.Uid, header.Gid)
}

func writeFile(root *os.Root, name string, header *tar.Header, content io.Reader) error {
	file, err := root.OpenFile(name, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	if _, err := io.Copy(file, content); err != nil {
		_ = file.Close()
		return err
	}
	if err := file.Close(); err != nil {
		return err
	}
	return own(root, name, header)
}

// own sets owner, then mode: changing the owner clears bits of it.
func own(root *os.Root, name string, header *tar.Header) error {
	if err := root.Chown(name, header.Uid, header.Gid); err != nil {
		return err
	}
	return root.Chmod(name, header.FileInfo().Mode())
}

// below is the path relative to base; it must lie inside.
func below(base, target string) (string, error) {
	name, err := filepath.Rel(base, target)
	if err != nil || name == "." || !filepath.IsLocal(name) {
		return "", fmt.Errorf("%s is not below %s", target, base)
	}
	return name, nil
}
