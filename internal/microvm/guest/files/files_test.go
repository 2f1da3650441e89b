package files

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

type member struct {
	name, content, link string
	mode                int64
}

func archive(t *testing.T, members ...member) io.Reader {
	t.Helper()
	var buffer bytes.Buffer
	w := tar.NewWriter(&buffer)
	for _, m := range members {
		header := &tar.Header{Name: m.name, Typeflag: tar.TypeReg, Mode: m.mode, Size: int64(len(m.content)), Uid: os.Getuid(), Gid: os.Getgid()}
		if m.link != "" {
			header.Typeflag, header.Linkname = tar.TypeSymlink, m.link
		}
		if err := w.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(w, m.content); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return &buffer
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

func names(t *testing.T, dir string) string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, entry := range entries {
		all = append(all, entry.Name())
	}
	return strings.Join(all, " ")
}

func TestAtomicPut(t *testing.T) {
	base := t.TempDir()
	volume := filepath.Join(base, "pod/volume")
	put := func(version string, keys ...string) {
		t.Helper()
		members := []member{{name: "..data", link: ".." + version}}
		for _, key := range keys {
			members = append(members, member{name: key, link: "..data/" + key}, member{name: ".." + version + "/" + key, content: key + version, mode: 0o400})
		}
		if err := Put(base, volume, archive(t, members...), true); err != nil {
			t.Fatal(err)
		}
	}
	put("1", "a", "b")
	if got := read(t, filepath.Join(volume, "a")); got != "a1" {
		t.Errorf("a is %q", got)
	}
	held, err := os.Open(filepath.Join(volume, "..data"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = held.Close() }()
	put("2", "a", "c")
	if got := names(t, volume); got != "..2 ..data a c" {
		t.Errorf("the volume has %q", got)
	}
	if got := read(t, filepath.Join(volume, "a")); got != "a2" {
		t.Errorf("a is %q", got)
	}
	put("2", "a", "c")
	if got := read(t, filepath.Join(volume, "c")); got != "c2" {
		t.Errorf("the same again: c is %q", got)
	}
}

func TestPutAFileInPlace(t *testing.T) {
	base := t.TempDir()
	hosts := filepath.Join(base, "hosts")
	for _, content := range []string{"a longer first version", "second"} {
		before, _ := os.Stat(hosts)
		if err := Put(base, hosts, archive(t, member{name: ".", content: content, mode: 0o644}), false); err != nil {
			t.Fatal(err)
		}
		if got := read(t, hosts); got != content {
			t.Errorf("content %q, want %q", got, content)
		}
		after, err := os.Stat(hosts)
		if err != nil {
			t.Fatal(err)
		}
		if before != nil && !os.SameFile(before, after) {
			t.Error("it is another file now: where it is mounted the old one stays")
		}
	}
}

func TestPutStaysInside(t *testing.T) {
	for name, test := range map[string]struct {
		target  string
		members []member
	}{
		"target above":        {"../x", []member{{name: "a"}}},
		"target is the base":  {".", []member{{name: "a"}}},
		"member above":        {"x", []member{{name: "../../a"}}},
		"member below a link": {"x", []member{{name: "l", link: "/etc"}, {name: "l/a"}}},
	} {
		t.Run(name, func(t *testing.T) {
			base := t.TempDir()
			if err := Put(base, filepath.Join(base, test.target), archive(t, test.members...), false); err == nil {
				t.Error("no error")
			}
		})
	}
}

func TestGet(t *testing.T) {
	base := t.TempDir()
	if err := os.WriteFile(filepath.Join(base, "file"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(base, "link")); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		path  string
		limit int64
		size  int64
		bad   bool
	}{
		"all":              {"file", 0, 7, false},
		"limited":          {"file", 3, 3, false},
		"limit is more":    {"file", 100, 7, false},
		"link out of base": {"link", 0, 0, true},
		"outside":          {"../../etc/passwd", 0, 0, true},
	} {
		t.Run(name, func(t *testing.T) {
			file, size, err := Get(filepath.Join(base, test.path), test.limit, "/nowhere", base)
			if (err != nil) != test.bad || size != test.size {
				t.Errorf("size %d, %v", size, err)
			}
			if file != nil {
				_ = file.Close()
			}
		})
	}
}
