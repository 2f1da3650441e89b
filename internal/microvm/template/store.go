package template

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/vmm"
)

const (
	// bootLimit is how long a guest may take to boot: emulated ones take seconds, on an overloaded machine many. It is less than the two minutes that a
	// kubelet waits for a sandbox, so that the pod's event tells the cause.
	bootLimit = 90 * time.Second
	lockPause = 50 * time.Millisecond
)

// Options of a Store.
type Options struct {
	// Dir keeps the templates.
	Dir    string
	Driver vmm.Driver
	Guest  Guest
	// Confinement of the machines that templates are made of.
	Confinement vmm.Confinement
	// BootLimit is 90 seconds by default.
	BootLimit time.Duration
	// Report tells people what a call that takes seconds is doing; nil: nobody.
	Report func(what string)
}

// Store is a directory of templates for one driver and one guest. Any number of stores and processes may share the directory.
type Store struct {
	Options

	mu     sync.Mutex
	failed map[string]failure // by the template's directory
}

// failure is the last build's.
type failure struct {
	want Manifest
	at   time.Time
	err  error
}

// NewStore makes a store; it looks at nothing yet.
func NewStore(o Options) *Store {
	if o.BootLimit == 0 {
		o.BootLimit = bootLimit
	}
	if o.Report == nil {
		o.Report = func(string) {}
	}
	return &Store{Options: o, failed: map[string]failure{}}
}

// Get returns the template of a shape, loaded. It builds it if there is none, and builds it anew if it is stale or damaged; one caller builds, others
// wait for it, and fail as it does: a guest that does not boot takes its time, and is not tried again for each of them. The caller closes it.
func (s *Store) Get(ctx context.Context, shape vmm.Shape) (*Loaded, error) {
	began := time.Now()
	want, err := s.wanted(ctx, shape)
	if err != nil {
		return nil, err
	}
	unlock, err := s.lock(ctx, want)
	if err != nil {
		return nil, err
	}
	defer unlock()
	if err := s.failedSince(began, want); err != nil {
		return nil, err
	}
	l, err := s.load(want)
	if err == nil {
		return l, nil
	}
	if !errors.Is(err, errMissing) && !errors.Is(err, ErrStale) && !errors.Is(err, ErrDamaged) {
		return nil, err
	}
	s.Report(fmt.Sprintf("building the template for %d vCPUs: %v", shape.VCPUs, err))
	if err := s.build(ctx, want); err != nil {
		if ctx.Err() == nil {
			s.noteFailure(want, err)
		}
		return nil, err
	}
	return s.load(want)
}

func (s *Store) noteFailure(want Manifest, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.failed[s.dir(want)] = failure{want, time.Now(), err}
}

// failedSince is the failure of a build of the same template that others have waited for.
func (s *Store) failedSince(began time.Time, want Manifest) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if last := s.failed[s.dir(want)]; last.want == want && last.at.After(began) {
		return last.err
	}
	return nil
}

// Build makes the template of a shape, whether or not there is one.
func (s *Store) Build(ctx context.Context, shape vmm.Shape) (Manifest, error) {
	want, err := s.wanted(ctx, shape)
	if err != nil {
		return Manifest{}, err
	}
	unlock, err := s.lock(ctx, want)
	if err != nil {
		return Manifest{}, err
	}
	defer unlock()
	if err := s.build(ctx, want); err != nil {
		return Manifest{}, err
	}
	return readManifest(s.dir(want))
}

// wanted is the manifest, as far as it is known before building, of a template that fits.
func (s *Store) wanted(ctx context.Context, shape vmm.Shape) (Manifest, error) {
	m := Manifest{Format: formatVersion, Shape: shape}
	var err error
	if m.Monitor, err = s.Driver.Fingerprint(ctx); err != nil {
		return m, err
	}
	for path, digest := range map[string]*string{s.Guest.Kernel: &m.Guest.Kernel, s.Guest.Initrd: &m.Guest.Initrd, s.Guest.Tools: &m.Guest.Tools} {
		if *digest, err = digestOf(path); err != nil {
			return m, fmt.Errorf("no guest image for microVMs: %w; make it with make guest", err)
		}
	}
	return m, nil
}

