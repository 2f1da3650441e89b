package shim

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	ttrpcevents "github.com/containerd/containerd/api/services/ttrpc/events/v1"
	"github.com/containerd/containerd/api/types"
	"github.com/containerd/ttrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// socketFD is containerd-shim-start's: the shim's listening socket.
	socketFD = 3
	// publishLimit bounds one attempt to tell containerd something; it is told again until publishTries are used up.
	publishLimit = 5 * time.Second
	publishTries = 12
	// gcPercent keeps the shim small: it is idle nearly always.
	gcPercent = 25
)

func logger() *slog.Logger { return slog.Default() }

// Serve answers containerd on the socket that containerd-shim-start made, until the pod is gone.
func Serve(namespace, ttrpcAddress string, o Options) error {
	debug.SetGCPercent(gcPercent)
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	// A terminal's or a service manager's signals are not for the shim: containerd ends it (Shutdown), or nobody.
	signal.Ignore(syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGPIPE)
	if log, err := openLog(); err == nil {
		slog.SetDefault(slog.New(slog.NewTextHandler(log, nil)))
	}
	file := os.NewFile(socketFD, "shim")
	listener, err := net.FileListener(file)
	if err != nil {
		return fmt.Errorf("take over the shim's socket: %w", err)
	}
	file.Close()
	server, err := ttrpc.NewServer()
	if err != nil {
		return fmt.Errorf("make the shim's server: %w", err)
	}
	to := newEvents(namespace, ttrpcAddress)
	service := newService(o, to, stop)
	taskapi.RegisterTTRPCTaskService(server, service)
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(ctx, listener) }()
	select {
	case err = <-failed:
	case <-ctx.Done():
		err = nil
	}
	if p, perr := service.machine(); perr == nil {
		p.close()
	}
	to.flush()
	limit, cancel := context.WithTimeout(context.Background(), publishLimit)
	defer cancel()
	err = errors.Join(err, server.Shutdown(limit))
	if unixAddress, ok := listener.Addr().(*net.UnixAddr); ok {
		_ = os.Remove(unixAddress.Name)
	}
	return err
}

// openLog opens the pipe in the working directory that containerd reads a shim's log from; opened for both, it outlives containerd.
func openLog() (*os.File, error) { return os.OpenFile("log", os.O_RDWR|unix.O_NONBLOCK, 0) }

// events tells containerd what happened, in order.
type events struct {
	namespace, address string
	queue              chan *ttrpcevents.ForwardRequest
	done               chan struct{}
	once               sync.Once
}

func newEvents(namespace, address string) *events {
	e := &events{namespace: namespace, address: address, queue: make(chan *ttrpcevents.ForwardRequest, 256), done: make(chan struct{})}
	go e.run()
	return e
}

func (e *events) publish(topic string, event proto.Message) {
	packed, err := anypb.New(event)
	if err != nil {
		logger().Error("encode an event", "topic", topic, "error", err)
		return
	}
	packed.TypeUrl = string(event.ProtoReflect().Descriptor().FullName()) // without a host, as containerd's own
	e.queue <- &ttrpcevents.ForwardRequest{Envelope: &types.Envelope{Timestamp: timestamppb.Now(), Namespace: e.namespace, Topic: topic, Event: packed}}
}

// flush sends what is left and ends.
func (e *events) flush() {
	e.once.Do(func() { close(e.queue) })
	<-e.done
}

func (e *events) run() {
	defer close(e.done)
	var client *ttrpc.Client
	for message := range e.queue {
		for try := 1; ; try++ {
			var err error
			if client, err = e.send(client, message); err == nil {
				break
			}
			if try == publishTries {
				logger().Error("tell containerd of an event", "error", err)
				break
			}
			time.Sleep(time.Second)
		}
	}
	if client != nil {
		client.Close()
	}
}

// send sends over the connection, or over a new one; nil is returned for one that failed.
func (e *events) send(client *ttrpc.Client, r *ttrpcevents.ForwardRequest) (*ttrpc.Client, error) {
	if client == nil {
		conn, err := net.Dial("unix", e.address)
		if err != nil {
			return nil, err
		}
		client = ttrpc.NewClient(conn)
	}
	ctx, cancel := context.WithTimeout(context.Background(), publishLimit)
	defer cancel()
	if _, err := ttrpcevents.NewTTRPCEventsClient(client).Forward(ctx, r); err != nil {
		client.Close()
		return nil, err
	}
	return client, nil
}

// Info tells containerd, on out, what runtime this is.
func Info(out io.Writer) error {
	data, err := proto.Marshal(&types.RuntimeInfo{Name: "io.containerd.berth.v1"})
	if err != nil {
		return err
	}
	_, err = out.Write(data)
	return err
}
