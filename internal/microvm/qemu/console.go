package qemu

import (
	"fmt"
	"io"
	"os"
	"sync"
)

const (
	// consoleBytes is how much of what the guest prints goes to the log: a guest must not fill the host's disk.
	consoleBytes = 256 << 10
	// printedBytes and diagnosisBytes of the end are kept to explain how the machine ended.
	printedBytes   = 1 << 10
	diagnosisBytes = 2 << 10
)

// tail keeps the last bytes written to it.
type tail struct {
	mu   sync.Mutex
	size int
	kept []byte
}

func newTail(size int) *tail { return &tail{size: size} }

// Write never fails.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.kept = append(t.kept, p...)
	if over := len(t.kept) - t.size; over > 0 {
		t.kept = append(t.kept[:0], t.kept[over:]...)
	}
	return len(p), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.kept)
}

// openConsole makes the pipe that QEMU writes to, and copies from it to the log as long as there is room.
func (m *machine) openConsole(path string) (*os.File, error) {
	log := io.Discard
	if path != "" {
		file, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
		if err != nil {
			return nil, fmt.Errorf("make the console log: %w", err)
		}
		log = file
	}
	out, in, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make the console's pipe: %w", err)
	}
	m.consoles.Go(func() {
		defer out.Close()
		if file, ok := log.(*os.File); ok {
			defer file.Close()
		}
		// A log that cannot be written (a full disk) must not stop the guest: read on.
		_, _ = io.Copy(io.MultiWriter(m.printed, &limited{log, consoleBytes}), out)
	})
	return in, nil
}

// limited passes the first bytes on, and drops the others and those that cannot be written.
type limited struct {
	to   io.Writer
	left int
}

func (l *limited) Write(p []byte) (int, error) {
	if n := min(len(p), l.left); n > 0 {
		l.left -= n
		if _, err := l.to.Write(p[:n]); err != nil {
			l.left = 0
		}
	}
	return len(p), nil
}