// dir of the template that fits: there is one for each driver and number of vCPUs.
func (s *Store) dir(m Manifest) string {
	return filepath.Join(s.Dir, fmt.Sprintf("%s-%s-%d", m.Monitor.Name, m.Monitor.Acceleration, m.Shape.VCPUs))
}

// lock waits until nobody else loads or builds the template, in this process or another.
func (s *Store) lock(ctx context.Context, m Manifest) (unlock func(), err error) {
	if err := os.MkdirAll(s.Dir, 0o755); err != nil {
		return nil, fmt.Errorf("make the directory of templates: %w", explainSpace(err))
	}
	file, err := os.OpenFile(s.dir(m)+".lock", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the template: %w", explainSpace(err))
	}
	for {
		err := unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { file.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, unix.EINTR) {
			return nil, errors.Join(fmt.Errorf("lock the template: %w", err), file.Close())
		}
		select {
		case <-ctx.Done():
			return nil, errors.Join(fmt.Errorf("wait for another process that builds the template: %w", ctx.Err()), file.Close())
		case <-time.After(lockPause):
		}
	}
}

// check compares a template's manifest with the wanted one.
func check(have, want Manifest) error {
	switch {
	case have.Format != want.Format:
		return fmt.Errorf("%w: its format is %d, not %d", ErrStale, have.Format, want.Format)
	case have.Monitor != want.Monitor:
		return fmt.Errorf("%w: the virtual machine monitor or what machines are like has changed (%s, was %s)", ErrStale, want.Monitor.Version, have.Monitor.Version)
	case have.Shape != want.Shape:
		return fmt.Errorf("%w: the shape of machines has changed", ErrStale)
	case have.Guest.Kernel != want.Guest.Kernel:
		return fmt.Errorf("%w: the guest's kernel has changed", ErrStale)
	case have.Guest.Initrd != want.Guest.Initrd:
		return fmt.Errorf("%w: the guest's agent or modules have changed", ErrStale)
	case have.Guest.Tools != want.Guest.Tools:
		return fmt.Errorf("%w: the guest's tools have changed", ErrStale)
	}
	return nil
}

func (s *Store) load(want Manifest) (*Loaded, error) {
	dir := s.dir(want)
	have, err := readManifest(dir)
	if err != nil {
		return nil, err
	}
	if err := check(have, want); err != nil {
		return nil, err
	}
	state, err := loadFile(filepath.Join(dir, stateFile), stateFile, have.State)
	if err != nil {
		return nil, err
	}
	ram, err := loadFile(filepath.Join(dir, ramFile), ramFile, have.RAM)
	if err != nil {
		return nil, errors.Join(err, state.Close())
	}
	tools, err := os.Open(s.Guest.Tools)
	if err != nil {
		return nil, errors.Join(err, state.Close(), ram.Close())
	}
	return &Loaded{Manifest: have, RAM: ram, State: state, Tools: tools}, nil
}

// Status of a template that was built once.
type Status struct {
	Manifest
	// Problem says why it will be built anew when it is needed next; empty if it will not.
	Problem string `json:"problem,omitempty"`
}

// List tells of all templates of this driver. It reads manifests only: damage of memory or state shows when they are loaded.
func (s *Store) List(ctx context.Context) ([]Status, error) {
	var list []Status
	for _, shape := range Shapes {
		want, err := s.wanted(ctx, shape)
		if err != nil {
			return nil, err
		}
		have, err := readManifest(s.dir(want))
		if errors.Is(err, errMissing) {
			continue
		}
		if err == nil {
			err = check(have, want)
		}
		status := Status{Manifest: have}
		if err != nil {
			status.Shape, status.Problem = shape, err.Error()
		}
		list = append(list, status)
	}
	return list, nil
}

func writeManifest(dir string, m Manifest) error {
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, manifestFile), append(data, '\n'), 0o644)
}
