package main

import (
	"bytes"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// tree makes files (name to content; a name that ends in a slash is a directory).
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, content := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if name[len(name)-1] == '/' {
			continue
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func pack(t *testing.T, base, dir string, hollow ...string) string {
	t.Helper()
	out := filepath.Join(t.TempDir(), "layer.tar.gz")
	if err := writeLayer(out, base, dir, hollow); err != nil {
		t.Fatal(err)
	}
	return out
}

func names(t *testing.T, layer string) []string {
	t.Helper()
	entries, err := readLayer(layer)
	if err != nil {
		t.Fatal(err)
	}
	return slices.Sorted(maps.Keys(entries))
}

func TestDifferenceHoldsWhatChanged(t *testing.T) {
	base := pack(t, "", tree(t, map[string]string{"etc/kept": "a", "etc/changed": "a", "etc/gone": "a", "old/x/y": "a"}))
	above := tree(t, map[string]string{"etc/kept": "a", "etc/changed": "b", "etc/new": "a"})
	want := []string{".wh.old", "etc/.wh.gone", "etc/changed", "etc/new"}
	if got := names(t, pack(t, base, above)); !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestHollowDirectoryHasNoContent(t *testing.T) {
	dir := tree(t, map[string]string{"proc/1/maps": "x", "etc/hosts": "x"})
	if got, want := names(t, pack(t, "", dir, "proc")), []string{"etc", "etc/hosts", "proc"}; !slices.Equal(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
}

func TestSameContentSameBytes(t *testing.T) {
	files := map[string]string{"a/x": "1", "a-b": "2", "c": "3"}
	first, second := tree(t, files), tree(t, files)
	past := time.Unix(1, 0)
	if err := os.Chtimes(filepath.Join(second, "c"), past, past); err != nil {
		t.Fatal(err)
	}
	// The hard link sorts before its target unless the slash comes first.
	for _, dir := range []string{first, second} {
		if err := os.Link(filepath.Join(dir, "a/x"), filepath.Join(dir, "a-link")); err != nil {
			t.Fatal(err)
		}
	}
	one, err := os.ReadFile(pack(t, "", first))
	if err != nil {
		t.Fatal(err)
	}
	two, err := os.ReadFile(pack(t, "", second))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(one, two) {
		t.Error("the same content gave two layers")
	}
}
