package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

// drainLimit is how long the end of a process waits for the rest of its output, which another process may keep open.
const drainLimit = 5 * time.Second

// removeLimit bounds how long the guest may take to remove a container.
const removeLimit = time.Minute

// createContainer brings a container's file system and volumes into the machine and has the guest prepare it.
func (p *pod) createContainer(ctx context.Context, r *taskapi.CreateTaskRequest, spec *specs.Spec) (*task, error) {
	if r.Checkpoint != "" {
		return nil, errors.New("containers in microVMs cannot be restored from a checkpoint")
	}
	layers, err := layersOf(r.Rootfs)
	if err != nil {
		return nil, err
	}
	t := newTask(p, r, 0)
	var lun int
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		lun, err = p.imageDisk(gctx, layers)
		return err
	})
	g.Go(func() (err error) {
		t.placed, err = p.sync.place(gctx, r.ID, spec)
		return err
	})
	if err := g.Wait(); err != nil {
		return nil, err
	}
	toGuest(spec, r.ID, p.machine.PID())
	raw, err := json.Marshal(spec)
	if err != nil {
		return nil, fmt.Errorf("encode the container's specification: %w", err)
	}
	container, err := json.Marshal(guestapi.Container{Spec: raw, Rootfs: guestapi.Rootfs{LUNs: []int{lun}}})
	if err != nil {
		return nil, fmt.Errorf("encode the container: %w", err)
	}
	created, err := p.guest.Tasks().Create(ctx, &taskapi.CreateTaskRequest{ID: r.ID, Terminal: r.Terminal, Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr,
		Options: &anypb.Any{TypeUrl: guestapi.ContainerType, Value: container}})
	if err != nil {
		return nil, err
	}
	t.pid, t.first.pid = created.Pid, created.Pid
	if err := p.connect(ctx, t.first); err != nil {
		_, _ = p.guest.Tasks().Delete(ctx, &taskapi.DeleteRequest{ID: r.ID})
		return nil, err
	}
	return t, nil
}

// layersOf finds the directories of an image's layers in the mounts that the overlayfs snapshotter asks for, the uppermost first. The
// snapshot's own writable layer is not used: what the container writes is on the pod's ephemeral disk.
func layersOf(mounts []*types.Mount) ([]string, error) {
	if len(mounts) != 1 {
		return nil, fmt.Errorf("the image's file system is made of %d mounts, not of 1: microVMs need the overlayfs snapshotter", len(mounts))
	}
	m := mounts[0]
	if m.Type == "bind" { // an image of one layer, or a read-only view of one
		return []string{m.Source}, nil
	}
	for _, option := range m.Options {
		if lower, ok := strings.CutPrefix(option, "lowerdir="); ok && m.Type == "overlay" {
			return strings.Split(lower, ":"), nil
		}
	}
	return nil, fmt.Errorf("the image's file system is of type %s: microVMs need the overlayfs snapshotter", m.Type)
}

// exec adds a process to a container.
func (p *pod) exec(ctx context.Context, t *task, r *taskapi.ExecProcessRequest) error {
	proc := newProcess(r.ID, r.ExecID, 0, stdio{stdin: r.Stdin, stdout: r.Stdout, stderr: r.Stderr, terminal: r.Terminal})
	if err := t.add(proc); err != nil {
		return err
	}
	if err := processToGuest(r.Spec); err != nil {
		t.forget(r.ExecID)
		return err
	}
	if _, err := p.guest.Tasks().Exec(ctx, r); err != nil {
		t.forget(r.ExecID)
		return err
	}
	if err := p.connect(ctx, proc); err != nil {
		t.forget(r.ExecID)
		_, _ = p.guest.Tasks().Delete(ctx, &taskapi.DeleteRequest{ID: r.ID, ExecID: r.ExecID})
		return err
	}
	return nil
}

// start has the guest run a process.
func (p *pod) start(ctx context.Context, t *task, proc *process) error {
	response, err := p.guest.Tasks().Start(ctx, &taskapi.StartRequest{ID: t.id, ExecID: proc.exec})
	if err != nil {
		return err
	}
	proc.mu.Lock()
	proc.pid = response.Pid
	proc.mu.Unlock()
	if proc.exec == "" {
		t.pid = response.Pid
	}
	return nil
}

// await waits for a process's end in the guest and tells it, when its output and its files are on the host. It calls over first if that was the
// container's.
func (p *pod) await(t *task, proc *process, over func()) {
	ctx := context.Background()
	response, err := p.guest.Tasks().Wait(ctx, &taskapi.WaitRequest{ID: t.id, ExecID: proc.exec})
	if err != nil {
		select {
		case <-p.guest.Done(): // the machine's end says what there is to say
		default:
			logger().Error("wait for a process of the guest", "task", t.id, "exec", proc.exec, "error", err)
			proc.end(p.publisher, killed, timestamppb.Now())
		}
		return
	}
	if proc.exec == "" {
		proc.doom()
		over()
	}
	proc.streams.drain(drainLimit)
	if proc.exec == "" {
		p.bringBack(ctx, t.placed)
	}
	proc.end(p.publisher, response.ExitStatus, response.ExitedAt)
}

// bringBack writes what a container left in its files on the host, such as its termination message.
func (p *pod) bringBack(ctx context.Context, files []returned) {
	for _, f := range files {
		data, err := p.guest.Get(ctx, guestapi.Get{Path: f.guest, Limit: returnedLimit})
		if err == nil {
			err = os.WriteFile(f.host, data, 0o666)
		}
		if err != nil {
			logger().Error("bring a file back from the guest", "file", f.host, "error", err)
		}
	}
}

// remove has the guest forget a process that has ended, and a container with its first one. Nobody needs to wait for that: ids are not used
// again, and as a rule the machine ends next.
func (p *pod) remove(t *task, proc *process) {
	proc.streams.close()
	go func() {
		ctx, cancel := context.WithTimeout(context.Background(), removeLimit)
		defer cancel()
		_, err := p.guest.Tasks().Delete(ctx, &taskapi.DeleteRequest{ID: t.id, ExecID: proc.exec})
		select {
		case <-p.guest.Done(): // it went with the machine
		default:
			if err != nil {
				logger().Error("remove a process from the guest", "task", t.id, "exec", proc.exec, "error", err)
			}
		}
	}()
}

// listen passes on what happens in the guest.
func (p *pod) listen() {
	err := p.guest.Events(context.Background(), func(e guestapi.Event) {
		if e.OOM != "" {
			p.publisher.publish("/tasks/oom", &eventsapi.TaskOOM{ContainerID: e.OOM})
		}
		if e.GuestOOM {
			logger().Warn("the guest has no memory left")
		}
	})
	select {
	case <-p.guest.Done():
	default:
		logger().Error("listen to the guest", "error", err)
	}
}
