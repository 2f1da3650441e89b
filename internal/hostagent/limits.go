package hostagent

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/berth-run/berth/internal/layout"
)

// limit is a setting of the kernel that many pods on one host need to be larger than its default.
type limit struct {
	path string
	need int64
}

var limits = []limit{
	// A kubelet watches files by up to three inotify instances and a virtual machine's shim by one, of which a user has 128
	// unless told otherwise, which is enough for about forty pods.
	{"/proc/sys/fs/inotify/max_user_instances", 65536},
	// Seconds for which a connection that was reset is remembered. A gVisor server holds on to its end (TIME_WAIT) for 60, and
	// answers nobody who comes from the same port; as long as the kernel remembers, it gives newcomers another
	// (docs/decisions/20261126-remember-closed-connections.md).
	{"/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close", 120},
}

// raisedFile, in the run directory, has what the limits were, one "path value" a line.
const raisedFile = "raised-limits"

// raiseLimits raises what is too low and notes what it was, so that RemoveAll can put it back.
func raiseLimits(dirs layout.Dirs, limits []limit) error {
	for _, l := range limits {
		now, err := readLimit(l.path)
		if err != nil {
			return err
		}
		if now >= l.need {
			continue
		}
		f, err := os.OpenFile(filepath.Join(dirs.Run, raisedFile), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
		if err != nil {
			return fmt.Errorf("note the kernel's limits: %w", err)
		}
		_, err = fmt.Fprintln(f, l.path, now)
		if err = errors.Join(err, f.Close()); err != nil {
			return fmt.Errorf("note the kernel's limits: %w", err)
		}
		if err := os.WriteFile(l.path, []byte(strconv.FormatInt(l.need, 10)), 0); err != nil {
			return fmt.Errorf("raise %s from %d to %d (many pods on one host need it): %w", l.path, now, l.need, err)
		}
	}
	return nil
}

func readLimit(path string) (int64, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read a limit of the kernel: %w", err)
	}
	return strconv.ParseInt(strings.TrimSpace(string(data)), 10, 64)
}

// lowerLimits puts back what raiseLimits noted.
func lowerLimits(dirs layout.Dirs) error {
	note := filepath.Join(dirs.Run, raisedFile)
	data, err := os.ReadFile(note)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read what the kernel's limits were: %w", err)
	}
	for line := range strings.Lines(string(data)) {
		path, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			return fmt.Errorf("put %s back to %s: %w", path, value, err)
		}
	}
	return os.Remove(note)
}
