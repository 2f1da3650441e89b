package hostagent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/layout"
)

// fakeProber says what it is told to, and counts how often it is asked.
type fakeProber struct {
	accelerator v1alpha1.Accelerator
	reason      string
	err         error
	asked       int
}

func (p *fakeProber) Probe(context.Context) (v1alpha1.Accelerator, string, error) {
	p.asked++
	return p.accelerator, p.reason, p.err
}

func (*fakeProber) Use(v1alpha1.Accelerator) {}

// probeStage is a machine on which virtual machines could run, and its agent's view of it.
type probeStage struct {
	dirs   layout.Dirs
	binDir string
	prober *fakeProber
	clock  time.Time
	boot   string
}

func newProbeStage(t *testing.T) *probeStage {
	t.Helper()
	top := t.TempDir()
	s := &probeStage{dirs: layout.Dirs{State: filepath.Join(top, "state")}, binDir: filepath.Join(top, "bin"),
		prober: &fakeProber{accelerator: v1alpha1.AcceleratorTCG, reason: "no usable KVM"}, clock: time.Unix(1e9, 0), boot: "first"}
	path := filepath.Join(top, "path")
	s.write(t, filepath.Join(path, qemuCommand))
	for _, p := range append([]string{"runsc", "containerd-shim-runsc-start", "containerd-shim-runsc-v1"}, microVMPrograms...) {
		s.write(t, filepath.Join(s.binDir, p))
	}
	for _, f := range guestFiles(s.binDir) {
		s.write(t, f)
	}
	t.Setenv("PATH", path)
	return s
}

func (s *probeStage) write(t *testing.T, file string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte(file), 0o755); err != nil {
		t.Fatal(err)
	}
}

func (s *probeStage) agent() *isolations {
	i := newIsolations(s.dirs, s.binDir, s.prober)
	i.now, i.boot = func() time.Time { return s.clock }, func() string { return s.boot }
	if known, err := i.read(); err == nil && known.Evidence == i.evidence() {
		i.microvm = known.Probe
	}
	return i
}

// of is what the agent says of microvm, and which isolations are usable.
func of(i *isolations) (v1alpha1.IsolationProbe, string) {
	usable, probes := i.status()
	var names []string
	for _, u := range usable {
		names = append(names, string(u))
	}
	return probes[slices.IndexFunc(probes, func(p v1alpha1.IsolationProbe) bool { return p.Isolation == v1alpha1.IsolationMicroVM })], strings.Join(names, " ")
}

// TestGVisorDoesNotWaitForTheProbe: before anything was tried gvisor is usable, and microvm says that it is being tried.
func TestGVisorDoesNotWaitForTheProbe(t *testing.T) {
	i := newProbeStage(t).agent()
	if p, usable := of(i); usable != "gvisor" || p.Usable || !p.Time.IsZero() || !strings.Contains(p.Message, "not known yet") {
		t.Errorf("usable %q, microvm %+v", usable, p)
	}
}

