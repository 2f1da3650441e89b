package hostagent

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/microvm/template"
	"github.com/berth-run/berth/internal/microvm/vmm"
	"github.com/berth-run/berth/internal/microvm/vmm/vmmtest"
)

// newFakeMachines has drivers without virtualization, which fail with what is in unavailable.
func newFakeMachines(t *testing.T, unavailable map[v1alpha1.Accelerator]error) *machines {
	t.Helper()
	run, err := os.MkdirTemp("/tmp", "berth") // paths of sockets are short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(run) })
	o := Options{BinDir: t.TempDir(), Dirs: layout.Dirs{State: t.TempDir(), Run: run}}
	if err := os.MkdirAll(layout.Guest(o.BinDir), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range guestFiles(o.BinDir) {
		if err := os.WriteFile(f, []byte(filepath.Base(f)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	o.Driver = func(_ Options, a v1alpha1.Accelerator) vmm.Driver { return &vmmtest.Fake{Unavailable: unavailable[a]} }
	return newMachines(o)
}

func TestMachinesProbe(t *testing.T) {
	const kvm, tcg = v1alpha1.AcceleratorKVM, v1alpha1.AcceleratorTCG
	for name, tc := range map[string]struct {
		unavailable map[v1alpha1.Accelerator]error
		want        v1alpha1.Accelerator
		says        string
	}{
		"KVM":       {nil, kvm, "its guest boots under KVM"},
		"emulation": {map[v1alpha1.Accelerator]error{kvm: errors.New("/dev/kvm is missing\nload the module")}, tcg, "/dev/kvm is missing; load the module"},
		"nothing": {map[v1alpha1.Accelerator]error{kvm: errors.New("/dev/kvm is missing"), tcg: errors.New(strings.Repeat("long ", 100))}, "",
			strings.Repeat("long ", briefLength/5) + " ... (by emulation; under KVM: /dev/kvm is missing)"},
	} {
		t.Run(name, func(t *testing.T) {
			got, says, err := newFakeMachines(t, tc.unavailable).Probe(t.Context())
			if err != nil {
				says = err.Error()
			}
			if got != tc.want || says != tc.says || (err != nil) != (tc.want == "") {
				t.Errorf("got %q, %q\nwant %q, %q", got, says, tc.want, tc.says)
			}
		})
	}
}

// TestMachinesGiveTemplates: shims get templates from when it is known by what machines run, and from the next agent.
func TestMachinesGiveTemplates(t *testing.T) {
	m := newFakeMachines(t, nil)
	for range 2 {
		ctx, stop := context.WithCancel(t.Context())
		ended := make(chan error, 1)
		go func() { ended <- m.run(ctx) }()
		for _, a := range []v1alpha1.Accelerator{v1alpha1.AcceleratorTCG, v1alpha1.AcceleratorTCG, v1alpha1.AcceleratorKVM} {
			m.Use(a)
		}
		waitUntil(t, "a template is given", func() bool {
			loaded, err := template.Take(ctx, m.dirs.TemplateSocket(), 1)
			return err == nil && loaded.Close() == nil
		})
		stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

// waitUntil looks until the condition holds; the time only bounds a failure.
func waitUntil(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("waited in vain until " + what)
		}
	}
}
