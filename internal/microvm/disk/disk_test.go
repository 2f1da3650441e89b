package disk

import (
	"errors"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// small is a directory with so much room.
func small(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := unix.Mount("small", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Fatalf("mount a small file system (root is needed): %v", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// TestEphemeral: a pod's disk has the size that the pod asked for, takes little room, and leaves nothing behind.
func TestEphemeral(t *testing.T) {
	dir := small(t, "100m")
	file, err := MakeEphemeral(t.Context(), dir, 20<<30)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil || info.Size() != 20<<30 {
		t.Errorf("its size is %d, %v", info.Size(), err)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		t.Fatal(err)
	}
	if used := (fs.Blocks - fs.Bfree) * uint64(fs.Bsize); used > 1<<20 {
		t.Errorf("an empty disk takes %d bytes", used)
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestEphemeralNeedsRoom(t *testing.T) {
	_, err := MakeEphemeral(t.Context(), small(t, "1m"), 20<<30)
	if !errors.Is(err, unix.ENOSPC) || !strings.Contains(err.Error(), "free some space there") {
		t.Errorf("on a full disk of the host: %v", err)
	}
}
