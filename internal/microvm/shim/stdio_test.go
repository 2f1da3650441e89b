package shim

import (
	"bytes"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// TestStdin: the process gets all that was written before its stdin is closed, however slowly it reads; a containerd that restarts closes nothing.
func TestStdin(t *testing.T) {
	path := filepath.Join(t.TempDir(), "stdin")
	if err := unix.Mkfifo(path, 0o600); err != nil {
		t.Fatal(err)
	}
	host, guest := net.Pipe()
	s := &streams{}
	t.Cleanup(s.close)
	if err := s.join(0, path, host); err != nil {
		t.Fatal(err)
	}
	part := bytes.Repeat([]byte("0123456789abcdef"), 3<<10) // less than the pipe holds
	for range 2 {
		containerd, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := containerd.Write(part); err != nil {
			t.Fatal(err)
		}
		containerd.Close()
		if _, err := io.ReadFull(guest, make([]byte, len(part)/2)); err != nil {
			t.Fatal(err)
		}
	}
	s.closeStdin()
	if rest, err := io.ReadAll(guest); err != nil || len(rest) != len(part) {
		t.Errorf("%d bytes are left for the process, %v; want %d", len(rest), err, len(part))
	}
}
