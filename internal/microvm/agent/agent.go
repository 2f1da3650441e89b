// Package agent is the host's end of a microVM's agent port: a session with process 1 of the guest, as package guestapi says. The
// shim uses it; it knows nothing of containerd but the task service's messages.
package agent

import (
	"archive/tar"
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

const (
	// replyLimit bounds the line of JSON that answers a request.
	replyLimit = 64 << 10
	// connectPause is between a session that did not begin and the next try.
	connectPause = 5 * time.Millisecond
)

// Client is a session with a guest. Its methods may be called from many goroutines; they fail once the guest or the connection is
// gone, and see Done.
type Client struct {
	session *yamux.Session
	rpc     *ttrpc.Client
	tasks   taskapi.TTRPCTaskService
}

// Connect opens a session at the port that dial connects to, as vmm.Machine.Dial does. The guest may need a moment to answer; ctx bounds it.
func Connect(ctx context.Context, dial func(context.Context) (net.Conn, error)) (*Client, error) {
	for {
		conn, err := dial(ctx)
		if err != nil {
			return nil, fmt.Errorf("connect to the guest's port: %w", err)
		}
		c, err := open(ctx, conn)
		if err == nil {
			return c, nil
		}
		conn.Close()
		// The guest may have learned just now that it was restored, and dropped the connection. If it is the machine that has ended, dial says so.
		if !errors.Is(err, unix.ECONNRESET) && !errors.Is(err, unix.EPIPE) && !errors.Is(err, io.EOF) {
			return nil, fmt.Errorf("open a session with the guest: %w", err)
		}
		select {
		case <-ctx.Done():
			return nil, fmt.Errorf("open a session with the guest: %w", err)
		case <-time.After(connectPause):
		}
	}
}

func open(ctx context.Context, conn net.Conn) (*Client, error) {
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := greet(conn); err != nil {
		return nil, errors.Join(err, ctx.Err())
	}
	config := yamux.DefaultConfig()
	config.EnableKeepAlive, config.LogOutput = false, io.Discard
	config.ConnectionWriteTimeout = time.Minute
	config.StreamOpenTimeout = 0  // a machine that stands still, because the host's disk is full, answers when it goes on
	config.StreamCloseTimeout = 0 // a stream of which only one half is closed, such as a stdin, may live as long as it likes
	session, err := yamux.Client(conn, config)
	if err != nil {
		return nil, err
	}
	c := &Client{session: session}
	stream, _, err := c.request(ctx, guestapi.Request{Op: guestapi.OpTasks})
	if err != nil {
		session.Close()
		return nil, err
	}
	c.rpc = ttrpc.NewClient(stream)
	c.tasks = taskapi.NewTTRPCTaskClient(c.rpc)
	return c, nil
}

// greet says Hello and waits for the guest to say it too. What comes before is left over from an earlier session.
func greet(conn net.Conn) error {
	if _, err := io.WriteString(conn, guestapi.Hello); err != nil {
		return err
	}
	var window []byte
	one := make([]byte, 1) // byte by byte: what follows is the session's
	for {
		if _, err := io.ReadFull(conn, one); err != nil {
			return fmt.Errorf("the guest does not answer: %w", err)
		}
		if window = append(window, one[0]); len(window) > len(guestapi.Hello) {
			window = window[1:]
		}
		if string(window) == guestapi.Hello {
			return nil
		}
	}
}

// Tasks is the guest's task service.
func (c *Client) Tasks() taskapi.TTRPCTaskService { return c.tasks }

// Done is closed when the session has ended.
func (c *Client) Done() <-chan struct{} { return c.session.CloseChan() }

// Close ends the session. The guest and its containers go on.
func (c *Client) Close() error { return errors.Join(c.rpc.Close(), c.session.Close()) }

// stream is a stream of the session behind the buffer that its first line was read through.
type stream struct {
	net.Conn
	r *bufio.Reader
}

func (s *stream) Read(p []byte) (int, error) { return s.r.Read(p) }

// request opens a stream and makes a request; the stream carries on where the answer ends.
func (c *Client) request(ctx context.Context, r guestapi.Request) (*stream, guestapi.Response, error) {
	conn, err := c.send(r)
	if err != nil {
		return nil, guestapi.Response{}, err
	}
	response, err := conn.answer(ctx, r.Op)
	if err != nil {
		conn.Close()
		return nil, response, err
	}
	return conn, response, nil
}

func (c *Client) send(r guestapi.Request) (*stream, error) {
	conn, err := c.session.Open()
	if err != nil {
		return nil, fmt.Errorf("%s: the guest is gone: %w", r.Op, err)
	}
	line, err := json.Marshal(r)
	if err == nil {
		_, err = conn.Write(append(line, '\n'))
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("%s: ask the guest: %w", r.Op, err)
	}
	return &stream{Conn: conn, r: bufio.NewReader(conn)}, nil
}

func (s *stream) answer(ctx context.Context, op guestapi.Op) (guestapi.Response, error) {
	var response guestapi.Response
	stop := context.AfterFunc(ctx, func() { _ = s.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	line, err := readLine(s.r)
	if err != nil {
		return response, fmt.Errorf("%s: the guest does not answer: %w", op, errors.Join(err, ctx.Err()))
	}
	if err := json.Unmarshal(line, &response); err != nil {
		return response, fmt.Errorf("%s: the guest's answer is not valid: %w", op, err)
	}
	if response.Error != "" {
		return response, fmt.Errorf("%s: %w", op, &GuestError{response.Error})
	}
	return response, nil
}

// GuestError is what the guest says went wrong in it.
type GuestError struct{ Message string }

func (e *GuestError) Error() string { return e.Message }

// readLine reads one line of at most replyLimit bytes: the guest is not to be trusted with the host's memory.
func readLine(r *bufio.Reader) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		if line = append(line, part...); len(line) > replyLimit {
			return nil, errors.New("the line is too long")
		}
		if !errors.Is(err, bufio.ErrBufferFull) {
			return line, err
		}
	}
}

// do makes a request that has an answer and nothing else.
func (c *Client) do(ctx context.Context, r guestapi.Request) error {
	s, _, err := c.request(ctx, r)
	if err != nil {
		return err
	}
	return s.Close()
}

// Configure makes the guest this pod's machine.
func (c *Client) Configure(ctx context.Context, r guestapi.Configure) error {
	return c.do(ctx, guestapi.Request{Op: guestapi.OpConfigure, Configure: &r})
}

// PlugMemory plugs memory in.
func (c *Client) PlugMemory(ctx context.Context, ranges []guestapi.Range) error {
	return c.do(ctx, guestapi.Request{Op: guestapi.OpMemory, Memory: ranges})
}

// Mount makes a file system or directory.
func (c *Client) Mount(ctx context.Context, m guestapi.Mount) error {
	return c.do(ctx, guestapi.Request{Op: guestapi.OpMount, Mount: &m})
}

// Release tells the guest to let go of a disk.
func (c *Client) Release(ctx context.Context, lun int) error {
	return c.do(ctx, guestapi.Request{Op: guestapi.OpRelease, Release: &guestapi.Release{LUN: lun}})
}

// Usage tells what the pod uses of its disk.
func (c *Client) Usage(ctx context.Context) (*guestapi.Usage, error) {
	s, response, err := c.request(ctx, guestapi.Request{Op: guestapi.OpUsage})
	if err != nil {
		return nil, err
	}
	if response.Usage == nil {
		s.Close()
		return nil, errors.New("usage: the guest does not tell it")
	}
	return response.Usage, s.Close()
}

// Measure reads files of a running container's control group.
func (c *Client) Measure(ctx context.Context, m guestapi.Measure) ([]string, error) {
	s, response, err := c.request(ctx, guestapi.Request{Op: guestapi.OpMeasure, Measure: &m})
	if err != nil {
		return nil, err
	}
	if len(response.Files) != len(m.Files) {
		s.Close()
		return nil, fmt.Errorf("measure: the guest sends %d files, not %d", len(response.Files), len(m.Files))
	}
	return response.Files, s.Close()
}

// Put writes what fill archives.
func (c *Client) Put(ctx context.Context, p guestapi.Put, fill func(*tar.Writer) error) error {
	s, err := c.send(guestapi.Request{Op: guestapi.OpPut, Put: &p})
	if err != nil {
		return err
	}
	defer s.Close()
	buffered := bufio.NewWriter(s)
	archive := tar.NewWriter(buffered)
	if err := errors.Join(fill(archive), archive.Close(), buffered.Flush()); err != nil {
		return fmt.Errorf("put %s into the guest: %w", p.Target, err)
	}
	// An archive says itself where it ends.
	_, err = s.answer(ctx, guestapi.OpPut)
	return err
}

// Get reads a file.
func (c *Client) Get(ctx context.Context, g guestapi.Get) ([]byte, error) {
	s, response, err := c.request(ctx, guestapi.Request{Op: guestapi.OpGet, Get: &g})
	if err != nil {
		return nil, err
	}
	defer s.Close()
	if g.Limit > 0 && response.Size > g.Limit {
		return nil, fmt.Errorf("get %s: the guest sends %d bytes, more than %d", g.Path, response.Size, g.Limit)
	}
	data := make([]byte, response.Size)
	if _, err := io.ReadFull(s, data); err != nil {
		return nil, fmt.Errorf("get %s: %w", g.Path, err)
	}
	return data, nil
}

// Stdio is one stream of a process. Closing it closes the process's stdin, or leaves its output unread.
func (c *Client) Stdio(ctx context.Context, r guestapi.Stdio) (net.Conn, error) {
	s, _, err := c.request(ctx, guestapi.Request{Op: guestapi.OpStdio, Stdio: &r})
	return asConn(s, err)
}

// Dial connects inside the guest.
func (c *Client) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	s, _, err := c.request(ctx, guestapi.Request{Op: guestapi.OpDial, Dial: &guestapi.Dial{Network: network, Address: address}})
	return asConn(s, err)
}

func asConn(s *stream, err error) (net.Conn, error) {
	if err != nil {
		return nil, err
	}
	return s, nil
}

// Events calls handle for what happens in the guest, until the session or ctx ends.
func (c *Client) Events(ctx context.Context, handle func(guestapi.Event)) error {
	s, _, err := c.request(ctx, guestapi.Request{Op: guestapi.OpEvents})
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { s.Close() })()
	for {
		line, err := readLine(s.r)
		if err != nil {
			return fmt.Errorf("hear of the guest's events: %w", err)
		}
		var e guestapi.Event
		if err := json.Unmarshal(line, &e); err != nil {
			return fmt.Errorf("an event of the guest is not valid: %w", err)
		}
		handle(e)
	}
}
