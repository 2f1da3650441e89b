package shim

import (
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

// streams are the two sides of a process's stdin, stdout and stderr, while they are open.
type streams struct {
	output sync.WaitGroup

	mu sync.Mutex
	// stdin is a further writer of containerd's pipe.
	stdin   io.Closer
	closers []io.Closer
}

// connect ties a process's streams in the guest to containerd's pipes.
func (p *pod) connect(ctx context.Context, proc *process) error {
	for fd, path := range []string{proc.io.stdin, proc.io.stdout, proc.io.stderr} {
		if path == "" || fd == 2 && proc.io.terminal {
			continue
		}
		guest, err := p.guest.Stdio(ctx, guestapi.Stdio{ID: proc.id, Exec: proc.exec, FD: fd})
		if err != nil {
			proc.streams.close()
			return fmt.Errorf("connect the process's streams: %w", err)
		}
		if err := proc.streams.join(fd, path, guest); err != nil {
			guest.Close()
			proc.streams.close()
			return err
		}
	}
	return nil
}

// join copies between a pipe of containerd and a stream of the guest until one of them ends.
func (s *streams) join(fd int, path string, guest net.Conn) error {
	if fd == 0 {
		return s.joinStdin(path, guest)
	}
	// Opened for reading as well, the pipe stays whole while containerd restarts.
	pipe, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open the process's output: %w", err)
	}
	s.mu.Lock()
	s.closers = append(s.closers, guest, pipe)
	s.mu.Unlock()
	s.output.Add(1)
	go func() {
		defer s.output.Done()
		_, _ = io.Copy(pipe, guest)
		pipe.Close()
		guest.Close()
	}()
	return nil
}

// joinStdin copies what is written to the pipe. Opened for writing as well, the pipe stays whole while containerd restarts, until closeStdin.
func (s *streams) joinStdin(path string, guest net.Conn) error {
	whole, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return fmt.Errorf("open the process's stdin: %w", err)
	}
	pipe, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		whole.Close()
		return fmt.Errorf("open the process's stdin: %w", err)
	}
	s.mu.Lock()
	s.stdin, s.closers = whole, append(s.closers, whole, pipe, guest)
	s.mu.Unlock()
	go func() {
		_, _ = io.Copy(guest, pipe) // it ends when either side does
		guest.Close()
	}()
	return nil
}

// closeStdin lets the process read its stdin's end, after all that containerd wrote before.
func (s *streams) closeStdin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stdin != nil {
		s.stdin.Close()
	}
}

// drain waits until the output has been copied, for limit at most.
func (s *streams) drain(limit time.Duration) {
	done := make(chan struct{})
	go func() {
		s.output.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(limit):
	}
}

// close ends the copying.
func (s *streams) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.closers {
		c.Close()
	}
	s.closers, s.stdin = nil, nil
}
