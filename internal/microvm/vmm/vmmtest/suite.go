package vmmtest

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/vmm"
)

// limit of each step: emulated machines boot in seconds, on an overloaded machine in minutes.
const limit = 5 * time.Minute

// Suite is what an implementation is tested with.
type Suite struct {
	Driver vmm.Driver
	Guest  Guest
	// Confinement of every machine.
	Confinement vmm.Confinement
	// Shape of the template.
	Shape vmm.Shape
}

// Run runs the suite on a template that Template made.
func (s *Suite) Run(t *testing.T, template vmm.Template) {
	for name, test := range map[string]func(*testing.T, *Suite, vmm.Template){
		"blocks are whole and in order":                  blocksAreWhole,
		"machines of one template do not share memory":   machinesAreApart,
		"a machine is its template's machine":            machineIsItsTemplates,
		"disks come and go":                              disksComeAndGo,
		"a read-only disk cannot be written":             readOnlyDisk,
		"a paused machine answers later":                 pauses,
		"kill leaves nothing":                            killLeavesNothing,
		"how a machine ended is told":                    endsAreTold,
		"a guest connects again":                         connectsAgain,
		"a damaged state is refused":                     damagedState,
		"nothing is left of what could not be restored":  restoreCancelled,
		"root is refused":                                rootIsRefused,
		"an ended machine says so":                       endedSaysSo,
		"files are the caller's, sockets are the driver": filesAreTheCallers,
	} {
		t.Run(name, func(t *testing.T) { test(t, s, template) })
	}
}

// Template boots a machine and saves it; its memory is sealed.
func (s *Suite) Template(t *testing.T) vmm.Template {
	t.Helper()
	ctx := within(t)
	fingerprint, err := s.Driver.Fingerprint(ctx)
	if err != nil {
		t.Fatal(err)
	}
	made := vmm.Template{Monitor: fingerprint, Shape: s.Shape, RAM: MemoryFile(t, "ram"), State: MemoryFile(t, "state")}
	m, host := s.Boot(t, made.RAM)
	if got := ask(t, m, host, "KEEP template"); got != "ok" {
		t.Fatalf("the guest answers %q", got)
	}
	if err := m.Pause(ctx); err != nil {
		t.Fatal(err)
	}
	if err := m.Snapshot(ctx, vmm.BaseMemory, made.State); err != nil {
		t.Fatal(err)
	}
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	const seals = unix.F_SEAL_WRITE | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_SEAL
	for _, f := range []*os.File{made.RAM, made.State} {
		if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
			t.Fatalf("seal %s (something still has it mapped?): %v", f.Name(), err)
		}
	}
	return made
}

// Boot is a machine that has booted into the memory, killed when the test ends, and answers.
func (s *Suite) Boot(t *testing.T, ram *os.File) (vmm.Machine, vmm.Host) {
	t.Helper()
	host := s.host(t)
	m, err := s.Driver.Boot(within(t), vmm.Boot{Host: host, Shape: s.Shape, Kernel: s.Guest.Kernel, Initrd: s.Guest.Initrd, RAM: ram})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = m.Kill() })
	if got := ask(t, m, host, "PING"); got != "PONG" {
		t.Fatalf("the guest answers %q; its console: %s", got, consoleOf(host))
	}
	return m, host
}

// Restore is a machine of the template, killed when the test ends.
func (s *Suite) Restore(t *testing.T, template vmm.Template) (vmm.Machine, vmm.Host) {
	t.Helper()
	host := s.host(t)
	m, err := s.Driver.Restore(within(t), vmm.Restore{Host: host, Template: template})
	if err != nil {
		t.Fatalf("%v; the guest's console: %s", err, consoleOf(host))
	}
	t.Cleanup(func() {
		if err := m.Kill(); err != nil {
			t.Error(err)
		}
	})
	return m, host
}

func (s *Suite) host(t *testing.T) vmm.Host {
	t.Helper()
	// Not t.TempDir: the path of a socket must be short.
	dir, err := os.MkdirTemp("", "vmm")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	tools, err := os.Open(s.Guest.Tools)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tools.Close() })
	return vmm.Host{Name: t.Name(), AgentSocket: filepath.Join(dir, "agent"), Console: filepath.Join(dir, "console"), Tools: tools, Confinement: s.Confinement}
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	t.Cleanup(cancel)
	return ctx
}

// MemoryFile is an empty one that can be sealed.
func MemoryFile(t *testing.T, name string) *os.File {
	t.Helper()
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		t.Fatal(err)
	}
	file := os.NewFile(uintptr(fd), name)
	t.Cleanup(func() { file.Close() })
	return file
}

func ask(t *testing.T, m vmm.Machine, host vmm.Host, question string) string {
	t.Helper()
	answer, err := Ask(within(t), m, question)
	if err != nil {
		t.Fatalf("ask %s: %v; the guest's console: %s", question, err, consoleOf(host))
	}
	return answer
}

func consoleOf(host vmm.Host) string {
	text, _ := os.ReadFile(host.Console) // for a message
	return string(text)
}

func digest(t *testing.T, f *os.File) string {
	t.Helper()
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(f, 0, 1<<40)); err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil))
}

func exitOf(t *testing.T, m vmm.Machine) vmm.Exit {
	t.Helper()
	exit, err := m.Wait(within(t))
	if err != nil {
		t.Fatalf("wait: %v", err)
	}
	return exit
}

