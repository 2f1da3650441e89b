package shim

import (
	"sync"
	"sync/atomic"

	eventsapi "github.com/containerd/containerd/api/events"
	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	tasktypes "github.com/containerd/containerd/api/types/task"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/berth-run/berth/internal/still"
)

// killed is the exit status of what the machine's end took along: 128 and SIGKILL.
const killed = 137

// task is the sandbox or a container, with its processes.
type task struct {
	id, bundle string
	sandbox    bool
	pid        uint32
	// placed are the container's files that are brought back when it ends.
	placed []returned
	// stats is what the container was last measured to use, updates counts what was set since.
	stats   *still.Answer[*taskapi.StatsResponse]
	updates atomic.Uint64
	cpu     cpuTime // of stats

	mu        sync.Mutex
	first     *process
	processes map[string]*process // by exec id
}

// process is a process of a task: its first one, or one that was added with Exec.
type process struct {
	id, exec string // exec is empty for the first
	pid      uint32
	io       stdio
	streams  *streams
	// done is closed when it has ended.
	done chan struct{}

	mu       sync.Mutex
	running  bool
	doomed   bool // it has ended, or SIGKILL is on its way to it
	code     uint32
	exitedAt *timestamppb.Timestamp
}

// stdio is what containerd wants of a process's streams: paths of pipes.
type stdio struct {
	stdin, stdout, stderr string
	terminal              bool
}

func newTask(p *pod, r *taskapi.CreateTaskRequest, pid uint32) *task {
	io := stdio{stdin: r.Stdin, stdout: r.Stdout, stderr: r.Stderr, terminal: r.Terminal}
	return &task{id: r.ID, bundle: r.Bundle, pid: pid, first: newProcess(r.ID, "", pid, io), processes: map[string]*process{},
		stats: still.New[*taskapi.StatsResponse](p.stillAge, func() (uint64, error) { return still.CPU(p.cgroup) })}
}

func newProcess(id, exec string, pid uint32, io stdio) *process {
	return &process{id: id, exec: exec, pid: pid, io: io, streams: &streams{}, done: make(chan struct{})}
}

func (t *task) process(exec string) (*process, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if exec == "" {
		return t.first, nil
	}
	if p, ok := t.processes[exec]; ok {
		return p, nil
	}
	return nil, status.Errorf(codes.NotFound, "process %s of task %s does not exist", exec, t.id)
}

func (t *task) add(p *process) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, taken := t.processes[p.exec]; taken {
		return status.Errorf(codes.AlreadyExists, "process %s of task %s exists", p.exec, t.id)
	}
	t.processes[p.exec] = p
	return nil
}

func (t *task) forget(exec string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.processes, exec)
}

// end says that the task's first process has ended.
func (t *task) end(to publisher, code uint32, at *timestamppb.Timestamp) { t.first.end(to, code, at) }

// machineEnded says of every process that it ended with the machine; of the first one last, as containerd expects.
func (t *task) machineEnded(to publisher) {
	t.mu.Lock()
	var all []*process
	for _, p := range t.processes {
		all = append(all, p)
	}
	t.mu.Unlock()
	for _, p := range append(all, t.first) {
		p.streams.close()
		p.end(to, killed, timestamppb.Now())
	}
}

// started notes that the process runs.
func (p *process) started(pid uint32) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pid, p.running = pid, true
}

// doom notes that nothing of the process runs any more, at most what the kernel does to end it.
func (p *process) doom() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.doomed = true
}

// works tells whether the process runs, and may go on to.
func (p *process) works() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.running && !p.doomed
}

// end notes the process's end and tells it, once.
func (p *process) end(to publisher, code uint32, at *timestamppb.Timestamp) {
	p.mu.Lock()
	if p.exitedAt != nil {
		p.mu.Unlock()
		return
	}
	p.running, p.code, p.exitedAt = false, code, at
	pid := p.pid
	p.mu.Unlock()
	id := p.exec
	if id == "" {
		id = p.id
	}
	to.publish("/tasks/exit", &eventsapi.TaskExit{ContainerID: p.id, ID: id, Pid: pid, ExitStatus: code, ExitedAt: at})
	close(p.done)
}

func (p *process) status() tasktypes.Status {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch {
	case p.exitedAt != nil:
		return tasktypes.Status_STOPPED
	case p.running:
		return tasktypes.Status_RUNNING
	default:
		return tasktypes.Status_CREATED
	}
}

func (p *process) exit() (uint32, *timestamppb.Timestamp) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.code, p.exitedAt
}
