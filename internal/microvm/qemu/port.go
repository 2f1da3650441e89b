package qemu

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"time"
	"unsafe"

	"github.com/mdlayher/socket"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/guestapi"
	"github.com/berth-run/berth/internal/microvm/vmm"
)

// Transports of what host and agent say.
const (
	vsock        = "vsock"
	virtioSerial = "virtio-serial"
)

const (
	vsockDevice = "/dev/vhost-vsock"
	// setGuestCID is VHOST_VSOCK_SET_GUEST_CID of linux/vhost.h.
	setGuestCID = 0x4008af60
	// longestSocket is the kernel's limit to the path of a unix socket.
	longestSocket = 107
	// firstConnect, doubled again and again up to lastConnect, is how long a connection by vsock may take: what a guest answers before it has noticed
	// that it was restored goes astray.
	firstConnect, lastConnect = 5 * time.Millisecond, 2 * time.Second
	// firstPause, doubled up to lastPause, is between two tries: a guest that boots has better things to do than to refuse connections.
	firstPause, lastPause = 2 * time.Millisecond, 100 * time.Millisecond
)

// transport is vsock where the host's kernel and QEMU have it.
func transport(ctx context.Context, program string) (string, error) {
	device, err := openVsock()
	if err != nil {
		for _, missing := range []error{unix.ENOENT, unix.ENODEV, unix.ENXIO, unix.EPERM, unix.EACCES} {
			if errors.Is(err, missing) {
				return virtioSerial, nil
			}
		}
		return "", fmt.Errorf("find out whether there is vsock: %w", err)
	}
	device.Close()
	var refused *exec.ExitError
	switch err := exec.CommandContext(ctx, program, "-device", "vhost-vsock-device,help").Run(); {
	case err == nil:
		return vsock, nil
	case errors.As(err, &refused) && ctx.Err() == nil:
		return virtioSerial, nil
	default:
		return "", fmt.Errorf("find out whether QEMU has vsock: %w", err)
	}
}

func openVsock() (*os.File, error) { return os.OpenFile(vsockDevice, os.O_RDWR, 0) }

// port is a machine's agent port: a vsock of the host's kernel, or a unix socket of QEMU.
type port struct {
	// far is what QEMU gets: the vsock's device, or the socket to listen on.
	far *os.File
	// cid is the vsock's address; 0: there is none.
	cid uint32
	// socket is the other's.
	socket string
}

func openPort(transport, socket string) (port, error) {
	if transport == vsock {
		return reserveVsock()
	}
	far, err := listen(socket)
	return port{far: far, socket: socket}, err
}

// reserveVsock takes an address that no other machine of the host has. It is not used again soon.
func reserveVsock() (port, error) {
	device, err := openVsock()
	if err != nil {
		return port{}, fmt.Errorf("the template has a vsock: %w; load the module vhost_vsock, or build the template anew with berth template build", err)
	}
	for {
		// Between the addresses with a meaning, which are at both ends.
		cid := uint64(unix.VMADDR_CID_HOST + 1 + rand.Uint32N(unix.VMADDR_CID_ANY-unix.VMADDR_CID_HOST-1))
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, device.Fd(), setGuestCID, uintptr(unsafe.Pointer(&cid)))
		switch errno {
		case 0:
			return port{far: device, cid: uint32(cid)}, nil
		case unix.EADDRINUSE:
		default:
			return port{}, errors.Join(fmt.Errorf("take vsock address %d: %w", cid, errno), device.Close())
		}
	}
}

// listen makes the agent's socket, which only root may connect to. What another machine left at the path is replaced.
func listen(path string) (*os.File, error) {
	if len(path) > longestSocket {
		return nil, fmt.Errorf("make the agent's socket: the path %s is longer than %d bytes", path, longestSocket)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("make the agent's socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make the agent's socket: %w", err)
	}
	l.SetUnlinkOnClose(false)
	defer l.Close()
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, os.Remove(path))
	}
	return l.File()
}

// remove what there is of the port besides the open file.
func (p port) remove() error {
	if p.socket == "" {
		return nil
	}
	return os.Remove(p.socket)
}

// Dial implements vmm.Machine.
func (m *machine) Dial(ctx context.Context) (net.Conn, error) {
	if m.port.cid == 0 {
		var dialer net.Dialer
		conn, err := dialer.DialContext(ctx, "unix", m.port.socket)
		return conn, m.orGone(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-m.exited:
			cancel()
		case <-ctx.Done():
		}
	}()
	patience, pause := firstConnect, firstPause
	for ; ; patience, pause = min(2*patience, lastConnect), min(2*pause, lastPause) {
		conn, err := connectVsock(ctx, m.port.cid, patience)
		if err == nil || errors.Is(err, errNoSocket) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, m.orGone(fmt.Errorf("%w: %w", ctx.Err(), err))
		case <-time.After(pause): // the guest does not listen yet
		}
	}
}

// orGone: nobody answers for a machine that has ended.
func (m *machine) orGone(err error) error {
	select {
	case <-m.exited:
		if err != nil {
			return fmt.Errorf("%w: %w", vmm.ErrGone, err)
		}
	default:
	}
	return err
}

// vsockConn is a connection to a guest.
type vsockConn struct {
	*socket.Conn
	cid uint32
}

type vsockAddr uint32

func (vsockAddr) Network() string  { return vsock }
func (a vsockAddr) String() string { return fmt.Sprintf("vsock:%d", uint32(a)) }

func (c *vsockConn) LocalAddr() net.Addr  { return vsockAddr(unix.VMADDR_CID_HOST) }
func (c *vsockConn) RemoteAddr() net.Addr { return vsockAddr(c.cid) }

// errNoSocket: there is nothing to connect with, and there will not be.
var errNoSocket = errors.New("cannot make a vsock")

func connectVsock(ctx context.Context, cid uint32, patience time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	conn, err := privilegedVsock()
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errNoSocket, err)
	}
	if _, err := conn.Connect(ctx, &unix.SockaddrVM{CID: cid, Port: guestapi.VsockPort}); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return &vsockConn{conn, cid}, nil
}

// privilegedVsock comes from a port that only root can take, which is how the agent knows the host's root from its other users. There are enough for as many
// machines as there are ports.
func privilegedVsock() (*socket.Conn, error) {
	conn, err := socket.Socket(unix.AF_VSOCK, unix.SOCK_STREAM, 0, vsock, nil)
	if err != nil {
		return nil, err
	}
	first := rand.Uint32N(guestapi.LastHostPort)
	for i := range uint32(guestapi.LastHostPort) {
		port := 1 + (first+i)%guestapi.LastHostPort
		if err = conn.Bind(&unix.SockaddrVM{CID: unix.VMADDR_CID_ANY, Port: port}); !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("take one of the %d ports of root: %w", guestapi.LastHostPort, err), conn.Close())
	}
	return conn, nil
}