func TestProbe(t *testing.T) {
	for name, tc := range map[string]struct {
		change      func(*testing.T, *probeStage)
		usable      string
		accelerator v1alpha1.Accelerator
		message     string
		asked       int
	}{
		"emulation": {func(*testing.T, *probeStage) {}, "gvisor microvm", "tcg", "no usable KVM", 1},
		"KVM": {func(_ *testing.T, s *probeStage) {
			s.prober.accelerator, s.prober.reason = v1alpha1.AcceleratorKVM, "it boots"
		},
			"gvisor microvm", "kvm", "it boots", 1},
		"it does not boot": {func(_ *testing.T, s *probeStage) { s.prober.err = errors.New("no space in /dev/shm: free some") }, "gvisor", "", "no space in /dev/shm: free some", 1},
		"no QEMU": {func(t *testing.T, _ *probeStage) { t.Setenv("PATH", t.TempDir()) }, "gvisor", "",
			"command qemu-system-x86_64 is missing: install Debian package qemu-system-x86", 0},
		"no guest image": {func(t *testing.T, s *probeStage) {
			if err := os.RemoveAll(layout.Guest(s.binDir)); err != nil {
				t.Fatal(err)
			}
		}, "gvisor", "", "/vmlinux is missing: run make guest", 0},
		"no runsc": {func(t *testing.T, s *probeStage) {
			if err := os.Remove(filepath.Join(s.binDir, "runsc")); err != nil {
				t.Fatal(err)
			}
		}, "microvm", "tcg", "no usable KVM", 1},
	} {
		t.Run(name, func(t *testing.T) {
			s := newProbeStage(t)
			tc.change(t, s)
			i := s.agent()
			i.look(t.Context())
			p, usable := of(i)
			if usable != tc.usable || p.Accelerator != tc.accelerator || !strings.Contains(p.Message, tc.message) || s.prober.asked != tc.asked {
				t.Errorf("usable %q, microvm %+v, asked %d times", usable, p, s.prober.asked)
			}
			if !p.Time.Time.Equal(s.clock) || strings.Contains(p.Message, "\n") {
				t.Errorf("found out at %v: %q, want the time and one line", p.Time, p.Message)
			}
			if len(i.changed) != 1 {
				t.Error("the result is not reported at once")
			}
		})
	}
}

// TestProbeIsKept: over restarts of the agent, until the machine boots again or something changes; failures are tried again.
func TestProbeIsKept(t *testing.T) {
	s := newProbeStage(t)
	asks := func(what string, want int) {
		t.Helper()
		before := s.prober.asked
		i := s.agent()
		_, early := of(i)
		i.look(t.Context())
		if got := s.prober.asked - before; got != want {
			t.Errorf("%s: tried %d times, want %d", what, got, want)
		}
		if _, usable := of(i); want == 0 && usable != early {
			t.Errorf("%s: a new agent says %q at first and %q in the end", what, early, usable)
		}
	}
	asks("first", 1)
	asks("a new agent", 0)
	s.boot = "second"
	asks("another boot", 1)
	later := time.Now().Add(time.Hour)
	if err := os.Chtimes(guestFiles(s.binDir)[0], later, later); err != nil {
		t.Fatal(err)
	}
	s.prober.err = errors.New("it does not boot")
	asks("another kernel", 1)
	asks("a new agent after a failure", 0)
	s.clock, s.prober.err = s.clock.Add(retry), nil
	asks("a while after a failure", 1)
	if err := os.WriteFile(s.dirs.MicroVMProbe(), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	asks("a damaged file", 1)
}

// TestInterruptedProbe says nothing about the machine.
func TestInterruptedProbe(t *testing.T) {
	s := newProbeStage(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	s.prober.err = context.Canceled
	i := s.agent()
	i.look(ctx)
	if p, _ := of(i); !p.Time.IsZero() {
		t.Errorf("microvm %+v", p)
	}
	if _, err := os.Stat(s.dirs.MicroVMProbe()); err == nil {
		t.Error("an interrupted try was kept")
	}
}

// TestCgroupSize: a machine's guest reaches its own limit before the cgroup's.
func TestCgroupSize(t *testing.T) {
	for _, tc := range []struct {
		isolation    v1alpha1.Isolation
		memory, want string
	}{
		{v1alpha1.IsolationGVisor, "2Gi", "2Gi"},
		{v1alpha1.IsolationMicroVM, "2Gi", "2176Mi"},
		{v1alpha1.IsolationMicroVM, "64Mi", "384Mi"},
	} {
		spec := v1alpha1.BerthSpec{Isolation: tc.isolation, Size: v1alpha1.Size{CPU: resource.MustParse("1"), Memory: resource.MustParse(tc.memory)}}
		if got := cgroupSize(spec); got.Memory.String() != tc.want || got.CPU.String() != "1" {
			t.Errorf("%s of %s: %s, %s CPU; want %s", tc.isolation, tc.memory, got.Memory.String(), got.CPU.String(), tc.want)
		}
		if spec.Size.Memory.String() != tc.memory {
			t.Error("the berth itself was changed")
		}
	}
}
