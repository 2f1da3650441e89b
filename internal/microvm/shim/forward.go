package shim

import (
	"context"
	"fmt"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/anypb"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berth-run/berth/internal/microvm/guestapi"
	"github.com/berth-run/berth/internal/still"
)

// What follows is the guest's business for containers; the sandbox has nothing of the kind.

// container finds the guest's side of a task that is not the sandbox.
func (s *Service) container(id string) (taskapi.TTRPCTaskService, error) {
	t, p, err := s.task(id)
	if err != nil {
		return nil, err
	}
	if t.sandbox {
		return nil, status.Error(codes.Unimplemented, "the sandbox of a microVM is the machine, not a container")
	}
	return p.guest.Tasks(), nil
}

// ResizePty changes the size of a process's terminal.
func (s *Service) ResizePty(ctx context.Context, r *taskapi.ResizePtyRequest) (*emptypb.Empty, error) {
	guest, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	return guest.ResizePty(ctx, r)
}

// CloseIO closes a process's stdin.
func (s *Service) CloseIO(ctx context.Context, r *taskapi.CloseIORequest) (*emptypb.Empty, error) {
	proc, t, _, err := s.process(r.ID, r.ExecID)
	if err != nil || t.sandbox || !r.Stdin {
		return empty, err
	}
	proc.streams.closeStdin()
	return empty, nil
}

// Pids lists the processes of a container, by their ids in the guest.
func (s *Service) Pids(ctx context.Context, r *taskapi.PidsRequest) (*taskapi.PidsResponse, error) {
	t, p, err := s.task(r.ID)
	if err != nil {
		return nil, err
	}
	if t.sandbox {
		return &taskapi.PidsResponse{Processes: []*tasktypes.ProcessInfo{{Pid: t.pid}}}, nil
	}
	return p.guest.Tasks().Pids(ctx, r)
}

// Stats measures a container, or the whole machine for the sandbox.
func (s *Service) Stats(ctx context.Context, r *taskapi.StatsRequest) (*taskapi.StatsResponse, error) {
	t, p, err := s.task(r.ID)
	if err != nil {
		return nil, err
	}
	if t.sandbox {
		stats, err := p.stats()
		if err != nil {
			return nil, toStatus(err)
		}
		packed, err := anypb.New(stats)
		return &taskapi.StatsResponse{Stats: packed}, err
	}
	return t.stats.Get(t.updates.Load(), func() (*taskapi.StatsResponse, error) {
		if err := p.health.err(); err != nil {
			return nil, status.Error(codes.Unavailable, err.Error())
		}
		files, err := p.guest.Measure(ctx, guestapi.Measure{ID: r.ID, Files: measured})
		if err != nil {
			return nil, toStatus(fmt.Errorf("measure container %s: %w", r.ID, err))
		}
		m := metrics(files)
		if taken, err := still.CPU(p.cgroup); err == nil {
			t.cpu.correct(m.CPU, taken/1000)
		}
		packed, err := anypb.New(m)
		return &taskapi.StatsResponse{Stats: packed}, err
	})
}

// Update changes a container's limits while it runs.
func (s *Service) Update(ctx context.Context, r *taskapi.UpdateTaskRequest) (*emptypb.Empty, error) {
	t, p, err := s.task(r.ID)
	if err != nil || t.sandbox {
		return empty, err
	}
	defer t.updates.Add(1)
	return p.guest.Tasks().Update(ctx, r)
}

// Pause freezes a container.
func (s *Service) Pause(ctx context.Context, r *taskapi.PauseRequest) (*emptypb.Empty, error) {
	guest, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	return guest.Pause(ctx, r)
}

// Resume lets a frozen container run on.
func (s *Service) Resume(ctx context.Context, r *taskapi.ResumeRequest) (*emptypb.Empty, error) {
	guest, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	return guest.Resume(ctx, r)
}

// Checkpoint is not served.
func (s *Service) Checkpoint(context.Context, *taskapi.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return nil, status.Error(codes.Unimplemented, "containers in microVMs cannot be checkpointed")
}
