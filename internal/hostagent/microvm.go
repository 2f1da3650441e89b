package hostagent

import (
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"time"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/microvm/disk"
	"github.com/berth-run/berth/internal/microvm/qemu"
	"github.com/berth-run/berth/internal/microvm/template"
	"github.com/berth-run/berth/internal/microvm/vmm"
)

const (
	// kvmLimit is how long a guest may take to boot under KVM, which takes a good one less than a second.
	kvmLimit = 10 * time.Second
	// sweepDisks is how often disks of images that are gone are removed.
	sweepDisks = 10 * time.Minute
)

// machines finds out how this host runs virtual machines, and holds their templates for the shims.
type machines struct {
	dirs   layout.Dirs
	binDir string
	// usable gets the accelerator when it is known.
	usable chan v1alpha1.Accelerator
}

func newMachines(dirs layout.Dirs, binDir string) *machines {
	return &machines{dirs: dirs, binDir: binDir, usable: make(chan v1alpha1.Accelerator, 1)}
}

func (m *machines) driver(accelerator v1alpha1.Accelerator) vmm.Driver {
	return qemu.New(qemu.Options{Acceleration: string(accelerator), Dir: m.dirs.MicroVM(), Jail: filepath.Join(m.binDir, "berth-jail")})
}

func (m *machines) guest() template.Guest { return template.GuestIn(layout.Guest(m.binDir)) }

func (m *machines) confinement() vmm.Confinement {
	return vmm.Confinement{UID: layout.TemplateUser, GID: layout.TemplateUser}
}

func (m *machines) store(accelerator v1alpha1.Accelerator) *template.Store {
	return template.NewStore(template.Options{Dir: m.dirs.Templates(), Driver: m.driver(accelerator), Guest: m.guest(), Confinement: m.confinement()})
}

// Probe boots the guest under KVM, and makes a template without it if that fails.
func (m *machines) Probe(ctx context.Context) (v1alpha1.Accelerator, string, error) {
	refused := template.Probe(ctx, m.driver(v1alpha1.AcceleratorKVM), m.guest(), m.confinement(), kvmLimit)
	if refused == nil {
		return v1alpha1.AcceleratorKVM, "a guest booted under KVM", nil
	}
	if _, err := m.store(v1alpha1.AcceleratorTCG).Build(ctx, template.Shapes[0]); err != nil {
		return "", "", fmt.Errorf("%w; without hardware virtualization: %w", refused, err)
	}
	return v1alpha1.AcceleratorTCG, fmt.Sprintf("a guest booted by emulation (TCG), several times slower than hardware virtualization: %v", refused), nil
}

// found is told what isolations found out.
func (m *machines) found(p v1alpha1.IsolationProbe) {
	if p.Usable && p.Accelerator != "" {
		select {
		case m.usable <- p.Accelerator:
		default:
		}
	}
}

// run holds the templates from the time that it is known how machines run, until ctx ends.
func (m *machines) run(ctx context.Context) error {
	var accelerator v1alpha1.Accelerator
	select {
	case accelerator = <-m.usable:
	case <-ctx.Done():
		return nil
	}
	go m.sweepDisks(ctx)
	holder := template.NewHolder(m.store(accelerator))
	go func() {
		if err := holder.Preload(ctx, template.Shapes[0]); err != nil && ctx.Err() == nil {
			slog.Error("load the template of microVMs", "error", err)
		}
	}()
	return holder.Serve(ctx, m.dirs.TemplateSocket())
}

func (m *machines) sweepDisks(ctx context.Context) {
	tick := time.NewTicker(sweepDisks)
	defer tick.Stop()
	for {
		if err := (disk.Images{Dir: m.dirs.ImageDisks()}).Sweep(); err != nil {
			slog.Error("remove disks of images that are gone", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}
