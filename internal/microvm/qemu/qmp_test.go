package qemu

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/vmm"
)

// server is the other end of a monitor's connection.
type server struct {
	conn  net.Conn
	lines *bufio.Reader
}

func newServer(t *testing.T, event func(string, json.RawMessage)) (*monitor, *server) {
	t.Helper()
	near, far, err := socketPair()
	if err != nil {
		t.Fatal(err)
	}
	conn, err := net.FileConn(far)
	far.Close()
	if err != nil {
		t.Fatal(err)
	}
	m := newMonitor(near, event)
	t.Cleanup(func() { conn.Close(); m.close(); <-m.ended })
	return m, &server{conn, bufio.NewReader(conn)}
}

// next reads a command and returns its id.
func (s *server) next(t *testing.T) uint64 {
	t.Helper()
	line, err := s.lines.ReadBytes('\n')
	if err != nil {
		t.Error(err)
		return 0
	}
	var got struct{ ID uint64 }
	if err := json.Unmarshal(line, &got); err != nil {
		t.Error(err)
	}
	return got.ID
}

func TestMonitorMatchesAnswers(t *testing.T) {
	var events []string
	m, s := newServer(t, func(name string, _ json.RawMessage) { events = append(events, name) })
	fmt.Fprintln(s.conn, `{"QMP": {"version": {}, "capabilities": []}}`)
	<-m.greeted
	go func() {
		// Two commands, answered in the wrong order and with an event and an answer that nobody waits for in between.
		first, second := s.next(t), s.next(t)
		fmt.Fprintf(s.conn, `{"event": "STOP", "data": {}}{"return": {}, "id": 999}{"return": {"n": 2}, "id": %d}`+"\n", second)
		fmt.Fprintf(s.conn, `{"error": {"class": "GenericError", "desc": "no such thing"}, "id": %d}`+"\n", first)
	}()
	waiting := make(chan answer, 1)
	if _, err := m.send("first", nil, nil, waiting); err != nil {
		t.Fatal(err)
	}
	var got struct{ N int }
	if err := m.execute(t.Context(), "second", nil, &got); err != nil || got.N != 2 {
		t.Errorf("second: %+v, %v", got, err)
	}
	var refused *refusal
	if a := <-waiting; !errors.As(a.err, &refused) || refused.Class != "GenericError" {
		t.Errorf("first: %v", a.err)
	}
	if strings.Join(events, " ") != "STOP" {
		t.Errorf("events: %v", events)
	}
}

func TestMonitorEnds(t *testing.T) {
	m, s := newServer(t, func(string, json.RawMessage) {})
	go func() {
		s.next(t)
		s.conn.Close()
	}()
	if err := m.execute(t.Context(), "quit", nil, nil); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("a command whose answer never comes: %v", err)
	}
	if err := m.execute(t.Context(), "cont", nil, nil); !errors.Is(err, vmm.ErrGone) {
		t.Errorf("a command that cannot be sent: %v", err)
	}
}

func TestMonitorGivesUp(t *testing.T) {
	m, s := newServer(t, func(string, json.RawMessage) {})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		s.next(t)
		cancel()
	}()
	if err := m.execute(ctx, "slow", nil, nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
}

func TestMonitorSendsFiles(t *testing.T) {
	m, s := newServer(t, func(string, json.RawMessage) {})
	file, err := os.Open("/dev/null")
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	waiting := make(chan answer, 1)
	if _, err := m.send("add-fd", nil, []*os.File{file}, waiting); err != nil {
		t.Fatal(err)
	}
	conn, ok := s.conn.(*net.UnixConn)
	if !ok {
		t.Fatal("not a unix connection")
	}
	buffer, control := make([]byte, 256), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := conn.ReadMsgUnix(buffer, control)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := unix.ParseSocketControlMessage(control[:n])
	if err != nil || len(messages) != 1 {
		t.Fatalf("%d control messages, %v", len(messages), err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		t.Fatalf("files %v, %v", fds, err)
	}
	unix.Close(fds[0])
}
