package template

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/vmm"
)

const (
	// maxAnswer bounds the manifest on the wire, in bytes.
	maxAnswer = 64 << 10
	// filesHeld are memory, state and tools.
	filesHeld = 3
)

// Holder keeps templates in memory for the whole host, and gives them to whoever connects to its socket: files are shared, not copied. One request
// is a line of JSON, one answer another with the files beside it; then the connection ends.
type Holder struct {
	store *Store

	mu   sync.Mutex
	held map[int]*holding // by vCPUs
}

// holding is a template and what the guest's files looked like when it was loaded.
type holding struct {
	mu     sync.Mutex // held while the template is loaded or built
	loaded *Loaded
	seen   [3]fileIdentity
}

type fileIdentity struct {
	inode, size int64
	changed     time.Time
}

type request struct {
	VCPUs int `json:"vcpus"`
}

type answer struct {
	Error    string   `json:"error,omitempty"`
	Manifest Manifest `json:"manifest"`
}

// NewHolder holds what the store has.
func NewHolder(s *Store) *Holder { return &Holder{store: s, held: map[int]*holding{}} }

// Serve answers at the socket, for root only, until ctx ends; then it lets go of the templates.
func (h *Holder) Serve(ctx context.Context, socket string) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("offer templates: %w", err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: socket, Net: "unix"})
	if err != nil {
		return fmt.Errorf("offer templates: %w", err)
	}
	defer listener.Close()
	if err := os.Chmod(socket, 0o600); err != nil {
		return fmt.Errorf("offer templates: %w", err)
	}
	defer context.AfterFunc(ctx, func() { listener.Close() })()
	var serving sync.WaitGroup
	defer h.release()
	defer serving.Wait()
	for {
		conn, err := listener.AcceptUnix()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("offer templates: %w", err)
		}
		serving.Go(func() {
			defer conn.Close()
			defer context.AfterFunc(ctx, func() { conn.Close() })()
			if err := h.serve(ctx, conn); err != nil && ctx.Err() == nil {
				slog.Warn("offer a template", "error", err)
			}
		})
	}
}

func (h *Holder) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, one := range h.held {
		if one.loaded != nil {
			one.loaded.Close()
		}
	}
}

func (h *Holder) serve(ctx context.Context, conn *net.UnixConn) error {
	var asked request
	if err := json.NewDecoder(conn).Decode(&asked); err != nil {
		return err
	}
	var a answer
	var rights []byte
	one := h.holding(asked.VCPUs)
	one.mu.Lock()
	defer one.mu.Unlock()
	if err := h.fresh(ctx, asked.VCPUs, one); err != nil {
		a.Error = err.Error()
	} else {
		a.Manifest = one.loaded.Manifest
		rights = unix.UnixRights(int(one.loaded.RAM.Fd()), int(one.loaded.State.Fd()), int(one.loaded.Tools.Fd()))
	}
	line, err := json.Marshal(a)
	if err != nil {
		return err
	}
	_, _, err = conn.WriteMsgUnix(append(line, '\n'), rights, nil)
	return err
}

func (h *Holder) holding(vcpus int) *holding {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.held[vcpus] == nil {
		h.held[vcpus] = &holding{}
	}
	return h.held[vcpus]
}

// fresh loads the template unless it is loaded and the guest's files are the same as then.
func (h *Holder) fresh(ctx context.Context, vcpus int, one *holding) error {
	seen, err := identify(h.store.Guest)
	if err != nil {
		return err
	}
	if one.loaded != nil && one.seen == seen {
		return nil
	}
	for _, shape := range Shapes {
		if shape.VCPUs != vcpus {
			continue
		}
		loaded, err := h.store.Get(ctx, shape)
		if err != nil {
			return err
		}
		if one.loaded != nil {
			one.loaded.Close()
		}
		one.loaded, one.seen = loaded, seen
		return nil
	}
	return fmt.Errorf("no template has %d vCPUs", vcpus)
}

func identify(g Guest) (seen [3]fileIdentity, err error) {
	for i, path := range []string{g.Kernel, g.Initrd, g.Tools} {
		var stat unix.Stat_t
		if err := unix.Stat(path, &stat); err != nil {
			return seen, fmt.Errorf("no guest image for microVMs: %s: %w; make it with make guest", path, err)
		}
		seen[i] = fileIdentity{inode: int64(stat.Ino), size: stat.Size, changed: time.Unix(stat.Mtim.Unix())}
	}
	return seen, nil
}

// Preload loads the template of a shape ahead of need, and builds it if it must.
func (h *Holder) Preload(ctx context.Context, shape vmm.Shape) error {
	one := h.holding(shape.VCPUs)
	one.mu.Lock()
	defer one.mu.Unlock()
	return h.fresh(ctx, shape.VCPUs, one)
}

// Take gets the template with that many vCPUs from the Holder at the socket, which may build it first. The caller closes it.
func Take(ctx context.Context, socket string, vcpus int) (*Loaded, error) {
	l, err := take(ctx, socket, vcpus)
	if err != nil {
		return nil, fmt.Errorf("take the template for %d vCPUs: %w", vcpus, err)
	}
	return l, nil
}

func take(ctx context.Context, socket string, vcpus int) (*Loaded, error) {
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("the host agent, which holds it, cannot be reached: %w; see that berth-host runs", err)
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })()
	if err := json.NewEncoder(conn).Encode(request{vcpus}); err != nil {
		return nil, err
	}
	stream, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, fmt.Errorf("%s is no unix socket", socket)
	}
	a, files, err := receive(stream)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("the host agent does not answer: %w", err), ctx.Err())
	}
	if a.Error != "" {
		return nil, errors.New(a.Error)
	}
	if len(files) != filesHeld {
		for _, f := range files {
			f.Close()
		}
		return nil, fmt.Errorf("the host agent sent %d files, not %d", len(files), filesHeld)
	}
	return &Loaded{Manifest: a.Manifest, RAM: files[0], State: files[1], Tools: files[2]}, nil
}

// receive reads an answer and the files that come with its first bytes.
func receive(conn *net.UnixConn) (a answer, files []*os.File, err error) {
	buffer, control := make([]byte, maxAnswer), make([]byte, unix.CmsgSpace(filesHeld*4))
	n, controlled, _, _, err := conn.ReadMsgUnix(buffer, control)
	if err != nil {
		return a, nil, err
	}
	messages, err := unix.ParseSocketControlMessage(control[:controlled])
	if err != nil {
		return a, nil, err
	}
	for _, m := range messages {
		fds, err := unix.ParseUnixRights(&m)
		if err != nil {
			return a, nil, err
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "template"))
		}
	}
	line := append([]byte(nil), buffer[:n]...)
	if n > 0 && line[n-1] != '\n' {
		rest, err := bufio.NewReader(conn).ReadBytes('\n')
		if err != nil {
			return a, files, err
		}
		line = append(line, rest...)
	}
	return a, files, json.Unmarshal(line, &a)
}
