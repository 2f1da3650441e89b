// Package guest is the agent of a microVM: process 1 of the guest. It makes the machine out of an initramfs, and serves the host on the agent port as package
// guestapi says. cmd/berth-guest runs it; nothing else imports it.
//
// While a template is made it boots, runs one container to warm the caches that all clones then share, and answers Ping. Everything that must differ between
// clones comes after the restore, with the host's first request.
package guest

import (
	"context"
	"log/slog"
	"os"
	"runtime/debug"

	"github.com/berth-run/berth/internal/microvm/guest/machine"
	"github.com/berth-run/berth/internal/microvm/guest/reaper"
	"github.com/berth-run/berth/internal/microvm/guest/task"
)

// Agent is what serves the host.
type Agent struct {
	disks   *machine.Disks
	mounter *machine.Mounter
	tasks   *task.Service
	events  *events
	// seal closes the port to all but the host that has connected.
	seal func()
}

// Run boots the machine and serves until something fails that nothing can mend: then the machine is to end.
func Run(ctx context.Context) error {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stderr, nil)))
	slog.Info("process 1 runs") // this and the like are signs of life to a host that waits for them
	a := &Agent{disks: machine.NewDisks(), events: newEvents()}
	if err := machine.Boot(ctx, a.disks); err != nil {
		return err
	}
	slog.Info("the machine is up")
	children := reaper.New()
	a.mounter = &machine.Mounter{Disks: a.disks, Reaper: children}
	var err error
	if a.tasks, err = task.New(children, a.disks, a.events.add); err != nil {
		return err
	}
	if err := a.tasks.Warm(ctx); err != nil {
		return err
	}
	slog.Info("containers run")
	port, err := listen()
	if err != nil {
		return err
	}
	a.seal = port.Seal
	// The heap as small as it gets: clones share it for as long as they do not write to it.
	debug.FreeOSMemory()
	collectOnDemand()
	return a.serve(ctx, port)
}
