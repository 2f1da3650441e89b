package hostagent

import (
	"context"
	"fmt"
	"log/slog"
	"strings"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/microvm/template"
	"github.com/berth-run/berth/internal/microvm/vmm"
)

// briefLength is how much of an error people read in the Host and in events, in bytes; the agent's log has all of it.
const briefLength = 200

// machines tries virtual machines, and holds the memory of their templates for the shims of pods.
type machines struct {
	dirs   layout.Dirs
	guest  template.Guest
	driver func(v1alpha1.Accelerator) vmm.Driver
	// stores of templates: one each, so that who waits for a build fails when that does.
	stores map[v1alpha1.Accelerator]*template.Store
	// wanted is the accelerator that pods' machines use.
	wanted chan v1alpha1.Accelerator
}

var _ prober = (*machines)(nil)

func newMachines(o Options) *machines {
	driver := func(a v1alpha1.Accelerator) vmm.Driver { return o.Driver(o, a) }
	m := &machines{driver: driver, dirs: o.Dirs, guest: template.GuestIn(layout.Guest(o.BinDir)), wanted: make(chan v1alpha1.Accelerator, 1),
		stores: map[v1alpha1.Accelerator]*template.Store{}}
	for _, a := range []v1alpha1.Accelerator{v1alpha1.AcceleratorKVM, v1alpha1.AcceleratorTCG} {
		m.stores[a] = template.NewStore(template.Options{Dir: m.dirs.Templates(), Driver: m.driver(a), Guest: m.guest, Confinement: confinement(),
			Report: func(what string) { slog.Info(what, "accelerator", a) }})
	}
	return m
}

func confinement() vmm.Confinement {
	return vmm.Confinement{UID: layout.TemplateUser, GID: layout.TemplateUser}
}

// Probe implements prober. What proves emulation is the template that pods will start from, which stays.
func (m *machines) Probe(ctx context.Context) (v1alpha1.Accelerator, string, error) {
	kvm := template.Probe(ctx, m.driver(v1alpha1.AcceleratorKVM), m.guest, confinement(), template.ProbeLimit)
	if kvm == nil {
		return v1alpha1.AcceleratorKVM, "its guest boots under KVM", nil
	}
	slog.Info("tried KVM", "error", kvm)
	loaded, err := m.stores[v1alpha1.AcceleratorTCG].Get(ctx, template.Shapes[0])
	if err != nil {
		return "", "", fmt.Errorf("%s (by emulation; under KVM: %s)", brief(err), brief(kvm))
	}
	if err := loaded.Close(); err != nil {
		slog.Warn("let go of a template", "error", err)
	}
	return v1alpha1.AcceleratorTCG, brief(kvm), nil
}

// brief is the beginning of an error, in one line.
func brief(err error) string {
	text := strings.ReplaceAll(err.Error(), "\n", "; ")
	if len(text) > briefLength {
		return strings.ToValidUTF8(text[:briefLength], "") + " ..."
	}
	return text
}

// Use implements prober.
func (m *machines) Use(a v1alpha1.Accelerator) {
	select {
	case <-m.wanted: // nobody has looked at it yet
	default:
	}
	m.wanted <- a
}

// run gives templates to shims, from when it is known by what machines run here, until ctx ends.
func (m *machines) run(ctx context.Context) error {
	var now *holding
	defer func() { now.end() }()
	for {
		select {
		case a := <-m.wanted:
			if !now.serves(a) {
				now.end()
				now = m.begin(ctx, a)
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// holding is the time for which templates of one accelerator are given to shims; nil is none.
type holding struct {
	accelerator v1alpha1.Accelerator
	stop        context.CancelFunc
	ended       chan struct{}
}

func (m *machines) begin(ctx context.Context, a v1alpha1.Accelerator) *holding {
	ctx, stop := context.WithCancel(ctx)
	h := &holding{a, stop, make(chan struct{})}
	go func() {
		defer close(h.ended)
		defer stop()
		m.hold(ctx, a)
	}()
	return h
}

// serves is false also if it has failed.
func (h *holding) serves(a v1alpha1.Accelerator) bool {
	if h == nil || h.accelerator != a {
		return false
	}
	select {
	case <-h.ended:
		return false
	default:
		return true
	}
}

func (h *holding) end() {
	if h != nil {
		h.stop()
		<-h.ended
	}
}

// hold gives templates to shims until ctx ends. The one that most pods need is loaded ahead.
func (m *machines) hold(ctx context.Context, a v1alpha1.Accelerator) {
	holder := template.NewHolder(m.stores[a])
	ahead := make(chan struct{})
	go func() {
		defer close(ahead)
		if err := holder.Preload(ctx, template.Shapes[0]); err != nil && ctx.Err() == nil {
			slog.Error("load the template of the smallest machines; pods try it again", "error", err)
		}
	}()
	if err := holder.Serve(ctx, m.dirs.TemplateSocket()); err != nil {
		slog.Error("give templates to pods; it is tried again", "error", err)
	}
	<-ahead
}
