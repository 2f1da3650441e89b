package guest

import (
	"context"
	"net"
	"sync"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

// maxEvents are kept while no host listens; after that the oldest go.
const maxEvents = 256

// events are kept until a host has read them.
type events struct {
	mu    sync.Mutex
	queue []guestapi.Event
	added chan struct{}
}

func newEvents() *events {
	return &events{added: make(chan struct{}, 1)}
}

func (e *events) add(event guestapi.Event) {
	e.mu.Lock()
	e.queue = append(e.queue, event)
	e.queue = e.queue[max(0, len(e.queue)-maxEvents):]
	e.mu.Unlock()
	e.signal()
}

// unread puts back what could not be delivered.
func (e *events) unread(event guestapi.Event) {
	e.mu.Lock()
	e.queue = append([]guestapi.Event{event}, e.queue...)
	e.mu.Unlock()
	e.signal()
}

func (e *events) signal() {
	select {
	case e.added <- struct{}{}:
	default:
	}
}

// next waits for an event. Several may wait: each event goes to one.
func (e *events) next(ctx context.Context) (guestapi.Event, bool) {
	for ctx.Err() == nil {
		e.mu.Lock()
		if len(e.queue) > 0 {
			event := e.queue[0]
			e.queue = e.queue[1:]
			more := len(e.queue) > 0
			e.mu.Unlock()
			if more {
				e.signal()
			}
			return event, true
		}
		e.mu.Unlock()
		select {
		case <-e.added:
		case <-ctx.Done():
		}
	}
	// Whoever waits besides may have been meant.
	e.signal()
	return guestapi.Event{}, false
}

// oneConn is a listener with one connection: it ends when that does.
type oneConn struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
	addr   net.Addr
}

func newOneConn(conn net.Conn) *oneConn {
	l := &oneConn{conns: make(chan net.Conn, 1), closed: make(chan struct{}), addr: conn.LocalAddr()}
	l.conns <- &closingConn{Conn: conn, closed: func() { _ = l.Close() }}
	return l
}

func (l *oneConn) Accept() (net.Conn, error) {
	select {
	case conn := <-l.conns:
		return conn, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *oneConn) Close() error {
	l.once.Do(func() { close(l.closed) })
	return nil
}

func (l *oneConn) Addr() net.Addr { return l.addr }

type closingConn struct {
	net.Conn
	closed func()
}

func (c *closingConn) Close() error {
	c.closed()
	return c.Conn.Close()
}
