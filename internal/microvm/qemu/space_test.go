package qemu_test

import (
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/vmm"
	"github.com/berth-run/berth/internal/microvm/vmm/vmmtest"
)

// awaitsRoom: a machine whose disk has no room on the host says so, stands still as long as that is so, and loses nothing.
func awaitsRoom(t *testing.T, suite vmmtest.Suite, made vmm.Template) {
	dir := t.TempDir()
	size := func(flags uintptr, size string) {
		t.Helper()
		if err := unix.Mount("small", dir, "tmpfs", flags, "size="+size); err != nil {
			t.Fatal(err)
		}
	}
	size(0, "64k")
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	if err := os.WriteFile(filepath.Join(dir, "others"), make([]byte, 64<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	disk, err := os.Create(filepath.Join(dir, "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	if err := disk.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	stalled := make(chan bool, 8)
	host := testHost(t, &suite)
	host.Stalled = func(now bool) { stalled <- now }
	m, err := suite.Driver.Restore(t.Context(), vmm.Restore{Host: host, Template: made})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = m.Kill() }()
	if lun, err := m.Attach(t.Context(), vmm.Disk{File: disk}); err != nil || lun != 1 {
		t.Fatalf("the disk is LUN %d (%v)", lun, err)
	}
	written := make(chan string, 1)
	go func() {
		answer, err := vmmtest.Ask(t.Context(), m, "WRITE 1 kept")
		for err == nil && answer != "0" { // the guest has not noticed the disk yet
			answer, err = vmmtest.Ask(t.Context(), m, "WRITE 1 kept")
		}
		written <- answer
	}()
	if !<-stalled {
		t.Error("it goes on without having stood still")
	}
	select {
	case got := <-written:
		t.Errorf("without room, the guest has written (%q)", got)
	default:
	}
	size(unix.MS_REMOUNT, "1m")
	if <-stalled {
		t.Error("it stands still twice")
	}
	if got := <-written; got != "0" {
		t.Errorf("with room, writing ends with %q", got)
	}
	text := make([]byte, len("kept"))
	if _, err := disk.ReadAt(text, 0); err != nil || string(text) != "kept" {
		t.Errorf("the disk begins with %q (%v)", text, err)
	}
}
