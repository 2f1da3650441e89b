// Package podsocket is how a pod's kubelet talks with the pod's shim, beside containerd: over a socket in the sandbox's directory. A
// connection begins with a line: a port of the pod's loopback address, Usage, Watch, or Mount and a directory. The shim answers with a line that is empty or
// says what failed, and then carries the port's bytes, or lines of JSON, or nothing more.
package podsocket

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

// Usage asks what the pod uses of its disk.
const Usage = "usage"

// Mount wants a network file system mounted in the guest, by the directory of its volume on the host.
const Mount = "mount"

// Watch asks what keeps the machine from running, now and whenever that changes.
const Watch = "watch"

// Trouble is what keeps the pod's machine from running: a word and a sentence with the remedy; empty: nothing does, or nothing that was not wanted.
type Trouble struct {
	Reason, Message string
	// Ended says that there is no machine any more, and that there will be none.
	Ended bool `json:",omitempty"`
}

// ReasonMachineEnded is the reason of a machine that has ended though nobody wanted it to.
const ReasonMachineEnded = "MachineEnded"

const messageShimEnded = "the pod's shim (containerd-shim-berth-v1) has ended by itself or was killed, and with it the pod's machine; the pod gets a new one"

// Path of the socket.
func Path(runDir string) string { return filepath.Join(runDir, "pod.sock") }

// Conn is a connection after the shim's answer. Reads go through the buffer that the answer was read with.
type Conn struct {
	net.Conn // not the unix socket's type, which knows shorter ways than Read
	reader   *bufio.Reader
}

func (c *Conn) Read(p []byte) (int, error) { return c.reader.Read(p) }

// CloseWrite lets the shim read the end of what is written.
func (c *Conn) CloseWrite() error {
	if half, ok := c.Conn.(*net.UnixConn); ok {
		return half.CloseWrite()
	}
	return nil
}

// Dial connects with the shim and asks for something. The context bounds the answer; what follows it is bounded by nothing.
func Dial(ctx context.Context, runDir, request string) (*Conn, error) {
	var dialer net.Dialer
	dialed, err := dialer.DialContext(ctx, "unix", Path(runDir))
	if err != nil {
		return nil, fmt.Errorf("reach the pod's shim: %w", err)
	}
	conn := &Conn{dialed, bufio.NewReader(dialed)}
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	if err := conn.ask(request); err != nil {
		conn.Close()
		return nil, errors.Join(err, ctx.Err())
	}
	return conn, nil
}

func (c *Conn) ask(request string) error {
	if _, err := fmt.Fprintln(c, request); err != nil {
		return fmt.Errorf("ask the pod's shim: %w", err)
	}
	answer, err := c.reader.ReadString('\n')
	if err != nil {
		return fmt.Errorf("hear from the pod's shim: %w", err)
	}
	if answer = strings.TrimSpace(answer); answer != "" {
		return errors.New(answer)
	}
	return nil
}

// Answer writes the line that says whether a request can be fulfilled.
func Answer(conn io.Writer, err error) error {
	text := ""
	if err != nil {
		text = strings.ReplaceAll(err.Error(), "\n", " ")
	}
	_, werr := fmt.Fprintln(conn, text)
	return errors.Join(err, werr)
}

// AskUsage asks the shim for Usage.
func AskUsage(ctx context.Context, runDir string) (*guestapi.Usage, error) {
	conn, err := Dial(ctx, runDir, Usage)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	var usage guestapi.Usage
	if err := json.NewDecoder(conn).Decode(&usage); err != nil {
		return nil, fmt.Errorf("hear from the pod's shim what the pod uses of its disk: %w", err)
	}
	return &usage, nil
}

// AskMount asks the shim to Mount the volume, which it does once.
func AskMount(ctx context.Context, runDir, volume string) error {
	conn, err := Dial(ctx, runDir, Mount+" "+volume)
	if err != nil {
		return err
	}
	return conn.Close()
}

// WatchTrouble calls handle for what keeps the machine from running, at once and whenever that changes, until ctx ends or the shim does. A shim that
// ended without a word of its machine, which ended with it, has been killed: that is told, too.
func WatchTrouble(ctx context.Context, runDir string, handle func(Trouble)) error {
	conn, err := Dial(ctx, runDir, Watch)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	lines := json.NewDecoder(conn)
	for ended := false; ; {
		var t Trouble
		err := lines.Decode(&t)
		if !ended && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)) && ctx.Err() == nil {
			handle(Trouble{Reason: ReasonMachineEnded, Message: messageShimEnded, Ended: true})
		}
		if err != nil {
			return fmt.Errorf("hear from the pod's shim how its machine is: %w", err)
		}
		ended = t.Ended
		handle(t)
	}
}
