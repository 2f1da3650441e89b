package task

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// streamBuffer is small: there are many streams, and each buffer that is used is memory that the VM does not share with its template.
const streamBuffer = 8 << 10

// longAgo as a deadline ends what is waiting.
var longAgo = time.Unix(1, 0)

// Stream is the agent's end of one of a process's streams. One connection at a time has it: a new one takes it from the old one. Output that the
// old one is not known to have taken is kept for the new one.
type Stream struct {
	terminal bool
	// ready is closed when the file is there (a terminal comes with the process's start), or never will be.
	ready chan struct{}

	mu      sync.Mutex
	file    *os.File
	closed  bool
	current net.Conn // whose turn it is
	turn    sync.Mutex
	pending []byte // read from the process, not yet written to a connection; belongs to whose turn it is
}

func (s *Stream) open(file *os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		_ = file.Close()
		return
	}
	s.file = file
	close(s.ready)
}

func (s *Stream) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return
	}
	s.closed = true
	if s.file != nil {
		_ = s.file.Close()
	} else {
		close(s.ready)
	}
	if s.current != nil {
		_ = s.current.SetReadDeadline(longAgo)
	}
}

// control acts on the descriptor.
func (s *Stream) control(do func(fd int) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file == nil || s.closed {
		return fmt.Errorf("the process is not running: %w", errdefs.ErrFailedPrecondition)
	}
	raw, err := s.file.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	return errors.Join(raw.Control(func(fd uintptr) { failed = do(int(fd)) }), failed)
}

// take waits for the stream, after the connection that had it has been told to let go.
func (s *Stream) take(conn net.Conn) (*os.File, func()) {
	s.mu.Lock()
	if s.current != nil {
		_ = s.current.SetReadDeadline(longAgo)
	}
	s.current = conn
	if s.file != nil {
		_ = s.file.SetReadDeadline(longAgo)
	}
	s.mu.Unlock()
	s.turn.Lock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.file != nil && s.current == conn {
		_ = s.file.SetReadDeadline(time.Time{})
	}
	return s.file, s.turn.Unlock
}

// wait until the file is there, or the connection's peer has gone.
func (s *Stream) wait(gone <-chan struct{}) {
	select {
	case <-s.ready:
	case <-gone:
	}
}

// CopyOutput writes what the process writes to the connection, until the process's end of it is closed or the peer has gone.
func (s *Stream) CopyOutput(conn net.Conn) error {
	gone := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, conn)
		close(gone)
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.current == conn && s.file != nil {
			_ = s.file.SetReadDeadline(longAgo)
		}
	}()
	s.wait(gone)
	file, done := s.take(conn)
	defer done()
	if file == nil {
		return nil
	}
	select {
	case <-gone:
		return nil
	default:
	}
	buffer := make([]byte, streamBuffer)
	for {
		if len(s.pending) == 0 {
			n, err := file.Read(buffer)
			if n == 0 {
				return endOfOutput(err)
			}
			s.pending = buffer[:n]
		}
		n, err := conn.Write(s.pending)
		s.pending = s.pending[n:]
		if err != nil {
			s.pending = append([]byte(nil), s.pending...)
			return err
		}
	}
}

// endOfOutput: a pipe has an end, a terminal an error when nobody has its other side; a deadline has passed when another connection or nobody wants it.
func endOfOutput(err error) error {
	for _, expected := range []error{io.EOF, unix.EIO, os.ErrDeadlineExceeded, os.ErrClosed} {
		if errors.Is(err, expected) {
			return nil
		}
	}
	return err
}

// CopyInput writes what comes from the connection to the process. When the peer closes its side, so is the process's stdin, unless the whole
// session was lost: a new one may go on.
func (s *Stream) CopyInput(conn net.Conn, sessionLost func() bool) error {
	s.wait(nil)
	file, done := s.take(conn)
	defer done()
	if file == nil {
		return nil
	}
	buffer := make([]byte, streamBuffer)
	for {
		n, err := conn.Read(buffer)
		if n > 0 {
			if _, err := file.Write(buffer[:n]); err != nil {
				return err
			}
			continue
		}
		if errors.Is(err, io.EOF) && !s.terminal && !sessionLost() {
			s.close()
		}
		return nil
	}
}
