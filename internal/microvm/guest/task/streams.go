package task

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

const (
	// consolesDir has the sockets by which crun hands terminals over. Their paths are short: a socket's address has little room.
	consolesDir    = "/run/berth/consoles"
	consoleTimeout = 10 * time.Second
)

var consoles atomic.Int64

// streams are a process's descriptors 0, 1 and 2: pipes, or one terminal. What the host did not name is /dev/null.
type streams struct {
	terminal bool
	byFD     [3]*Stream
	ends     [3]int // the process's ends of the pipes, -1 where there is none
}

func newStreams(names streamNames, terminal bool) (*streams, error) {
	s := &streams{terminal: terminal, ends: [3]int{-1, -1, -1}}
	for fd, name := range []string{names.stdin, names.stdout, names.stderr} {
		if name == "" || terminal && fd == 2 {
			continue
		}
		s.byFD[fd] = &Stream{terminal: terminal, ready: make(chan struct{})}
		if terminal {
			continue
		}
		if err := s.pipe(fd); err != nil {
			s.close()
			return nil, err
		}
	}
	return s, nil
}

// pipe keeps one end and leaves the other one for the process.
func (s *streams) pipe(fd int) error {
	var ends [2]int
	if err := unix.Pipe2(ends[:], unix.O_CLOEXEC); err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	own, other := ends[0], ends[1]
	if fd == 0 {
		own, other = other, own
	}
	s.ends[fd] = other
	if err := unix.SetNonblock(own, true); err != nil {
		_ = unix.Close(own)
		return err
	}
	s.byFD[fd].open(os.NewFile(uintptr(own), "stdio"))
	return nil
}

func (s *streams) get(fd int) (*Stream, error) {
	if fd < 0 || fd > 2 || s.byFD[fd] == nil {
		return nil, fmt.Errorf("the process has no stream %d: %w", fd, errdefs.ErrNotFound)
	}
	return s.byFD[fd], nil
}

func (s *streams) closeEnds() {
	for fd, end := range s.ends {
		if end >= 0 {
			_ = unix.Close(end)
			s.ends[fd] = -1
		}
	}
}

// close lets go of everything; what was not read is lost.
func (s *streams) close() {
	s.closeEnds()
	for _, stream := range s.byFD {
		if stream != nil {
			stream.close()
		}
	}
}

// closeInput ends a process's stdin. A terminal has no such end.
func (s *streams) closeInput() {
	if stream := s.byFD[0]; stream != nil && !s.terminal {
		stream.close()
	}
}

func (s *streams) resize(width, height uint16) error {
	if !s.terminal {
		return fmt.Errorf("the process has no terminal: %w", errdefs.ErrFailedPrecondition)
	}
	for _, stream := range s.byFD {
		if stream == nil {
			continue
		}
		return stream.control(func(fd int) error {
			return unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Row: height, Col: width})
		})
	}
	return nil
}

// child is what crun gets for a process.
type child struct {
	streams *streams
	files   []uintptr
	null    *os.File
	console string
	socket  *net.UnixListener
}

// child opens what the process gets; close it when crun has ended.
func (s *streams) child() (*child, error) {
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return nil, err
	}
	c := &child{streams: s, null: null}
	for _, end := range s.ends {
		if end < 0 {
			end = int(null.Fd())
		}
		c.files = append(c.files, uintptr(end))
	}
	if !s.terminal {
		return c, nil
	}
	if err := os.MkdirAll(consolesDir, 0o700); err != nil {
		c.close()
		return nil, err
	}
	c.console = filepath.Join(consolesDir, strconv.FormatInt(consoles.Add(1), 10))
	c.socket, err = net.ListenUnix("unix", &net.UnixAddr{Name: c.console, Net: "unix"})
	if err != nil {
		c.close()
		return nil, fmt.Errorf("listen for the terminal: %w", err)
	}
	return c, nil
}

func (c *child) close() {
	_ = c.null.Close()
	c.streams.closeEnds()
	if c.socket != nil {
		_ = c.socket.Close()
	}
}

// receiveConsole takes the terminal that crun has sent.
func (c *child) receiveConsole() error {
	if c.socket == nil {
		return nil
	}
	terminal, err := receiveFile(c.socket)
	if err != nil {
		return fmt.Errorf("receive the terminal from crun: %w", err)
	}
	input, output := c.streams.byFD[0], c.streams.byFD[1]
	if input != nil && output != nil {
		duplicate, err := unix.FcntlInt(uintptr(terminal), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			_ = unix.Close(terminal)
			return err
		}
		input.open(os.NewFile(uintptr(duplicate), "terminal"))
		input = nil
	}
	for _, stream := range []*Stream{input, output} {
		if stream != nil {
			stream.open(os.NewFile(uintptr(terminal), "terminal"))
			return nil
		}
	}
	return unix.Close(terminal)
}

// receiveFile takes one descriptor, made non-blocking.
func receiveFile(socket *net.UnixListener) (int, error) {
	if err := socket.SetDeadline(time.Now().Add(consoleTimeout)); err != nil {
		return -1, err
	}
	conn, err := socket.AcceptUnix()
	if err != nil {
		return -1, err
	}
	defer func() { _ = conn.Close() }()
	data, control := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(data, control)
	if err != nil {
		return -1, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		return -1, fmt.Errorf("%d messages with descriptors: %w", len(messages), err)
	}
	files, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(files) != 1 {
		return -1, fmt.Errorf("%d descriptors: %w", len(files), err)
	}
	return files[0], unix.SetNonblock(files[0], true)
}
