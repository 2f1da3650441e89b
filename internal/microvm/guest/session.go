package guest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/berth-run/berth/internal/microvm/guest/machine"
	"github.com/berth-run/berth/internal/microvm/guestapi"
)

// writeTimeout ends a session whose host reads nothing for so long.
const writeTimeout = 5 * time.Minute

// serve answers the host on one connection after another, until the listener fails.
func (a *Agent) serve(ctx context.Context, listener Listener) error {
	for ctx.Err() == nil {
		conn, err := listener.Accept()
		if err != nil {
			return err
		}
		a.converse(ctx, conn)
		_ = conn.Close()
	}
	return ctx.Err()
}

// converse reads lines until the host begins a session, and again after it: a host that comes back at once may do so unnoticed on the same
// connection.
func (a *Agent) converse(ctx context.Context, conn io.ReadWriteCloser) {
	reader := bufio.NewReader(conn)
	for {
		line, err := reader.ReadSlice('\n')
		if err != nil && !errors.Is(err, bufio.ErrBufferFull) {
			return
		}
		// What a lost session left may come before the line.
		switch {
		case bytes.HasSuffix(line, []byte(guestapi.Ping)):
			if _, err := io.WriteString(conn, guestapi.Pong); err != nil {
				return
			}
		case bytes.HasPrefix(line, []byte(guestapi.Plug)):
			if _, err := io.WriteString(conn, plug(string(line))); err != nil {
				return
			}
		case bytes.HasSuffix(line, []byte(guestapi.Hello)):
			if _, err := io.WriteString(conn, guestapi.Hello); err != nil {
				return
			}
			a.session(ctx, &sessionConn{Writer: conn, reader: reader})
		}
	}
}

// plug plugs the memory of a template in, and answers.
func plug(line string) string {
	var r guestapi.Range
	_, err := fmt.Sscanf(line, guestapi.Plug+" %x %x\n", &r.Start, &r.Bytes)
	if err == nil {
		err = machine.AddMemory([]guestapi.Range{r})
	}
	if err != nil {
		return strings.ReplaceAll(err.Error(), "\n", " ") + "\n"
	}
	return guestapi.Pong
}

// session serves streams until it is lost, and returns when nothing of it is left.
func (a *Agent) session(ctx context.Context, conn io.ReadWriteCloser) {
	config := yamux.DefaultConfig()
	config.EnableKeepAlive = false
	config.ConnectionWriteTimeout = writeTimeout
	// A stream may stay half closed for as long as the other half lives.
	config.StreamCloseTimeout = 0
	config.LogOutput = io.Discard
	session, err := yamux.Server(conn, config)
	if err != nil {
		slog.Error("cannot begin a session", "error", err)
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	var streams sync.WaitGroup
	for {
		stream, err := session.AcceptStream()
		if err != nil {
			break
		}
		streams.Go(func() {
			defer func() { _ = stream.Close() }()
			a.handle(ctx, session, stream)
		})
	}
	cancel()
	_ = session.Close()
	streams.Wait()
}

// Of a yamux frame: the header, its first byte (the version), where the type and the length are, and the type that a body follows.
const (
	frameHeader  = 12
	frameVersion = 0
	frameType    = 1
	frameLength  = 8
	frameData    = 0
)

// sessionConn is the part of a connection that is a session. It ends, besides with the connection, where a line begins in place of a frame: a new host's Hello.
type sessionConn struct {
	io.Writer
	reader *bufio.Reader
	left   int // of the frame
}

func (c *sessionConn) Read(p []byte) (int, error) {
	if c.left == 0 {
		first, err := c.reader.Peek(1)
		if err != nil {
			return 0, err
		}
		if first[0] != frameVersion {
			return 0, io.EOF
		}
		header, err := c.reader.Peek(frameHeader)
		if err != nil {
			return 0, err
		}
		c.left = frameHeader
		if header[frameType] == frameData {
			c.left += int(binary.BigEndian.Uint32(header[frameLength:]))
		}
	}
	n, err := c.reader.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// Close leaves the connection open for what follows the session.
func (c *sessionConn) Close() error { return nil }

// bufferedConn reads first what was read along with the request.
type bufferedConn struct {
	net.Conn
	reader *bufio.Reader
}

func (c *bufferedConn) Read(p []byte) (int, error) { return c.reader.Read(p) }
