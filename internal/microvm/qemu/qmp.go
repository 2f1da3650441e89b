package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/vmm"
)

// monitor is a connection to QEMU's machine protocol (QMP): commands with their answers in between events. Descriptors go along with
// commands, which is why the connection is a unix socket.
type monitor struct {
	conn  *net.UnixConn
	event func(name string, data json.RawMessage)

	mu      sync.Mutex
	next    uint64
	waiting map[uint64]chan answer
	ended   chan struct{} // closed when the connection has ended
	greeted chan struct{}
}

type answer struct {
	value json.RawMessage
	err   error
}

// refusal is QEMU's error to a command.
type refusal struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (r *refusal) Error() string { return r.Desc }

type message struct {
	QMP    json.RawMessage `json:"QMP"`
	ID     uint64          `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *refusal        `json:"error"`
	Event  string          `json:"event"`
	Data   json.RawMessage `json:"data"`
}

// newMonitor reads from the connection until it ends; event is called for each event, one after another.
func newMonitor(conn *net.UnixConn, event func(string, json.RawMessage)) *monitor {
	m := &monitor{conn: conn, event: event, waiting: map[uint64]chan answer{}, ended: make(chan struct{}), greeted: make(chan struct{})}
	go m.read()
	return m
}

func (m *monitor) read() {
	defer close(m.ended)
	decoder := json.NewDecoder(bufio.NewReader(m.conn))
	for {
		var got message
		if err := decoder.Decode(&got); err != nil {
			return // QEMU has ended, or Close was called
		}
		switch {
		case got.QMP != nil:
			close(m.greeted)
		case got.Event != "":
			m.event(got.Event, got.Data)
		default:
			m.mu.Lock()
			waiting := m.waiting[got.ID]
			delete(m.waiting, got.ID)
			m.mu.Unlock()
			if waiting == nil {
				continue // whoever asked has given up
			}
			a := answer{value: got.Return}
			if got.Error != nil {
				a.err = got.Error
			}
			waiting <- a
		}
	}
}

// negotiate waits for QEMU to be there, and begins the session.
func (m *monitor) negotiate(ctx context.Context) error {
	select {
	case <-m.greeted:
	case <-m.ended:
		return vmm.ErrGone
	case <-ctx.Done():
		return ctx.Err()
	}
	return m.execute(ctx, "qmp_capabilities", nil, nil)
}

type arguments map[string]any

// execute sends a command, along with files, and stores what it returns in result unless that is nil.
func (m *monitor) execute(ctx context.Context, command string, args arguments, result any, files ...*os.File) error {
	value, err := m.ask(ctx, command, args, files)
	if err != nil {
		return fmt.Errorf("QEMU's %s: %w", command, err)
	}
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(value, result); err != nil {
		return fmt.Errorf("QEMU's %s: read its answer: %w", command, err)
	}
	return nil
}

func (m *monitor) ask(ctx context.Context, command string, args arguments, files []*os.File) (json.RawMessage, error) {
	waiting := make(chan answer, 1)
	id, err := m.send(command, args, files, waiting)
	if err != nil {
		return nil, err
	}
	select {
	case a := <-waiting:
		return a.value, a.err
	case <-m.ended:
		return nil, vmm.ErrGone
	case <-ctx.Done():
		m.mu.Lock()
		delete(m.waiting, id)
		m.mu.Unlock()
		return nil, ctx.Err()
	}
}

func (m *monitor) send(command string, args arguments, files []*os.File, waiting chan answer) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.next++
	id := m.next
	request := arguments{"execute": command, "id": id}
	if args != nil {
		request["arguments"] = args
	}
	line, err := json.Marshal(request)
	if err != nil {
		return 0, err
	}
	var rights []byte
	if len(files) > 0 {
		fds := make([]int, len(files))
		for i, f := range files {
			fds[i] = int(f.Fd())
		}
		rights = unix.UnixRights(fds...)
	}
	m.waiting[id] = waiting
	line = append(line, '\n')
	if n, _, err := m.conn.WriteMsgUnix(line, rights, nil); err != nil || n < len(line) {
		delete(m.waiting, id)
		return 0, fmt.Errorf("%w: %w", vmm.ErrGone, errors.Join(err, m.conn.Close()))
	}
	return id, nil
}

func (m *monitor) close() error { return m.conn.Close() }
