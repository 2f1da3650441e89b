package shim

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/guestapi"
	"github.com/berth-run/berth/internal/microvm/podsocket"
)

// askLimit bounds what the guest is asked for the pod's kubelet, such as to connect to a port.
const askLimit = 30 * time.Second

// servePod answers the pod's kubelet (package podsocket). It ends when the listener is closed.
func (p *pod) servePod(listener net.Listener) {
	for {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		go p.answer(conn)
	}
}

func (p *pod) answer(conn net.Conn) {
	defer conn.Close()
	reader := bufio.NewReader(conn)
	request, err := reader.ReadString('\n')
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), askLimit)
	defer cancel()
	request = strings.TrimSpace(request)
	if request == podsocket.Watch {
		if podsocket.Answer(conn, nil) == nil {
			p.health.serve(conn)
		}
		return
	}
	if err := p.health.err(); err != nil {
		_ = podsocket.Answer(conn, err)
		return
	}
	if request == podsocket.Usage {
		usage, err := p.diskUsage(ctx)
		if podsocket.Answer(conn, err) == nil {
			_ = json.NewEncoder(conn).Encode(usage)
		}
		return
	}
	if volume, ok := strings.CutPrefix(request, podsocket.Mount+" "); ok {
		_ = podsocket.Answer(conn, p.sync.share(ctx, volume))
		return
	}
	guest, err := p.guest.Dial(ctx, "tcp", net.JoinHostPort("localhost", request))
	if podsocket.Answer(conn, err) == nil {
		exchange(conn, guest, reader)
	}
	if err == nil {
		guest.Close()
	}
}

// diskUsage is what the pod uses of its disk. When that grows, so does the disk's file, or the memory of a machine that works.
func (p *pod) diskUsage(ctx context.Context) (*guestapi.Usage, error) {
	var disk unix.Stat_t
	if err := unix.Fstat(int(p.ephemeral.Fd()), &disk); err != nil {
		return nil, fmt.Errorf("look at the pod's disk: %w", err)
	}
	return p.usage.Get(uint64(disk.Blocks), func() (*guestapi.Usage, error) { return p.guest.Usage(ctx) })
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
	conn, err := podsocket.Dial(context.Background(), runDir, port)
	if err != nil {
		return err
	}
	defer conn.Close()
	ended := make(chan error, 2)
	go func() {
		_, err := io.Copy(conn, in)
		if err == nil {
			err = conn.CloseWrite()
		}
		if err != nil {
			ended <- err
		}
	}()
	go func() {
		_, err := io.Copy(out, conn)
		ended <- err
	}()
	return <-ended
}
