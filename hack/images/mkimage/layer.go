package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// epoch is the modification time of everything: of an image, only the content is to count.
var epoch = time.Unix(1700000000, 0).UTC()

// xattrPrefix marks an extended attribute in a tar header's PAX records.
const xattrPrefix = "SCHILY.xattr."

// entry is one file of a layer, with what tells it from another of the same name.
type entry struct {
	header *tar.Header
	sum    [sha256.Size]byte
	source string // file on disk; empty where there is no content
}

// writeLayer writes dir as a gzipped layer to out: all of it or, if base is given, what differs from that layer. Of the
// hollow directories it takes no content.
func writeLayer(out, base, dir string, hollow []string) error {
	entries, err := scan(dir, hollow)
	if err != nil {
		return fmt.Errorf("read %s: %w", dir, err)
	}
	if base != "" {
		below, err := readLayer(base)
		if err != nil {
			return fmt.Errorf("read the layer %s: %w", base, err)
		}
		entries = difference(below, entries)
	}
	return writeAtomically(out, func(w io.Writer) error {
		zip, err := gzip.NewWriterLevel(w, gzip.BestSpeed)
		if err != nil {
			return err
		}
		if err := writeEntries(zip, entries); err != nil {
			return err
		}
		return zip.Close()
	})
}

// scan lists dir as tar headers that are free of times and names of users.
func scan(dir string, hollow []string) (map[string]entry, error) {
	entries := map[string]entry{}
	links := map[[2]uint64]string{}
	err := filepath.WalkDir(dir, func(file string, d fs.DirEntry, err error) error {
		if err != nil || file == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		if info.Mode()&fs.ModeSocket != 0 {
			return nil
		}
		name, err := filepath.Rel(dir, file)
		if err != nil {
			return err
		}
		e, err := describe(name, file, info)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		if stat := info.Sys().(*syscall.Stat_t); info.Mode().IsRegular() && stat.Nlink > 1 {
			inode := [2]uint64{stat.Dev, stat.Ino}
			if first, ok := links[inode]; ok {
				e.header.Typeflag, e.header.Linkname, e.header.Size, e.source = tar.TypeLink, first, 0, ""
			} else {
				links[inode] = name
			}
		}
		entries[name] = e
		if d.IsDir() && slices.Contains(hollow, name) {
			return filepath.SkipDir
		}
		return nil
	})
	return entries, err
}

// describe makes the entry of one file. A directory's name has no final slash here.
func describe(name, file string, info fs.FileInfo) (entry, error) {
	var target string
	if info.Mode()&fs.ModeSymlink != 0 {
		var err error
		if target, err = os.Readlink(file); err != nil {
			return entry{}, err
		}
	}
	header, err := tar.FileInfoHeader(info, target)
	if err != nil {
		return entry{}, err
	}
	header.Name, header.ModTime, header.Uname, header.Gname = name, epoch, "", ""
	header.AccessTime, header.ChangeTime = time.Time{}, time.Time{}
	if header.PAXRecords, err = xattrs(file); err != nil {
		return entry{}, err
	}
	e := entry{header: header}
	if !info.Mode().IsRegular() {
		return e, nil
	}
	e.source = file
	content, err := os.ReadFile(file)
	e.sum = sha256.Sum256(content)
	return e, err
}

// xattrs returns a file's extended attributes (such as capabilities) as PAX records.
func xattrs(file string) (map[string]string, error) {
	names := make([]byte, 4096)
	n, err := unix.Llistxattr(file, names)
	if errors.Is(err, unix.ENOTSUP) || n == 0 {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list extended attributes: %w", err)
	}
	records := map[string]string{}
	for _, name := range strings.Split(strings.Trim(string(names[:n]), "\x00"), "\x00") {
		value := make([]byte, 4096)
		n, err := unix.Lgetxattr(file, name, value)
		if err != nil {
			return nil, fmt.Errorf("read the extended attribute %s: %w", name, err)
		}
		records[xattrPrefix+name] = string(value[:n])
	}
	return records, nil
}

// readLayer reads the entries of a layer that writeLayer wrote.
func readLayer(file string) (map[string]entry, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	zip, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	entries := map[string]entry{}
	archive := tar.NewReader(zip)
	for {
		header, err := archive.Next()
		if errors.Is(err, io.EOF) {
			return entries, nil
		}
		if err != nil {
			return nil, err
		}
		hash := sha256.New()
		if _, err := io.Copy(hash, archive); err != nil {
			return nil, err
		}
		e := entry{header: header}
		if header.Typeflag == tar.TypeReg {
			copy(e.sum[:], hash.Sum(nil))
		}
		header.Name = strings.TrimSuffix(header.Name, "/")
		entries[header.Name] = e
	}
}

// difference returns what must lie over below to give above: new and changed files, and a whiteout for each that is gone.
func difference(below, above map[string]entry) map[string]entry {
	diff := map[string]entry{}
	for name, e := range above {
		if old, ok := below[name]; !ok || !same(old, e) {
			diff[name] = e
			// A hard link needs the file that it names in the same layer.
			if first, ok := above[e.header.Linkname]; ok && e.header.Typeflag == tar.TypeLink {
				diff[e.header.Linkname] = first
			}
		}
	}
	for name := range below {
		parent := path.Dir(name)
		_, kept := above[name]
		_, parentKept := above[parent]
		if !kept && (parentKept || parent == ".") {
			whiteout := path.Join(parent, ".wh."+path.Base(name))
			diff[whiteout] = entry{header: &tar.Header{Name: whiteout, Typeflag: tar.TypeReg, Mode: 0o644, ModTime: epoch}}
		}
	}
	return diff
}

func same(a, b entry) bool {
	x, y := a.header, b.header
	for key, value := range y.PAXRecords {
		if strings.HasPrefix(key, xattrPrefix) && x.PAXRecords[key] != value {
			return false
		}
	}
	return x.Typeflag == y.Typeflag && x.Mode == y.Mode && x.Uid == y.Uid && x.Gid == y.Gid &&
		x.Linkname == y.Linkname && x.Size == y.Size && bytes.Equal(a.sum[:], b.sum[:])
}

// writeEntries writes a tar in the order of a walk: a directory before what is in it, a file before its hard links.
func writeEntries(w io.Writer, entries map[string]entry) error {
	names := make([]string, 0, len(entries))
	for name := range entries {
		names = append(names, name)
	}
	sort.Slice(names, func(i, j int) bool { return walkKey(names[i]) < walkKey(names[j]) })
	archive := tar.NewWriter(w)
	for _, name := range names {
		if err := writeEntry(archive, entries[name]); err != nil {
			return fmt.Errorf("write %s: %w", name, err)
		}
	}
	return archive.Close()
}

// walkKey sorts as filepath.WalkDir walks: the slash before every other character.
func walkKey(name string) string { return strings.ReplaceAll(name, "/", "\x00") }

func writeEntry(archive *tar.Writer, e entry) error {
	header := *e.header
	header.Format = tar.FormatPAX
	if header.Typeflag == tar.TypeDir {
		header.Name += "/"
	}
	if err := archive.WriteHeader(&header); err != nil || e.source == "" {
		return err
	}
	f, err := os.Open(e.source)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(archive, f)
	return err
}
