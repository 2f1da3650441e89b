package template

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berth-run/berth/internal/microvm/guestapi"
	"github.com/berth-run/berth/internal/microvm/vmm"
)

const (
	beingBuilt  = ".new"
	agentSocket = "agent"
	consoleFile = "console"
	// consoleTail is how much of what the guest printed an error quotes, in bytes.
	consoleTail = 400
	// endLimit is how long a machine whose connections have ended may take to end.
	endLimit = 5 * time.Second
	// smallest is the memory of the smallest pod, and so what every pod's machine has, in bytes.
	smallest = 512 << 20
	// silenceLooks is how often a guest's console is looked at before it counts as silent.
	silenceLooks = 20
)

// build makes a template beside the old one and then replaces that. Nobody sees half a template; whoever has the old one loaded keeps it.
func (s *Store) build(ctx context.Context, m Manifest) error {
	temporary := s.dir(m) + beingBuilt
	// It may be there, of a process that was killed.
	if err := errors.Join(os.RemoveAll(temporary), os.Mkdir(temporary, 0o755)); err != nil {
		return fmt.Errorf("build the template: %w", explainSpace(err))
	}
	defer os.RemoveAll(temporary)
	if err := s.fill(ctx, temporary, &m); err != nil {
		return fmt.Errorf("build the template for %d vCPUs: %w", m.Shape.VCPUs, err)
	}
	if err := os.RemoveAll(s.dir(m)); err != nil {
		return err
	}
	return os.Rename(temporary, s.dir(m))
}

func (s *Store) fill(ctx context.Context, dir string, m *Manifest) error {
	err := s.fillPlugged(ctx, dir, m, smallest-s.Driver.Overhead(m.Shape))
	if errors.Is(err, vmm.ErrTouched) || errors.Is(err, errNotPlugged) {
		s.Report("once more, without memory plugged in: " + err.Error())
		err = s.fillPlugged(ctx, dir, m, 0)
	}
	return err
}

func (s *Store) fillPlugged(ctx context.Context, dir string, m *Manifest, plugged int64) error {
	ram, err := MemoryFile(ramFile)
	if err != nil {
		return err
	}
	defer ram.Close()
	state, err := MemoryFile(stateFile)
	if err != nil {
		return err
	}
	defer state.Close()
	began := time.Now()
	if m.Memory, err = s.snapshot(ctx, m.Shape, plugged, ram, state, func() { m.BootTime = time.Since(began) }); err != nil {
		return err
	}
	s.Report("saving the guest's memory")
	for name, one := range map[string]struct {
		from *os.File
		to   *File
	}{ramFile: {ram, &m.RAM}, stateFile: {state, &m.State}} {
		file, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			return explainSpace(err)
		}
		*one.to, err = copyPages(file, one.from)
		if err := errors.Join(err, file.Close()); err != nil {
			return err
		}
	}
	m.Built = time.Now().UTC().Truncate(time.Second)
	return writeManifest(dir, *m)
}

// errNotPlugged: the guest cannot plug memory in, which a template can do without.
var errNotPlugged = errors.New("no memory is plugged in")

// snapshot boots a machine, waits until its guest is ready, has it plug memory in up to at least so many bytes, and saves it. It returns what the guest then has.
func (s *Store) snapshot(ctx context.Context, shape vmm.Shape, plugged int64, ram, state *os.File, ready func()) (memory int64, err error) {
	ranges, err := s.Driver.Blocks(shape, plugged)
	if err != nil {
		return 0, err
	}
	memory = vmm.BaseMemory
	for _, r := range ranges {
		memory += int64(r.Bytes)
	}
	s.Report("booting a guest")
	return memory, withGuest(ctx, s.Driver, s.Guest, s.Confinement, shape, ram, patience{limit: s.BootLimit}, func(m vmm.Machine) error {
		ready()
		if err := s.plug(ctx, m, ranges); err != nil {
			return err
		}
		if err := m.Pause(ctx); err != nil {
			return err
		}
		return m.Snapshot(ctx, memory, state)
	})
}

func (s *Store) plug(ctx context.Context, m vmm.Machine, ranges []guestapi.Range) error {
	limited, cancel := context.WithTimeout(ctx, s.BootLimit)
	defer cancel()
	for _, r := range ranges {
		if err := ask(limited, m, guestapi.PlugLine(r)); err != nil && ctx.Err() == nil {
			return fmt.Errorf("%w: %d MiB: %w", errNotPlugged, r.Bytes>>20, err)
		}
	}
	return ctx.Err()
}

// Probe tells whether machines of the driver really boot here: a device that opens proves nothing. The error says in words why they do not. A guest that prints
// nothing for as long as silence hangs; one that does may be slow.
func Probe(ctx context.Context, driver vmm.Driver, guest Guest, confinement vmm.Confinement, silence time.Duration) error {
	f, err := driver.Fingerprint(ctx)
	if err != nil {
		return err
	}
	ram, err := MemoryFile(ramFile)
	if err != nil {
		return err
	}
	defer ram.Close()
	err = withGuest(ctx, driver, guest, confinement, Shapes[0], ram, patience{bootLimit, silence}, func(vmm.Machine) error { return nil })
	if err != nil {
		return fmt.Errorf("no usable %s: %w", strings.ToUpper(f.Acceleration), err)
	}
	return nil
}

