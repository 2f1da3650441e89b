package guest

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

func frame(kind byte, length int, body string) string {
	header := make([]byte, frameHeader)
	header[frameType] = kind
	binary.BigEndian.PutUint32(header[frameLength:], uint32(length))
	return string(header) + body
}

// TestSessionEndsAtHello: a new host's Hello ends the session where a frame should begin, and nowhere else.
func TestSessionEndsAtHello(t *testing.T) {
	ping := frame(2, 7, "")
	data := frame(frameData, len(guestapi.Hello), guestapi.Hello)
	for name, test := range map[string]struct{ sent, session, rest string }{
		"at once":         {guestapi.Hello, "", guestapi.Hello},
		"after frames":    {ping + data + ping + guestapi.Hello, ping + data + ping, guestapi.Hello},
		"in a frame":      {data, data, ""},
		"connection ends": {ping, ping, ""},
	} {
		t.Run(name, func(t *testing.T) {
			reader := bufio.NewReader(iotest.OneByteReader(strings.NewReader(test.sent)))
			session, err := io.ReadAll(&sessionConn{reader: reader})
			if err != nil {
				t.Fatal(err)
			}
			rest, err := io.ReadAll(reader)
			if err != nil {
				t.Fatal(err)
			}
			if string(session) != test.session || string(rest) != test.rest {
				t.Errorf("session %q, rest %q", session, rest)
			}
		})
	}
}

func TestEventsWaitForTheHost(t *testing.T) {
	e := newEvents()
	for _, id := range []string{"a", "b"} {
		e.add(guestapi.Event{OOM: id})
	}
	first, ok := e.next(t.Context())
	if !ok || first.OOM != "a" {
		t.Fatalf("first %+v", first)
	}
	e.unread(first)
	for _, want := range []string{"a", "b"} {
		if got, ok := e.next(t.Context()); !ok || got.OOM != want {
			t.Errorf("%+v, want %s", got, want)
		}
	}
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	if got, ok := e.next(gone); ok {
		t.Errorf("an event for nobody: %+v", got)
	}
	for range maxEvents + 5 {
		e.add(guestapi.Event{OOM: "x"})
	}
	if len(e.queue) != maxEvents {
		t.Errorf("%d events are kept", len(e.queue))
	}
}
