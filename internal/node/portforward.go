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
	"strconv"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
)

// forwardLimit is how long the sandbox may take to connect to the port.
const forwardLimit = 10 * time.Second

// forwarder leads `kubectl port-forward` to the loopback address inside a gVisor sandbox. containerd dials in the pod's
// network namespace, where the host's kernel knows nothing of the sandbox's own network stack; runsc can dial inside.
type forwarder struct {
	streaming.Runtime // Exec and Attach are containerd's and never asked for here
	command           []string

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

// PortForward copies between the stream and a port of the sandbox until one of them ends.
func (f *forwarder) PortForward(ctx context.Context, sandbox string, port int32, stream io.ReadWriteCloser) error {
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
	args := append(f.command[1:len(f.command):len(f.command)], "port-forward", "--stream", socket, sandbox, strconv.Itoa(int(port)))
	cmd := exec.CommandContext(ctx, f.command[0], args...)
	var said bytes.Buffer
	cmd.Stderr = &said
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("ask the sandbox for port %d: %w", port, err)
	}
	ended := make(chan error, 1)
	go func() {
		if err := cmd.Wait(); err != nil {
			listener.Close()
			ended <- fmt.Errorf("connect to port %d of the pod: %w: %s", port, err, bytes.TrimSpace(said.Bytes()))
		}
	}()
	if err := listener.SetDeadline(time.Now().Add(forwardLimit)); err != nil {
		return err
	}
	conn, err := listener.Accept()
	if err != nil {
		select {
		case err = <-ended:
		default:
		}
		return err
	}
	defer conn.Close()
	copied := make(chan struct{}, 2)
	pipe := func(to io.Writer, from io.Reader) {
		io.Copy(to, from) //nolint:errcheck // either side may end the connection
		copied <- struct{}{}
	}
	go pipe(conn, stream)
	go pipe(stream, conn)
	<-copied
	return nil
}