// ProbeLimit is how long a guest that boots under hardware virtualization may print nothing. Where that works, all of it takes a second.
const ProbeLimit = 10 * time.Second

// patience with a guest that boots: how long it may take, and how long it may print nothing; 0: as long as it likes.
type patience struct{ limit, silence time.Duration }

// Choose takes the preferred driver if a guest really boots with it, and else the other one and the reason why.
func Choose(ctx context.Context, preferred, other vmm.Driver, guest Guest, confinement vmm.Confinement) (chosen vmm.Driver, why, err error) {
	why = Probe(ctx, preferred, guest, confinement, ProbeLimit)
	if ctx.Err() != nil {
		return nil, nil, ctx.Err()
	}
	if why == nil {
		return preferred, nil, nil
	}
	if _, err := other.Fingerprint(ctx); err != nil {
		return nil, why, err
	}
	return other, why, nil
}

// withGuest boots a machine, calls do once its guest is ready, and ends it.
func withGuest(ctx context.Context, driver vmm.Driver, guest Guest, confinement vmm.Confinement, shape vmm.Shape, ram *os.File,
	p patience, do func(vmm.Machine) error) (err error) {
	// Paths of sockets are short.
	dir, err := os.MkdirTemp("", "berth-template")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	tools, err := os.Open(guest.Tools)
	if err != nil {
		return err
	}
	defer tools.Close()
	host := vmm.Host{Name: fmt.Sprintf("template-%d", shape.VCPUs), AgentSocket: filepath.Join(dir, agentSocket),
		Console: filepath.Join(dir, consoleFile), Tools: tools, Confinement: confinement}
	m, err := driver.Boot(ctx, vmm.Boot{Host: host, Shape: shape, Kernel: guest.Kernel, Initrd: guest.Initrd, RAM: ram})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, m.Kill()) }()
	if err := awaitGuest(ctx, m, host, p); err != nil {
		return err
	}
	return do(m)
}

// awaitGuest waits for the agent's answer, the machine's end or the end of patience.
func awaitGuest(ctx context.Context, m vmm.Machine, host vmm.Host, p patience) error {
	limited, cancel := context.WithTimeoutCause(ctx, p.limit, fmt.Errorf("the guest does not boot within %v", p.limit))
	defer cancel()
	patient, cancel := whilePrinting(limited, host.Console, p.silence)
	defer cancel()
	err := ask(patient, m, guestapi.Ping)
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if patient.Err() != nil {
		return fmt.Errorf("%w: %w; the last that its kernel printed: %q", context.Cause(patient), err, lastPrinted(host.Console))
	}
	// The connection ends a little before the machine does.
	ending, stop := context.WithTimeout(ctx, endLimit)
	defer stop()
	if exit, alive := m.Wait(ending); alive == nil {
		return fmt.Errorf("the guest does not boot, the machine ended (%s): %s", exit.Reason, exit.Detail)
	}
	return fmt.Errorf("the guest does not boot: %w; the last that its kernel printed: %q", err, lastPrinted(host.Console))
}

// whilePrinting ends when the guest has printed nothing for as long as silence, if that is not 0.
func whilePrinting(ctx context.Context, console string, silence time.Duration) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancelCause(ctx)
	stop := func() { cancel(nil) }
	if silence == 0 {
		return ctx, stop
	}
	go func() {
		var printed int64
		for last := time.Now(); ; {
			select {
			case <-ctx.Done():
				return
			case <-time.After(silence / silenceLooks):
			}
			if info, err := os.Stat(console); err == nil && info.Size() > printed {
				printed, last = info.Size(), time.Now()
			} else if time.Since(last) >= silence {
				cancel(fmt.Errorf("the guest hangs, it has printed nothing for %v", silence))
				return
			}
		}
	}()
	return ctx, stop
}

func lastPrinted(path string) string {
	text, _ := os.ReadFile(path) // for a message
	return strings.TrimSpace(string(text[max(0, len(text)-consoleTail):]))
}

// ask asks the agent for something that it answers with Pong. It is not heard before it listens; the question waits for it.
func ask(ctx context.Context, m vmm.Machine, question string) error {
	conn, err := m.Dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })()
	if _, err := conn.Write([]byte(question)); err != nil {
		return err
	}
	answer, err := bufio.NewReaderSize(conn, 64).ReadString('\n')
	if err != nil {
		return fmt.Errorf("its agent does not answer: %w", err)
	}
	if answer != guestapi.Pong {
		return fmt.Errorf("its agent answers %q, not %q", answer, guestapi.Pong)
	}
	return nil
}
