package shim

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"time"
)

// dialLimit bounds a connection inside the guest.
const dialLimit = 30 * time.Second

// serveForward hands connections on into the guest: each begins with a line, the port of the pod's loopback address, and is
// answered with a line that is empty or says what failed. It ends when the listener is closed.
func (p *pod) serveForward(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go p.forward(conn)
	}
}

func (p *pod) forward(conn net.Conn) {
	defer conn.Close()
	reader := bufio.NewReader(conn)
	port, err := reader.ReadString('\n')
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), dialLimit)
	defer cancel()
	guest, err := p.guest.Dial(ctx, "tcp", net.JoinHostPort("localhost", strings.TrimSpace(port)))
	if err != nil {
		fmt.Fprintln(conn, strings.ReplaceAll(err.Error(), "\n", " "))
		return
	}
	defer guest.Close()
	if _, err := fmt.Fprintln(conn); err != nil {
		return
	}
	exchange(conn, guest, reader)
}

// exchange copies both ways until both sides have ended. A side that has nothing more to say may still hear the other out: a
// stream of the guest that is closed can still be read, and a unix socket is closed by halves.
func exchange(conn, guest net.Conn, fromConn io.Reader) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = io.Copy(guest, fromConn)
		guest.Close()
	}()
	_, _ = io.Copy(conn, guest)
	if half, ok := conn.(*net.UnixConn); ok {
		_ = half.CloseWrite()
	}
	<-done
}

// PortForward connects in and out with a port in the pod whose run directory it is given, until either ends.
func PortForward(runDir, port string, in io.Reader, out io.Writer) error {
	conn, err := net.Dial("unix", forwardSocket(runDir))
	if err != nil {
		return fmt.Errorf("reach the pod's shim: %w", err)
	}
	defer conn.Close()
	if _, err := fmt.Fprintln(conn, port); err != nil {
		return fmt.Errorf("ask the pod's shim: %w", err)
	}
	reader := bufio.NewReader(conn)
	answer, err := reader.ReadString('\n')
	if err != nil {
		return fmt.Errorf("hear from the pod's shim: %w", err)
	}
	if answer = strings.TrimSpace(answer); answer != "" {
		return errors.New(answer)
	}
	ended := make(chan error, 2)
	go func() {
		_, err := io.Copy(conn, in)
		if half, ok := conn.(*net.UnixConn); ok && err == nil {
			err = half.CloseWrite()
		}
		if err != nil {
			ended <- err
		}
	}()
	go func() {
		_, err := io.Copy(out, reader)
		ended <- err
	}()
	return <-ended
}
