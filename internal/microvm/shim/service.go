// Package shim is the containerd runtime of the microvm isolation: one shim process and one virtual machine per pod, all of the
// pod's containers inside. It carries containerd's task service (version 3) into the guest, where package guest serves the same
// one, and brings to it what the guest cannot reach: the images' file systems as disks, the pod's network link, its volumes' files,
// its processes' streams.
//
// The sandbox's own container (the pause container) is the machine itself: creating it restores a machine, killing it ends the machine.
package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	eventsapi "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/emptypb"
	"google.golang.org/protobuf/types/known/timestamppb"
)

// Annotations of a specification by which the CRI tells a pod's sandbox from its containers.
const (
	annotationType = "io.kubernetes.cri.container-type"
	typeContainer  = "container"
)

// killLimit is how long a guest may take to pass on a signal. One that is overloaded takes seconds.
const killLimit = 10 * time.Second

// forceLimit is how long a container may take to end once the guest has killed it. One that takes longer waits in the guest's kernel for what may never come:
// for a share whose server is gone, say.
const forceLimit = 30 * time.Second

// publisher tells containerd what happened.
type publisher interface {
	publish(topic string, event proto.Message)
}

// Service is the task service of one pod.
type Service struct {
	options   Options
	publisher publisher
	// stop ends the shim.
	stop func()

	mu    sync.Mutex
	pod   *pod
	tasks map[string]*task
}

// newService makes the service of a pod that has no machine yet.
func newService(o Options, p publisher, stop func()) *Service {
	return &Service{options: o, publisher: p, stop: stop, tasks: map[string]*task{}}
}

var empty = &emptypb.Empty{}

// Create makes the pod's machine, for the sandbox, or a container in it. Nothing runs in it before Start.
func (s *Service) Create(ctx context.Context, r *taskapi.CreateTaskRequest) (*taskapi.CreateTaskResponse, error) {
	spec, err := readSpec(r.Bundle)
	if err != nil {
		return nil, toStatus(err)
	}
	var t *task
	if spec.Annotations[annotationType] == typeContainer {
		p, perr := s.machine()
		if perr != nil {
			return nil, toStatus(perr)
		}
		if t, err = p.createContainer(ctx, r, spec); err != nil {
			err = p.because(err)
		}
	} else {
		t, err = s.createPod(ctx, r, spec)
	}
	if err != nil {
		return nil, toStatus(err)
	}
	s.mu.Lock()
	s.tasks[r.ID] = t
	s.mu.Unlock()
	s.publisher.publish("/tasks/create", &eventsapi.TaskCreate{ContainerID: r.ID, Bundle: r.Bundle, Rootfs: r.Rootfs, Pid: t.pid,
		IO: &eventsapi.TaskIO{Stdin: r.Stdin, Stdout: r.Stdout, Stderr: r.Stderr, Terminal: r.Terminal}})
	return &taskapi.CreateTaskResponse{Pid: t.pid}, nil
}

// createPod makes the machine, once.
func (s *Service) createPod(ctx context.Context, r *taskapi.CreateTaskRequest, spec *specs.Spec) (*task, error) {
	s.mu.Lock()
	taken := s.pod != nil
	s.mu.Unlock()
	if taken {
		return nil, status.Errorf(codes.AlreadyExists, "the pod's machine exists")
	}
	p, err := newPod(ctx, s.options, r.ID, spec)
	if err != nil {
		return nil, err
	}
	p.publisher = s.publisher
	t := newTask(p, r, uint32(p.machine.PID()))
	t.sandbox = true
	s.mu.Lock()
	s.pod = p
	s.mu.Unlock()
	go s.watch(p, t)
	return t, nil
}

// watch waits for the machine's end and says of everything in it that it has ended, of the sandbox last.
func (s *Service) watch(p *pod, sandbox *task) {
	exit := p.ended()
	why := p.cause(exit)
	oom := errors.Is(why, errHostMemory)
	p.health.end(exit, why.Error()) // before the pod's kubelet replaces it
	s.mu.Lock()
	var others []*task
	for _, t := range s.tasks {
		if t != sandbox {
			others = append(others, t)
		}
	}
	s.mu.Unlock()
	for _, t := range others {
		if oom {
			s.publisher.publish("/tasks/oom", &eventsapi.TaskOOM{ContainerID: t.id})
		}
		t.machineEnded(s.publisher)
	}
	sandbox.end(s.publisher, killed, timestamppb.Now())
	logger().Info("the machine has ended", "reason", exit.Reason, "why", why)
}

