package node

import (
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/nodeconfig"
)

// client is a stream whose far end the test holds.
func client(t *testing.T) (stream, far net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if far, err = net.Dial("tcp", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if stream, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { stream.Close(); far.Close() })
	return stream, far
}

// TestPortForwardByStandardStreams: the command gets the sandbox and the port, its streams are the connection, and what the pod
// says after the client has said all arrives.
func TestPortForwardByStandardStreams(t *testing.T) {
	f := &forwarder{how: &nodeconfig.PortForward{Command: []string{"sh", "-c", `echo "$1 $2"; cat; echo after`, "shim"}}}
	stream, far := client(t)
	ended := make(chan error, 1)
	go func() {
		err := f.PortForward(t.Context(), "box", 80, stream)
		stream.Close()
		ended <- err
	}()
	if _, err := io.WriteString(far, "hello\n"); err != nil {
		t.Fatal(err)
	}
	if err := far.(*net.TCPConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(far); err != nil || string(got) != "box 80\nhello\nafter\n" {
		t.Errorf("the client got %q, %v", got, err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

// TestPortForwardFails: what the command says is what the user sees.
func TestPortForwardFails(t *testing.T) {
	for name, how := range map[string]*nodeconfig.PortForward{
		"by standard streams": {Command: []string{"sh", "-c", "echo nobody listens there >&2; exit 1", "shim"}},
		"by a socket":         {Command: []string{"sh", "-c", "echo nobody listens there >&2; exit 1", "shim"}, SocketFlag: "--stream"},
	} {
		t.Run(name, func(t *testing.T) {
			stream, _ := client(t)
			err := (&forwarder{how: how}).PortForward(t.Context(), "box", 80, stream)
			if err == nil || !strings.Contains(err.Error(), "connect to port 80 of the pod: exit status 1: nobody listens there") {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestPortForwardClientGone: a client that breaks off ends the command, though the pod would go on for ever.
func TestPortForwardClientGone(t *testing.T) {
	f := &forwarder{how: &nodeconfig.PortForward{Command: []string{"sh", "-c", "echo ready; exec sleep 1000", "shim"}}}
	stream, far := client(t)
	ended := make(chan error, 1)
	go func() { ended <- f.PortForward(t.Context(), "box", 80, stream) }()
	if _, err := far.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	if err := far.(*net.TCPConn).SetLinger(0); err != nil { // closes by a reset
		t.Fatal(err)
	}
	far.Close()
	select {
	case err := <-ended:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(30 * time.Second):
		t.Fatal("the command goes on")
	}
}
