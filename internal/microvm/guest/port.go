package guest

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/mdlayher/vsock"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

// Listener yields the host's connections, one after another: the next one after the former was closed.
type Listener interface {
	// Accept blocks until the host has connected. It fails once the port is sealed.
	Accept() (io.ReadWriteCloser, error)
	// Seal lets nobody connect any more who could be somebody else than the host that has connected.
	Seal()
}

const vsockDevices = "/sys/bus/virtio/drivers/vmw_vsock_virtio_transport/virtio*"

// listen at the port that the machine has.
func listen() (Listener, error) {
	devices, err := filepath.Glob(vsockDevices)
	if err != nil {
		return nil, err
	}
	if len(devices) == 0 {
		return openSerial(guestapi.PortName)
	}
	// At any address: that of the template is not the clone's.
	l, err := vsock.ListenContextID(unix.VMADDR_CID_ANY, guestapi.VsockPort, nil)
	if err != nil {
		return nil, fmt.Errorf("listen at the vsock: %w", err)
	}
	return &vsockPort{l}, nil
}

// vsockPort is a Listener on a vsock, for root of the host.
type vsockPort struct{ listener *vsock.Listener }

func (p *vsockPort) Accept() (io.ReadWriteCloser, error) {
	for {
		conn, err := p.listener.Accept()
		if err != nil {
			return nil, fmt.Errorf("accept a connection by vsock: %w", err)
		}
		// So can processes of other users of the host, and of this machine (vsock_loopback).
		if from, ok := conn.RemoteAddr().(*vsock.Addr); ok && from.ContextID == vsock.Host && from.Port <= guestapi.LastHostPort {
			return conn, nil
		}
		_ = conn.Close()
	}
}

func (p *vsockPort) Seal() { _ = p.listener.Close() }

// serialPort is a Listener on a virtio-serial port. The port is opened once and stays open. A connection is the time between two
// closings by the host; closing it on this side ends its pending reads and writes.
type serialPort struct {
	file *os.File
	raw  syscall.RawConn
}

// openSerial finds the port by its name.
func openSerial(name string) (*serialPort, error) {
	names, err := filepath.Glob("/sys/class/virtio-ports/*/name")
	if err != nil {
		return nil, err
	}
	for _, path := range names {
		content, err := os.ReadFile(path)
		if err != nil || strings.TrimSpace(string(content)) != name {
			continue
		}
		device := "/dev/" + filepath.Base(filepath.Dir(path))
		file, err := os.OpenFile(device, os.O_RDWR|unix.O_NONBLOCK, 0)
		if err != nil {
			return nil, fmt.Errorf("open the agent port: %w", err)
		}
		raw, err := file.SyscallConn()
		if err != nil {
			return nil, err
		}
		return &serialPort{file: file, raw: raw}, nil
	}
	return nil, fmt.Errorf("the machine has no vsock and no virtio-serial port named %q", name)
}

// Seal does nothing: the port is of the host's choice.
func (p *serialPort) Seal() {}

// Accept waits for bytes. While the host is not connected the port is at its end, and ready to be read; the kernel tells when that changes.
func (p *serialPort) Accept() (io.ReadWriteCloser, error) {
	if err := p.file.SetDeadline(time.Time{}); err != nil {
		return nil, err
	}
	buffer := make([]byte, 4096)
	var n int
	var failed error
	err := p.raw.Read(func(fd uintptr) bool {
		n, failed = unix.Read(int(fd), buffer)
		if errors.Is(failed, unix.EAGAIN) || errors.Is(failed, unix.EINTR) {
			failed = nil
		}
		return failed != nil || n > 0
	})
	if err = errors.Join(err, failed); err != nil {
		return nil, fmt.Errorf("read the agent port: %w", err)
	}
	return &serialConn{port: p, first: buffer[:n]}, nil
}

type serialConn struct {
	port  *serialPort
	first []byte
}

func (c *serialConn) Read(p []byte) (int, error) {
	if len(c.first) > 0 {
		n := copy(p, c.first)
		c.first = c.first[n:]
		return n, nil
	}
	return c.port.file.Read(p)
}

func (c *serialConn) Write(p []byte) (int, error) {
	return c.port.file.Write(p)
}

func (c *serialConn) Close() error {
	return c.port.file.SetDeadline(time.Unix(1, 0))
}
