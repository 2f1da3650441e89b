package shimstart

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
)

// TestAnswers: only a socket at which nobody listens is a dead shim's.
func TestAnswers(t *testing.T) {
	dir := t.TempDir()
	socket := func(network, name string) string {
		path := filepath.Join(dir, name)
		var err error
		if network == "unix" {
			var l *net.UnixListener
			if l, err = net.ListenUnix(network, &net.UnixAddr{Name: path, Net: network}); err == nil {
				t.Cleanup(func() { l.Close() })
				if name == "dead" {
					l.SetUnlinkOnClose(false)
					l.Close()
				}
			}
		} else {
			var c *net.UnixConn
			if c, err = net.ListenUnixgram(network, &net.UnixAddr{Name: path, Net: network}); err == nil {
				t.Cleanup(func() { c.Close() })
			}
		}
		if err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, c := range map[string]struct {
		path          string
		lives, unsure bool
	}{
		"no socket":                  {path: filepath.Join(dir, "none")},
		"a dead shim's":              {path: socket("unix", "dead")},
		"a shim that accepts nobody": {path: socket("unix", "live"), lives: true},
		"something else":             {path: socket("unixgram", "other"), unsure: true},
	} {
		t.Run(name, func(t *testing.T) {
			lives, err := answers(c.path)
			if lives != c.lives || (err != nil) != c.unsure {
				t.Errorf("answers(%s) = %v, %v", c.path, lives, err)
			}
		})
	}
}

// TestRemoveSocket: what a sandbox's dead shim left goes with the sandbox, and not with another container of its pod.
func TestRemoveSocket(t *testing.T) {
	for name, sandbox := range map[string]bool{"the sandbox's bundle": true, "a container's bundle": false} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "s")
			t.Chdir(t.TempDir())
			files := map[string]string{socket: "", addressFile: scheme + socket}
			if sandbox {
				files[pidFile] = "1"
			}
			for path, text := range files {
				if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			for range 2 { // containerd may ask again
				if err := removeSocket(); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := os.Stat(socket); errors.Is(err, os.ErrNotExist) != sandbox {
				t.Errorf("the shim's socket: %v", err)
			}
		})
	}
}
