package shimstart

import (
	"net"
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
