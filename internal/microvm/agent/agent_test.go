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
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/hashicorp/yamux"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

// guest speaks the guest's side of the port, answering each request with what answer writes.
func guest(t *testing.T, before string, answer func(r guestapi.Request, in *bufio.Reader, out net.Conn)) *Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	listener, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		hello := make([]byte, len(guestapi.Hello))
		if _, err := io.ReadFull(conn, hello); err != nil || string(hello) != guestapi.Hello {
			conn.Close()
			return
		}
		fmt.Fprint(conn, before+guestapi.Hello)
		config := yamux.DefaultConfig()
		config.LogOutput = io.Discard
		session, err := yamux.Server(conn, config)
		if err != nil {
			return
		}
		for {
			stream, err := session.Accept()
			if err != nil {
				return
			}
			go func() {
				in := bufio.NewReader(stream)
				line, err := in.ReadBytes('\n')
				var r guestapi.Request
				if err != nil || json.Unmarshal(line, &r) != nil {
					return
				}
				if r.Op == guestapi.OpTasks {
					fmt.Fprintln(stream, `{}`)
					return
				}
				answer(r, in, stream)
			}()
		}
	}()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	c, err := Connect(ctx, func(ctx context.Context) (net.Conn, error) {
		var dialer net.Dialer
		return dialer.DialContext(ctx, "unix", socket)
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestConnect finds the session behind what an earlier one left on the port.
func TestConnect(t *testing.T) {
	c := guest(t, "BERTH \x00rest of a frame", func(r guestapi.Request, _ *bufio.Reader, out net.Conn) {
		fmt.Fprintf(out, "{\"error\":\"%d\"}\n", r.Release.LUN)
	})
	err := c.Release(t.Context(), 3)
	var said *GuestError
	if !errors.As(err, &said) || said.Message != "3" {
		t.Errorf("error is %v", err)
	}
}

func TestPutAndGet(t *testing.T) {
	files := make(chan string, 1)
	c := guest(t, "", func(r guestapi.Request, in *bufio.Reader, out net.Conn) {
		switch r.Op {
		case guestapi.OpPut:
			archive := tar.NewReader(in)
			header, err := archive.Next()
			if err != nil {
				fmt.Fprintf(out, "{\"error\":%q}\n", err)
				return
			}
			data, err := io.ReadAll(archive)
			if err != nil {
				fmt.Fprintf(out, "{\"error\":%q}\n", err)
				return
			}
			files <- r.Put.Target + " " + header.Name + " " + string(data)
			fmt.Fprintln(out, "{}")
		case guestapi.OpGet:
			fmt.Fprintln(out, `{"size":7}`)
			fmt.Fprint(out, "content")
		}
	})
	err := c.Put(t.Context(), guestapi.Put{Target: "/t"}, func(w *tar.Writer) error {
		if err := w.WriteHeader(&tar.Header{Name: "f", Size: 4, Mode: 0o644}); err != nil {
			return err
		}
		_, err := io.WriteString(w, "text")
		return err
	})
	if got := <-files; err != nil || got != "/t f text" {
		t.Errorf("%q, %v", got, err)
	}
	if data, err := c.Get(t.Context(), guestapi.Get{Path: "/p"}); err != nil || string(data) != "content" {
		t.Errorf("%q, %v", data, err)
	}
	// A guest must not make the host take more than it asked for.
	if _, err := c.Get(t.Context(), guestapi.Get{Path: "/p", Limit: 6}); err == nil || !strings.Contains(err.Error(), "more than 6") {
		t.Errorf("error is %v", err)
	}
}

// TestSilence: a guest that does not answer fails the call when its time is up.
func TestSilence(t *testing.T) {
	c := guest(t, "", func(guestapi.Request, *bufio.Reader, net.Conn) {})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := c.CorrectClock(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error is %v", err)
	}
}
