// Package task serves containerd's task service (version 3) inside the guest: it runs containers with crun and keeps what the host asks
// about them. For internal/microvm/guest only, as process 1 of a guest.
//
// A container is known from Create to Delete, a process of it from Create or Exec. A process goes from created to running to stopped. crun runs once for a
// container's start (Create only mounts its root file system), once for each exec, and once for its deletion; everything else the
// service does itself, through the container's control group.
package task

import (
	"context"
	"fmt"
	"sync"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berth-run/berth/internal/microvm/guest/machine"
	"github.com/berth-run/berth/internal/microvm/guest/reaper"
	"github.com/berth-run/berth/internal/microvm/guestapi"
)

// Service is containerd's task service. Its methods return ttrpc's errors.
type Service struct {
	reaper *reaper.Reaper
	disks  *machine.Disks
	oom    *oomWatcher

	mu         sync.Mutex
	containers map[string]*container
}

var _ api.TTRPCTaskService = (*Service)(nil)

// New makes a service without containers. It calls event, from any goroutine, for what happens by itself.
func New(reaper *reaper.Reaper, disks *machine.Disks, event func(guestapi.Event)) (*Service, error) {
	oom, err := newOOMWatcher(event)
	if err != nil {
		return nil, err
	}
	return &Service{reaper: reaper, disks: disks, oom: oom, containers: map[string]*container{}}, nil
}

// container finds one by its id.
func (s *Service) container(id string) (*container, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c := s.containers[id]
	if c == nil {
		return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	return c, nil
}

// process finds a container's first process (exec is empty) or another one.
func (s *Service) process(id, exec string) (*container, *process, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, nil, err
	}
	p, err := c.process(exec)
	return c, p, err
}

// Stream is one of a process's streams, for OpStdio.
func (s *Service) Stream(which *guestapi.Stdio) (*Stream, error) {
	_, p, err := s.process(which.ID, which.Exec)
	if err != nil {
		return nil, err
	}
	return p.streams.get(which.FD)
}

// Create mounts the container's root file system. Its process has no id yet.
func (s *Service) Create(ctx context.Context, r *api.CreateTaskRequest) (*api.CreateTaskResponse, error) {
	s.mu.Lock()
	if s.containers[r.ID] != nil {
		s.mu.Unlock()
		return nil, errgrpc.ToGRPCf(errdefs.ErrAlreadyExists, "container %s", r.ID)
	}
	c := &container{id: r.ID, service: s, execs: map[string]*process{}}
	c.create.Lock()
	defer c.create.Unlock()
	s.containers[r.ID] = c
	s.mu.Unlock()
	if err := c.prepare(ctx, r); err != nil {
		c.remove()
		s.forget(r.ID)
		return nil, errgrpc.ToGRPC(fmt.Errorf("create container %s: %w", r.ID, err))
	}
	return &api.CreateTaskResponse{}, nil
}

func (s *Service) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, id)
}

// Start starts a created process. If that fails the process counts as stopped.
func (s *Service) Start(_ context.Context, r *api.StartRequest) (*api.StartResponse, error) {
	c, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	pid, err := c.start(p)
	if err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("start %s: %w", p.name(), err))
	}
	return &api.StartResponse{Pid: uint32(pid)}, nil
}

// Exec makes another process of a running container; Start starts it.
func (s *Service) Exec(_ context.Context, r *api.ExecProcessRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.ID)
	if err == nil {
		err = c.addExec(r)
	}
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &emptypb.Empty{}, nil
}

// Delete forgets a process that is not running; with a container's first process goes the container and what it wrote.
func (s *Service) Delete(_ context.Context, r *api.DeleteRequest) (*api.DeleteResponse, error) {
	c, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	if err := p.retire(); err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	if p.exec != "" {
		c.forgetExec(p)
	} else {
		c.remove()
		s.forget(c.id)
	}
	pid, status := p.exited()
	return &api.DeleteResponse{Pid: uint32(pid), ExitStatus: uint32(status.Status), ExitedAt: timestamppb.New(status.Time)}, nil
}

// Wait waits until the process has ended.
func (s *Service) Wait(ctx context.Context, r *api.WaitRequest) (*api.WaitResponse, error) {
	_, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return nil, errgrpc.ToGRPC(ctx.Err())
	}
	_, exit := p.exited()
	return &api.WaitResponse{ExitStatus: uint32(exit.Status), ExitedAt: timestamppb.New(exit.Time)}, nil
}

// Kill sends a signal to a process, or to all of the container.
func (s *Service) Kill(_ context.Context, r *api.KillRequest) (*emptypb.Empty, error) {
	c, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	if r.All && p.exec == "" {
		err = c.killAll(int(r.Signal))
	} else {
		err = p.kill(int(r.Signal))
	}
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &emptypb.Empty{}, nil
}

// State tells what a process is doing.
func (s *Service) State(_ context.Context, r *api.StateRequest) (*api.StateResponse, error) {
	c, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	state := p.describe()
	state.ID, state.Bundle = c.id, c.dir()
	if c.isPaused() {
		state.Status = pausedStatus(state.Status)
	}
	return state, nil
}
