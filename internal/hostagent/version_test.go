package hostagent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestNodeVersion: it changes with a program of a node and with the guest, and with nothing else.
func TestNodeVersion(t *testing.T) {
	self, err := os.Executable() // a Go program with a build id
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	version := func() string {
		t.Helper()
		v, err := nodeVersion(dir)
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	none := version()
	if err := os.Symlink(self, filepath.Join(dir, "etcd")); err != nil {
		t.Fatal(err)
	}
	if version() != none {
		t.Error("another program changes the version")
	}
	if err := os.Symlink(self, filepath.Join(dir, "runsc")); err != nil {
		t.Fatal(err)
	}
	runsc := version()
	if err := os.Mkdir(filepath.Join(dir, "guest"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, guestManifest), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	if guest := version(); none == runsc || runsc == guest || version() != guest || !strings.Contains(guest, "-berth-") {
		t.Errorf("versions are %s, %s and %s", none, runsc, guest)
	}
	if err := os.WriteFile(filepath.Join(dir, "berth-node"), []byte("#!/bin/sh"), 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := nodeVersion(dir); err == nil || !strings.Contains(err.Error(), "berth-node") {
		t.Errorf("a program that is none: %v", err)
	}
}
