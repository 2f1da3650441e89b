package template_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/guestapi"
	"github.com/berth-run/berth/internal/microvm/template"
	"github.com/berth-run/berth/internal/microvm/vmm"
	"github.com/berth-run/berth/internal/microvm/vmm/vmmtest"
)

// counting counts boots.
type counting struct {
	vmmtest.Fake
	boots   atomic.Int32
	asked   atomic.Int32 // for the fingerprint
	version string
}

func (c *counting) Boot(ctx context.Context, b vmm.Boot) (vmm.Machine, error) {
	c.boots.Add(1)
	return c.Fake.Boot(ctx, b)
}

func (c *counting) Fingerprint(ctx context.Context) (vmm.Fingerprint, error) {
	c.asked.Add(1)
	f, err := c.Fake.Fingerprint(ctx)
	f.Version, f.Digest = c.version, c.version
	return f, err
}

var confinement = vmm.Confinement{UID: 65001, GID: 65001}

func newStore(t *testing.T) (*template.Store, *counting) {
	t.Helper()
	driver := &counting{version: "1"}
	guest := template.GuestIn(t.TempDir())
	for _, path := range []string{guest.Kernel, guest.Initrd, guest.Tools} {
		write(t, path, "guest")
	}
	return template.NewStore(template.Options{Dir: filepath.Join(t.TempDir(), "templates"), Driver: driver, Guest: guest, Confinement: confinement}), driver
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func get(t *testing.T, s *template.Store) *template.Loaded {
	t.Helper()
	l, err := s.Get(t.Context(), template.Shapes[0])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func TestTemplateIsBuiltOnce(t *testing.T) {
	s, driver := newStore(t)
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			// A store of its own, as another process has.
			l, err := template.NewStore(s.Options).Get(t.Context(), template.Shapes[0])
			if err != nil {
				t.Error(err)
				return
			}
			l.Close()
		})
	}
	all.Wait()
	if got := driver.boots.Load(); got != 1 {
		t.Errorf("8 callers booted %d machines", got)
	}
	if left, err := filepath.Glob(filepath.Join(s.Dir, "*.new")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

// TestTemplateHasMemoryPluggedIn: as much as the smallest pod has; but not if its guest would use it.
func TestTemplateHasMemoryPluggedIn(t *testing.T) {
	for name, want := range map[string]int64{"frugal": 576 << 20, "greedy": vmm.BaseMemory} {
		t.Run(name, func(t *testing.T) {
			s, driver := newStore(t)
			driver.Greedy = name == "greedy"
			if got := get(t, s).Manifest.Memory; got != want {
				t.Errorf("%d MiB, want %d", got>>20, want>>20)
			}
		})
	}
}

func TestTemplateIsRebuiltWhenItDoesNotFit(t *testing.T) {
	dir := func(s *template.Store) string { return filepath.Join(s.Dir, "fake-none-1") }
	flip := func(t *testing.T, path string) {
		t.Helper()
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		data[1] ^= 1
		write(t, path, string(data))
	}
	for name, change := range map[string]func(*testing.T, *template.Store, *counting){
		"kernel":       func(t *testing.T, s *template.Store, _ *counting) { write(t, s.Guest.Kernel, "new") },
		"initrd":       func(t *testing.T, s *template.Store, _ *counting) { write(t, s.Guest.Initrd, "new") },
		"tools":        func(t *testing.T, s *template.Store, _ *counting) { write(t, s.Guest.Tools, "new") },
		"monitor":      func(_ *testing.T, _ *template.Store, d *counting) { d.version = "2" },
		"bit in state": func(t *testing.T, s *template.Store, _ *counting) { flip(t, filepath.Join(dir(s), "state")) },
		"bit in RAM":   func(t *testing.T, s *template.Store, _ *counting) { flip(t, filepath.Join(dir(s), "ram")) },
		"RAM cut off": func(t *testing.T, s *template.Store, _ *counting) {
			if err := os.Truncate(filepath.Join(dir(s), "ram"), 4096); err != nil {
				t.Fatal(err)
			}
		},
		"state gone": func(t *testing.T, s *template.Store, _ *counting) {
			if err := os.Remove(filepath.Join(dir(s), "state")); err != nil {
				t.Fatal(err)
			}
		},
		"manifest is no JSON": func(t *testing.T, s *template.Store, _ *counting) {
			write(t, filepath.Join(dir(s), "manifest.json"), "{")
		},
	} {
		t.Run(name, func(t *testing.T) {
			s, driver := newStore(t)
			get(t, s)
			get(t, s)
			if got := driver.boots.Load(); got != 1 {
				t.Fatalf("a template that fits was built anew (%d boots)", got)
			}
			change(t, s, driver)
			get(t, s)
			if got := driver.boots.Load(); got != 2 {
				t.Errorf("%d boots, want 2", got)
			}
			list, err := s.List(t.Context())
			if err != nil || len(list) != 1 || list[0].Problem != "" {
				t.Errorf("list: %+v, %v", list, err)
			}
		})
	}
}

func TestListSaysWhatIsStale(t *testing.T) {
	s, _ := newStore(t)
	get(t, s)
	write(t, s.Guest.Initrd, "new")
	list, err := s.List(t.Context())
	if err != nil || len(list) != 1 || !strings.Contains(list[0].Problem, "agent") {
		t.Errorf("list: %+v, %v", list, err)
	}
}

func TestLoadedTemplateCannotBeChanged(t *testing.T) {
	s, _ := newStore(t)
	l := get(t, s)
	for _, f := range []*os.File{l.RAM, l.State} {
		if _, err := f.WriteAt([]byte("x"), 0); !errors.Is(err, unix.EPERM) {
			t.Errorf("write to %s: %v", f.Name(), err)
		}
		if err := f.Truncate(0); !errors.Is(err, unix.EPERM) {
			t.Errorf("truncate %s: %v", f.Name(), err)
		}
	}
	info, err := l.RAM.Stat()
	if err != nil {
		t.Fatal(err)
	}
	if stat, ok := info.Sys().(*unix.Stat_t); ok && stat.Blocks*512 > 1<<20 || info.Size() != vmm.BaseMemory {
		t.Errorf("the memory is not sparse: %+v", info.Sys())
	}
}

func TestBuildFailures(t *testing.T) {
	tests := map[string]struct {
		prepare func(*testing.T, *template.Store, *counting)
		want    string
	}{
		"no guest image": {func(t *testing.T, s *template.Store, _ *counting) {
			if err := os.Remove(s.Guest.Kernel); err != nil {
				t.Fatal(err)
			}
		}, "make guest"},
		"no monitor": {func(_ *testing.T, _ *template.Store, d *counting) { d.Unavailable = vmm.ErrUnavailable }, "unavailable"},
		"guest hangs": {func(_ *testing.T, s *template.Store, d *counting) {
			s.BootLimit = 50 * time.Millisecond
			d.Agent = func(c net.Conn, _ *vmmtest.FakeMachine) { _, _ = io.Copy(io.Discard, c) }
		}, "does not boot within 50ms"},
		"guest panics": {func(_ *testing.T, _ *template.Store, d *counting) {
			d.Agent = func(c net.Conn, m *vmmtest.FakeMachine) { m.End(vmm.ReasonReset); _, _ = io.Copy(io.Discard, c) }
		}, "the machine ended (Reset)"},
		"guest talks nonsense": {func(_ *testing.T, _ *template.Store, d *counting) {
			d.Agent = func(c net.Conn, _ *vmmtest.FakeMachine) {
				_, _ = bufio.NewReader(c).ReadString('\n')
				_, _ = io.WriteString(c, "HTTP/1.1 400\n")
			}
		}, "answers"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			s, driver := newStore(t)
			tt.prepare(t, s, driver)
			l, err := s.Get(t.Context(), template.Shapes[0])
			if err == nil {
				l.Close()
			}
			if err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("get fails with %v, want something with %q", err, tt.want)
			}
			if left, _ := filepath.Glob(filepath.Join(s.Dir, "*none*/*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

// TestProbe: a guest that prints is waited for, one that does not hangs.
func TestProbe(t *testing.T) {
	const silence, look = 3 * time.Second, 50 * time.Millisecond
	s, driver := newStore(t)
	driver.Agent = func(c net.Conn, m *vmmtest.FakeMachine) {
		for began := time.Now(); time.Since(began) < 2*silence; time.Sleep(look) {
			f, err := os.OpenFile(m.Console, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err != nil {
				return
			}
			_, _ = fmt.Fprintln(f, "still busy")
			f.Close()
		}
		_, _ = io.WriteString(c, guestapi.Pong)
	}
	if err := template.Probe(t.Context(), driver, s.Guest, s.Confinement, silence); err != nil {
		t.Errorf("a slow guest: %v", err)
	}
	driver.Agent = func(c net.Conn, _ *vmmtest.FakeMachine) { _, _ = io.Copy(io.Discard, c) }
	if err := template.Probe(t.Context(), driver, s.Guest, s.Confinement, look); err == nil || !strings.Contains(err.Error(), "no usable NONE: the guest hangs, it has printed nothing for 50ms") {
		t.Errorf("a silent guest: %v", err)
	}
}

// TestFailureIsShared: who waits for a build that fails does not begin another. Who comes later does.
func TestFailureIsShared(t *testing.T) {
	s, driver := newStore(t)
	end := make(chan struct{})
	driver.Agent = func(c net.Conn, m *vmmtest.FakeMachine) {
		<-end
		m.End(vmm.ReasonReset)
		_, _ = io.Copy(io.Discard, c)
	}
	const callers = 4
	var all sync.WaitGroup
	fails := func() {
		if _, err := s.Get(t.Context(), template.Shapes[0]); err == nil || !strings.Contains(err.Error(), "the machine ended (Reset)") {
			t.Errorf("get fails with %v", err)
		}
	}
	for range callers {
		all.Go(fails)
	}
	for driver.asked.Load() < callers { // all have begun
		time.Sleep(time.Millisecond)
	}
	close(end)
	all.Wait()
	if got := driver.boots.Load(); got != 1 {
		t.Errorf("%d callers booted %d machines", callers, got)
	}
	fails()
	if got := driver.boots.Load(); got != 2 {
		t.Errorf("a later caller makes it %d boots, want 2", got)
	}
}

func TestShapeFor(t *testing.T) {
	const gib = 1 << 30
	for name, tt := range map[string]struct{ cpu, memory, vcpus int64 }{
		"smallest":          {250, gib / 2, 1},
		"one vCPU":          {1000, 8 * gib, 1},
		"two":               {2000, 4 * gib, 2},
		"four":              {4000, 30 * gib, 4},
		"largest":           {16000, 120 * gib, 16},
		"exact, between":    {1500, gib, 2},
		"much memory":       {1000, 20 * gib, 4},
		"refused":           {16001, gib, 0},
		"refused by memory": {1000, 121 * gib, 0},
	} {
		t.Run(name, func(t *testing.T) {
			s, err := template.ShapeFor(tt.cpu, tt.memory)
			if int64(s.VCPUs) != tt.vcpus || (err != nil) != (tt.vcpus == 0) {
				t.Errorf("got %+v, %v", s, err)
			}
		})
	}
}

func TestHolder(t *testing.T) {
	s, driver := newStore(t)
	ctx, stop := context.WithCancel(t.Context())
	dir, err := os.MkdirTemp("", "holder")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, "socket")
	holder := template.NewHolder(s)
	if err := holder.Preload(ctx, template.Shapes[0]); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- holder.Serve(ctx, socket) }()
	for { // until it listens
		if c, err := net.Dial("unix", socket); err == nil {
			c.Close()
			break
		}
	}
	first := take(t, socket)
	second := take(t, socket)
	if a, b := inode(t, first.RAM), inode(t, second.RAM); a != b {
		t.Errorf("two callers have different memory: inodes %d and %d", a, b)
	}
	text := make([]byte, 1)
	if _, err := first.RAM.ReadAt(text, 0); err != nil || text[0] != '{' {
		t.Errorf("memory begins with %q (%v)", text, err)
	}
	if _, err := template.Take(ctx, socket, 3); err == nil || !strings.Contains(err.Error(), "3 vCPUs") {
		t.Errorf("a template that there is not: %v", err)
	}
	write(t, s.Guest.Initrd, "another agent")
	if third := take(t, socket); third.Manifest.Guest.Initrd == first.Manifest.Guest.Initrd {
		t.Error("the guest has changed, but the template has not")
	}
	if got := driver.boots.Load(); got != 2 {
		t.Errorf("%d boots, want 2", got)
	}
	stop()
	if err := <-served; err != nil {
		t.Error(err)
	}
	if _, err := template.Take(t.Context(), socket, 1); err == nil || !strings.Contains(err.Error(), "berth-host") {
		t.Errorf("the agent is down: %v", err)
	}
}

func take(t *testing.T, socket string) *template.Loaded {
	t.Helper()
	l, err := template.Take(t.Context(), socket, 1)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return l
}

func inode(t *testing.T, f *os.File) uint64 {
	t.Helper()
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		t.Fatal(err)
	}
	return stat.Ino
}