func blocksAreWhole(t *testing.T, s *Suite, _ vmm.Template) {
	for _, memory := range []int64{0, vmm.BaseMemory, vmm.BaseMemory + 1, 512 << 20, 1 << 30, 5 << 30, s.Shape.MaxMemory} {
		ranges, err := s.Driver.Blocks(s.Shape, memory)
		if err != nil {
			t.Fatal(err)
		}
		total, end := uint64(vmm.BaseMemory), uint64(0)
		for _, r := range ranges {
			if r.Start < end || r.Start%vmm.BlockMemory != 0 || r.Bytes%vmm.BlockMemory != 0 || r.Bytes == 0 {
				t.Errorf("%d bytes: bad range %+v", memory, r)
			}
			total, end = total+r.Bytes, r.Start+r.Bytes
		}
		if int64(total) < memory || int64(total) >= max(memory, vmm.BaseMemory)+vmm.BlockMemory {
			t.Errorf("%d bytes: the ranges bring %d", memory, total)
		}
	}
	if _, err := s.Driver.Blocks(s.Shape, s.Shape.MaxMemory+1); err == nil {
		t.Error("more than the shape holds is given")
	}
	// The smallest machine, of 512 MiB, has memory left for its guest.
	if own := s.Driver.Overhead(s.Shape); own <= 0 || own > 512<<20-vmm.BaseMemory {
		t.Errorf("the monitor needs %d bytes for itself", own)
	}
}

func machinesAreApart(t *testing.T, s *Suite, template vmm.Template) {
	before := digest(t, template.RAM)
	var all sync.WaitGroup
	for i := range 3 {
		all.Go(func() {
			m, _ := s.Restore(t, template)
			mine := fmt.Sprintf("machine%d", i)
			for _, step := range [][2]string{{"KEPT", "template"}, {"KEEP " + mine, "ok"}, {"KEPT", mine}} {
				answer, err := Ask(within(t), m, step[0])
				if err != nil || answer != step[1] {
					t.Errorf("%s answers %q, want %q (%v)", step[0], answer, step[1], err)
				}
			}
		})
	}
	all.Wait()
	if digest(t, template.RAM) != before {
		t.Error("a machine changed the template's memory")
	}
}

func machineIsItsTemplates(t *testing.T, s *Suite, template vmm.Template) {
	m, host := s.Restore(t, template)
	if got, want := ask(t, m, host, "PROCESSORS"), fmt.Sprint(s.Shape.VCPUs); got != want {
		t.Errorf("the guest has %s processors, want %s", got, want)
	}
	if got := ask(t, m, host, "ADDRESS"); got != vmm.PlaceholderMAC {
		t.Errorf("the network device has address %q", got)
	}
	if got := ask(t, m, host, "DISKS"); got != "0" {
		t.Errorf("the guest has disks %q, want the tools only", got)
	}
	if err := unix.Kill(m.PID(), 0); err != nil {
		t.Errorf("there is no process %d: %v", m.PID(), err)
	}
}

func connectsAgain(t *testing.T, s *Suite, template vmm.Template) {
	m, host := s.Restore(t, template)
	for range 3 {
		if got := ask(t, m, host, "PING"); got != "PONG" {
			t.Errorf("the guest answers %q", got)
		}
	}
}

func pauses(t *testing.T, s *Suite, template vmm.Template) {
	m, host := s.Restore(t, template)
	ask(t, m, host, "PING")
	conn, err := m.Dial(within(t))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for range 2 {
		if err := m.Pause(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := fmt.Fprintln(conn, "PING"); err != nil {
		t.Fatal(err)
	}
	// That nothing comes can only be seen by waiting; the answer would come in a few milliseconds.
	if err := conn.SetReadDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 16)
	if n, err := conn.Read(buffer); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("a paused machine answers %q (%v)", buffer[:n], err)
	}
	for range 2 {
		if err := m.Resume(within(t)); err != nil {
			t.Fatal(err)
		}
	}
	if err := conn.SetReadDeadline(time.Now().Add(limit)); err != nil {
		t.Fatal(err)
	}
	if n, err := conn.Read(buffer); err != nil || !strings.HasPrefix("PONG\n", string(buffer[:n])) || n == 0 {
		t.Errorf("the resumed machine answers %q (%v)", buffer[:n], err)
	}
}

func rootIsRefused(t *testing.T, s *Suite, template vmm.Template) {
	host := s.host(t)
	host.UID, host.GID = 0, 0
	if m, err := s.Driver.Restore(within(t), vmm.Restore{Host: host, Template: template}); err == nil {
		t.Error("a monitor runs as root")
		_ = m.Kill()
	}
}

func restoreCancelled(t *testing.T, s *Suite, template vmm.Template) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	host := s.host(t)
	if m, err := s.Driver.Restore(ctx, vmm.Restore{Host: host, Template: template}); !errors.Is(err, context.Canceled) {
		t.Errorf("restore fails with %v", err)
		if err == nil {
			_ = m.Kill()
		}
	}
	if _, err := os.Stat(host.AgentSocket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the agent's socket is left (%v)", err)
	}
}

func damagedState(t *testing.T, s *Suite, template vmm.Template) {
	template.State = MemoryFile(t, "damaged")
	if _, err := template.State.WriteString("this is not what a machine's devices were like"); err != nil {
		t.Fatal(err)
	}
	host := s.host(t)
	m, err := s.Driver.Restore(within(t), vmm.Restore{Host: host, Template: template})
	if !errors.Is(err, vmm.ErrTemplate) {
		t.Errorf("restore fails with %v, want %v", err, vmm.ErrTemplate)
	}
	if err == nil {
		_ = m.Kill()
	}
}
