package guest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/ttrpc"
	"github.com/hashicorp/yamux"

	"github.com/berth-run/berth/internal/microvm/guest/files"
	"github.com/berth-run/berth/internal/microvm/guest/machine"
	"github.com/berth-run/berth/internal/microvm/guestapi"
)

// handle serves one stream.
func (a *Agent) handle(ctx context.Context, session *yamux.Session, stream net.Conn) {
	conn := &bufferedConn{Conn: stream, reader: bufio.NewReaderSize(stream, 4096)}
	line, err := conn.reader.ReadBytes('\n')
	if err != nil {
		return
	}
	var request guestapi.Request
	if err := json.Unmarshal(line, &request); err != nil {
		_ = respond(conn, guestapi.Response{}, fmt.Errorf("read request: %w", err))
		return
	}
	// A container that has just ended is asked for its use now and then.
	if err := a.perform(ctx, session, conn, &request); err != nil && ctx.Err() == nil && !errors.Is(err, errdefs.ErrFailedPrecondition) {
		slog.Warn("request failed", "op", request.Op, "error", err)
	}
}

func respond(conn io.Writer, response guestapi.Response, failed error) error {
	if failed != nil {
		response.Error = failed.Error()
	}
	if err := json.NewEncoder(conn).Encode(response); err != nil {
		return err
	}
	return failed
}

var errIncomplete = errors.New("the field of the request's op is missing")

// perform does what the request asks for, and answers.
func (a *Agent) perform(ctx context.Context, session *yamux.Session, conn *bufferedConn, r *guestapi.Request) error {
	switch {
	case r.Op == guestapi.OpTasks:
		return a.serveTasks(ctx, conn)
	case r.Op == guestapi.OpEvents:
		return a.serveEvents(ctx, conn)
	case r.Op == guestapi.OpStdio && r.Stdio != nil:
		return a.stdio(session, conn, r.Stdio)
	case r.Op == guestapi.OpDial && r.Dial != nil:
		return dial(ctx, conn, r.Dial)
	case r.Op == guestapi.OpGet && r.Get != nil:
		return get(conn, r.Get)
	case r.Op == guestapi.OpUsage:
		usage, err := machine.Usage()
		return respond(conn, guestapi.Response{Usage: usage}, err)
	case r.Op == guestapi.OpMeasure && r.Measure != nil:
		read, err := a.tasks.Measure(r.Measure)
		return respond(conn, guestapi.Response{Files: read}, err)
	case r.Op == guestapi.OpClock && r.Clock != nil:
		was, err := machine.CorrectClock(*r.Clock)
		return respond(conn, guestapi.Response{UnixNano: was.UnixNano()}, err)
	}
	return respond(conn, guestapi.Response{}, a.change(ctx, conn, r))
}

// change performs what is answered by an error or none.
func (a *Agent) change(ctx context.Context, conn *bufferedConn, r *guestapi.Request) error {
	switch {
	case r.Op == guestapi.OpConfigure && r.Configure != nil:
		return a.configure(ctx, r.Configure)
	case r.Op == guestapi.OpMemory:
		return machine.AddMemory(r.Memory)
	case r.Op == guestapi.OpMount && r.Mount != nil:
		return a.mounter.Mount(ctx, r.Mount)
	case r.Op == guestapi.OpRelease && r.Release != nil:
		return a.disks.Release(r.Release.LUN)
	case r.Op == guestapi.OpPut && r.Put != nil:
		return files.Put(guestapi.FilesDir, r.Put.Target, conn, r.Put.Atomic)
	}
	return fmt.Errorf("op %q: %w, or this guest does not know it", r.Op, errIncomplete)
}

func (a *Agent) configure(ctx context.Context, wanted *guestapi.Configure) error {
	if err := machine.Configure(ctx, a.disks, wanted); err != nil {
		return err
	}
	a.seal()
	if machine.Emulated() {
		go func() {
			if err := a.tasks.Warm(context.WithoutCancel(ctx)); err != nil {
				slog.Warn("the first container will start slowly", "error", err)
			}
		}()
	}
	return nil
}

// serveTasks serves the task service on the stream, and nothing else after it.
func (a *Agent) serveTasks(ctx context.Context, conn *bufferedConn) error {
	if err := respond(conn, guestapi.Response{}, nil); err != nil {
		return err
	}
	server, err := ttrpc.NewServer()
	if err != nil {
		return err
	}
	api.RegisterTTRPCTaskService(server, a.tasks)
	listener := newOneConn(conn)
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() })
	defer stop()
	err = server.Serve(ctx, listener)
	_ = server.Close()
	if errors.Is(err, net.ErrClosed) || errors.Is(err, ttrpc.ErrServerClosed) {
		return nil
	}
	return err
}

// serveEvents writes events until the host closes the stream. One that cannot be written is kept for the next stream.
func (a *Agent) serveEvents(ctx context.Context, conn *bufferedConn) error {
	if err := respond(conn, guestapi.Response{}, nil); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		_, _ = io.Copy(io.Discard, conn)
		cancel()
	}()
	encoder := json.NewEncoder(conn)
	for {
		event, ok := a.events.next(ctx)
		if !ok {
			return nil
		}
		if err := encoder.Encode(event); err != nil {
			a.events.unread(event)
			return err
		}
	}
}

func (a *Agent) stdio(session *yamux.Session, conn *bufferedConn, which *guestapi.Stdio) error {
	stream, err := a.tasks.Stream(which)
	if err := respond(conn, guestapi.Response{}, err); err != nil {
		return err
	}
	if which.FD == 0 {
		return stream.CopyInput(conn, session.IsClosed)
	}
	return stream.CopyOutput(conn)
}

// dial joins the stream with a connection made in the guest. Each side may close its half first.
func dial(ctx context.Context, conn *bufferedConn, to *guestapi.Dial) error {
	var dialer net.Dialer
	target, err := dialer.DialContext(ctx, to.Network, to.Address)
	if err := respond(conn, guestapi.Response{}, err); err != nil {
		return err
	}
	defer func() { _ = target.Close() }()
	stop := context.AfterFunc(ctx, func() { _ = target.Close() })
	defer stop()
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		_, err := io.Copy(target, conn)
		if half, ok := target.(interface{ CloseWrite() error }); ok && err == nil {
			_ = half.CloseWrite()
		} else {
			_ = target.Close()
		}
	}()
	_, err = io.Copy(conn, target)
	_ = conn.Close()
	if err != nil {
		_ = target.Close()
	}
	<-sent
	return nil
}

func get(conn *bufferedConn, wanted *guestapi.Get) error {
	file, size, err := files.Get(wanted.Path, wanted.Limit, guestapi.FilesDir, guestapi.MountsDir)
	if err != nil {
		return respond(conn, guestapi.Response{}, err)
	}
	defer func() { _ = file.Close() }()
	if err := respond(conn, guestapi.Response{Size: size}, nil); err != nil {
		return err
	}
	_, err = io.CopyN(conn, file, size)
	return err
}