func readSpec(bundle string) (*specs.Spec, error) {
	data, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return nil, fmt.Errorf("read the container's specification: %w", err)
	}
	var spec specs.Spec
	if err := json.Unmarshal(data, &spec); err != nil {
		return nil, fmt.Errorf("the container's specification is not valid: %w", err)
	}
	return &spec, nil
}

// machine is the pod, once it is there.
func (s *Service) machine() (*pod, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.pod == nil {
		return nil, status.Error(codes.FailedPrecondition, "the pod has no machine yet")
	}
	return s.pod, nil
}

func (s *Service) task(id string) (*task, *pod, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.tasks[id]
	if !ok {
		return nil, nil, status.Errorf(codes.NotFound, "task %s does not exist", id)
	}
	return t, s.pod, nil
}

// process finds a task's process; exec is empty for its first.
func (s *Service) process(id, exec string) (*process, *task, *pod, error) {
	t, p, err := s.task(id)
	if err != nil {
		return nil, nil, nil, err
	}
	proc, err := t.process(exec)
	return proc, t, p, err
}

// Start runs a process that was created.
func (s *Service) Start(ctx context.Context, r *taskapi.StartRequest) (*taskapi.StartResponse, error) {
	proc, t, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if !t.sandbox {
		if err := p.start(ctx, t, proc); err != nil {
			return nil, toStatus(p.because(err))
		}
	}
	proc.started(proc.pid)
	if !t.sandbox {
		if err := p.quota.restore(); err != nil {
			return nil, toStatus(err)
		}
	}
	if r.ExecID == "" {
		s.publisher.publish("/tasks/start", &eventsapi.TaskStart{ContainerID: r.ID, Pid: proc.pid})
	} else {
		s.publisher.publish("/tasks/exec-started", &eventsapi.TaskExecStarted{ContainerID: r.ID, ExecID: r.ExecID, Pid: proc.pid})
	}
	if !t.sandbox {
		go p.await(t, proc, func() { s.relax(p) })
	}
	return &taskapi.StartResponse{Pid: proc.pid}, nil
}

// Delete removes a process that has ended; a task with its first one.
func (s *Service) Delete(_ context.Context, r *taskapi.DeleteRequest) (*taskapi.DeleteResponse, error) {
	proc, t, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if proc.status() == tasktypes.Status_RUNNING {
		return nil, status.Errorf(codes.FailedPrecondition, "process %s%s still runs", r.ID, r.ExecID)
	}
	if t.sandbox {
		p.close()
	} else {
		p.remove(t, proc)
	}
	code, at := proc.exit()
	if r.ExecID != "" {
		t.forget(r.ExecID)
	} else {
		s.mu.Lock()
		delete(s.tasks, r.ID)
		s.mu.Unlock()
		s.publisher.publish("/tasks/delete", &eventsapi.TaskDelete{ContainerID: r.ID, Pid: proc.pid, ExitStatus: code, ExitedAt: at})
	}
	return &taskapi.DeleteResponse{Pid: proc.pid, ExitStatus: code, ExitedAt: at}, nil
}

// Exec adds a process to a container; Start runs it.
func (s *Service) Exec(ctx context.Context, r *taskapi.ExecProcessRequest) (*emptypb.Empty, error) {
	t, p, err := s.task(r.ID)
	if err != nil {
		return nil, err
	}
	if t.sandbox {
		return nil, status.Error(codes.Unimplemented, "the sandbox of a microVM has no process that others could join")
	}
	if err := p.exec(ctx, t, r); err != nil {
		return nil, toStatus(err)
	}
	s.publisher.publish("/tasks/exec-added", &eventsapi.TaskExecAdded{ContainerID: r.ID, ExecID: r.ExecID})
	return empty, nil
}

