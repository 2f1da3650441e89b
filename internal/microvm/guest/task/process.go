package task

import (
	"errors"
	"fmt"
	"sync"
	"time"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	taskt "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berth-run/berth/internal/microvm/guest/reaper"
)

type streamNames struct{ stdin, stdout, stderr string }

// process is a container's first process, or one that was added to it (exec).
type process struct {
	container string
	exec      string
	terminal  bool
	names     streamNames
	spec      []byte // of an exec: the OCI runtime configuration's process
	streams   *streams
	// done is closed when the process has ended, or is known never to start.
	done chan struct{}
	// starting is held while crun runs.
	starting sync.Mutex

	mu     sync.Mutex
	status taskt.Status
	pid    int
	exit   reaper.Exit
}

func newProcess(container, exec string, names streamNames, terminal bool) (*process, error) {
	streams, err := newStreams(names, terminal)
	if err != nil {
		return nil, err
	}
	return &process{container: container, exec: exec, names: names, terminal: terminal, streams: streams,
		status: taskt.Status_CREATED, done: make(chan struct{})}, nil
}

func (p *process) name() string {
	if p.exec == "" {
		return "container " + p.container
	}
	return "process " + p.exec + " in container " + p.container
}

func (p *process) startable() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status != taskt.Status_CREATED {
		return fmt.Errorf("it was started before: %w", errdefs.ErrFailedPrecondition)
	}
	return nil
}

func (p *process) run(pid int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pid, p.status = pid, taskt.Status_RUNNING
}

// stop makes the end known, once.
func (p *process) stop(exit reaper.Exit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status == taskt.Status_STOPPED {
		return
	}
	if exit.Time.IsZero() {
		exit.Time = time.Now()
	}
	p.status, p.exit = taskt.Status_STOPPED, exit
	close(p.done)
}

// running is the id of the process while it runs, else 0.
func (p *process) running() (int, taskt.Status) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.status != taskt.Status_RUNNING {
		return 0, p.status
	}
	return p.pid, p.status
}

func (p *process) exited() (int, reaper.Exit) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.pid, p.exit
}

// kill sends a signal. A process that was never started is over with that.
func (p *process) kill(signal int) error {
	p.starting.Lock()
	defer p.starting.Unlock()
	pid, status := p.running()
	switch status {
	case taskt.Status_CREATED:
		p.stop(reaper.Exit{Status: 128 + signal})
		return nil
	case taskt.Status_STOPPED:
		return fmt.Errorf("%s has ended: %w", p.name(), errdefs.ErrNotFound)
	}
	err := unix.Kill(pid, unix.Signal(signal))
	if errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("%s has ended: %w", p.name(), errdefs.ErrNotFound)
	}
	if err != nil {
		return fmt.Errorf("send signal %d to %s: %w", signal, p.name(), err)
	}
	return nil
}

// retire makes sure that the process neither runs nor ever will.
func (p *process) retire() error {
	p.starting.Lock()
	defer p.starting.Unlock()
	if pid, _ := p.running(); pid != 0 {
		return fmt.Errorf("%s is running: %w", p.name(), errdefs.ErrFailedPrecondition)
	}
	p.stop(reaper.Exit{Status: failedStatus})
	return nil
}

func (p *process) describe() *api.StateResponse {
	p.mu.Lock()
	defer p.mu.Unlock()
	state := &api.StateResponse{ExecID: p.exec, Pid: uint32(p.pid), Status: p.status, Terminal: p.terminal,
		Stdin: p.names.stdin, Stdout: p.names.stdout, Stderr: p.names.stderr}
	if p.status == taskt.Status_STOPPED {
		state.ExitStatus, state.ExitedAt = uint32(p.exit.Status), timestamppb.New(p.exit.Time)
	}
	return state
}
