package node

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"

	"github.com/berth-run/berth/internal/nodeconfig"
)

// forwardLimit is how long the sandbox may take to connect to the port.
const forwardLimit = 10 * time.Second

// forwarder leads `kubectl port-forward` to the loopback address inside a sandbox. containerd dials in the pod's network
// namespace, where the host's kernel knows nothing of the sandbox's own network stack; a command of the sandbox's dials inside.
type forwarder struct {
	streaming.Runtime // Exec and Attach are containerd's and never asked for here
	how               *nodeconfig.PortForward

	start  sync.Once
	server streaming.Server
	err    error
}

// serve starts the streaming server, on a loopback port of its own, when the first request comes.
func (f *forwarder) serve(request *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	f.start.Do(func() {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			f.err = fmt.Errorf("listen for port-forward: %w", err)
			return
		}
		config := streaming.DefaultConfig
		config.Addr = l.Addr().String()
		if f.err = l.Close(); f.err != nil {
			return
		}
		if f.server, f.err = streaming.NewServer(config, f); f.err == nil {
			go f.server.Start(true) //nolint:errcheck // a failure shows at the client, and lasts as long as this process
		}
	})
	if f.err != nil {
		return nil, f.err
	}
	return f.server.GetPortForward(request)
}

// PortForward copies between the stream and a port of the sandbox until the pod's side has said all, or the client is gone.
func (f *forwarder) PortForward(ctx context.Context, sandbox string, port int32, stream io.ReadWriteCloser) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if f.how.SocketFlag == "" {
		return f.standard(ctx, cancel, sandbox, port, stream)
	}
	dir, err := os.MkdirTemp("", "berth-forward-")
	if err != nil {
		return fmt.Errorf("make a directory for port-forward: %w", err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("listen for the sandbox: %w", err)
	}
	defer listener.Close()
	cmd, said := f.run(ctx, sandbox, port, f.how.SocketFlag, socket)
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("ask the sandbox for port %d: %w", port, err)
	}
	ended := make(chan error, 1)
	go func() {
		if err := cmd.Wait(); err != nil {
			ended <- unreachable(port, err, said)
			listener.Close()
		}
	}()
	if err := listener.SetDeadline(time.Now().Add(forwardLimit)); err != nil {
		return err
	}
	conn, err := listener.AcceptUnix()
	if err != nil {
		select {
		case err = <-ended:
		default:
		}
		return err
	}
	defer conn.Close()
	relay(stream, conn, conn, conn.CloseWrite, func() { conn.Close() })
	return nil
}

// standard is PortForward by a command whose standard input and output are the port's bytes.
func (f *forwarder) standard(ctx context.Context, cancel context.CancelFunc, sandbox string, port int32, stream io.ReadWriter) error {
	cmd, said := f.run(ctx, sandbox, port)
	in, err := cmd.StdinPipe()
	if err != nil {
		return fmt.Errorf("make a pipe for port-forward: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return fmt.Errorf("make a pipe for port-forward: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("ask the sandbox for port %d: %w", port, err)
	}
	relay(stream, out, in, in.Close, cancel)
	if err := cmd.Wait(); err != nil && ctx.Err() == nil {
		return unreachable(port, err, said)
	}
	return nil
}

// run prepares the command; what it says on standard error is in the buffer when it has ended.
func (f *forwarder) run(ctx context.Context, sandbox string, port int32, flags ...string) (*exec.Cmd, *bytes.Buffer) {
	args := slices.Concat(f.how.Command[1:], flags, []string{sandbox, strconv.Itoa(int(port))})
	cmd, said := exec.CommandContext(ctx, f.how.Command[0], args...), &bytes.Buffer{}
	cmd.Stderr = said
	return cmd, said
}

func unreachable(port int32, err error, said *bytes.Buffer) error {
	return fmt.Errorf("connect to port %d of the pod: %w: %s", port, err, bytes.TrimSpace(said.Bytes()))
}

// relay copies both ways until the pod has said all. A client that ends its half is passed on by finish; one that is gone
// ends it all, by giveUp.
func relay(client io.ReadWriter, pod io.Reader, to io.Writer, finish func() error, giveUp func()) {
	go func() {
		if _, err := io.Copy(to, client); err != nil {
			giveUp()
		}
		finish() //nolint:errcheck // the pod's side may have ended before
	}()
	io.Copy(client, pod) //nolint:errcheck // either side may end the connection
}