// State describes a process.
func (s *Service) State(_ context.Context, r *taskapi.StateRequest) (*taskapi.StateResponse, error) {
	proc, t, _, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	code, at := proc.exit()
	return &taskapi.StateResponse{ID: r.ID, Bundle: t.bundle, Pid: proc.pid, Status: proc.status(), Stdin: proc.io.stdin, Stdout: proc.io.stdout,
		Stderr: proc.io.stderr, Terminal: proc.io.terminal, ExitStatus: code, ExitedAt: at, ExecID: r.ExecID}, nil
}

// Wait returns when a process has ended.
func (s *Service) Wait(ctx context.Context, r *taskapi.WaitRequest) (*taskapi.WaitResponse, error) {
	proc, _, _, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	select {
	case <-proc.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	code, at := proc.exit()
	return &taskapi.WaitResponse{ExitStatus: code, ExitedAt: at}, nil
}

// Kill signals a process. The sandbox is the machine: any signal that would end a process ends it.
func (s *Service) Kill(ctx context.Context, r *taskapi.KillRequest) (*emptypb.Empty, error) {
	proc, t, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, err
	}
	if proc.status() == tasktypes.Status_STOPPED {
		return nil, status.Errorf(codes.NotFound, "process %s%s has ended", r.ID, r.ExecID)
	}
	if t.sandbox {
		return empty, toStatus(p.machine.Kill())
	}
	if proc.status() == tasktypes.Status_CREATED && r.ExecID == "" {
		t.end(s.publisher, killed, timestamppb.Now())
		return empty, nil
	}
	if err := p.kill(ctx, r); err != nil {
		return nil, err
	}
	if r.ExecID == "" && unix.Signal(r.Signal) == unix.SIGKILL {
		proc.doom()
		s.relax(p)
		go p.enforce(proc)
	}
	return empty, nil
}

// enforce ends the machine if a container that was killed does not end.
func (p *pod) enforce(proc *process) {
	select {
	case <-proc.done:
	case <-time.After(forceLimit):
		logger().Warn("a container that was killed does not end; its machine is ended", "task", proc.id, "after", forceLimit)
		if err := p.machine.Kill(); err != nil {
			logger().Error("the machine cannot be ended", "error", err)
		}
	}
}

// kill has the guest signal a process. One that hangs loses nothing that it could still do: a signal waits for it to go on, and its machine ends if it does not
// even end a process by force.
func (p *pod) kill(ctx context.Context, r *taskapi.KillRequest) error {
	limited, cancel := context.WithTimeout(ctx, killLimit)
	defer cancel()
	_, err := p.guest.Tasks().Kill(limited, r)
	if err == nil || limited.Err() == nil || ctx.Err() != nil {
		return err
	}
	logger().Warn("the guest does not answer", "task", r.ID, "exec", r.ExecID, "signal", r.Signal)
	if unix.Signal(r.Signal) == unix.SIGKILL {
		return toStatus(p.machine.Kill())
	}
	return nil
}

// relax lifts the pod's CPU limit if no container works any more.
func (s *Service) relax(p *pod) {
	if err := p.quota.lift(s.idle); err != nil {
		logger().Error("the pod will end slowly", "error", err)
	}
}

func (s *Service) idle() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.tasks {
		if !t.sandbox && t.first.works() {
			return false
		}
	}
	return true
}

// Connect tells the shim's process id.
func (s *Service) Connect(_ context.Context, r *taskapi.ConnectRequest) (*taskapi.ConnectResponse, error) {
	out := &taskapi.ConnectResponse{ShimPid: uint32(os.Getpid())}
	if t, _, err := s.task(r.ID); err == nil {
		out.TaskPid = t.pid
	}
	return out, nil
}

// Shutdown ends the shim if it has no tasks any more.
func (s *Service) Shutdown(context.Context, *taskapi.ShutdownRequest) (*emptypb.Empty, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.tasks) == 0 {
		s.stop()
	}
	return empty, nil
}

// toStatus makes an error one that crosses ttrpc with its code.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok {
		return err
	}
	code := codes.Unknown
	if errors.Is(err, os.ErrNotExist) {
		code = codes.NotFound
	}
	return status.Error(code, err.Error())
}
