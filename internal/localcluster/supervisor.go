package localcluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/berth-run/berth/internal/layout"
)

const (
	pollReady   = 50 * time.Millisecond
	stopLimit   = 15 * time.Second
	restartMin  = 500 * time.Millisecond
	restartMax  = 30 * time.Second
	maxLogBytes = 64 << 20
)

// PartStatus is what `berth status` shows of a part.
type PartStatus struct {
	Name     string    `json:"name"`
	Ready    bool      `json:"ready"`
	PID      int       `json:"pid,omitempty"`
	Restarts int       `json:"restarts"`
	Since    time.Time `json:"since"`
	Log      string    `json:"log"`
	Problem  string    `json:"problem,omitempty"`
}

// Status of the local cluster.
type Status struct {
	Ready bool `json:"ready"`
	// Failed says, once, why the start was given up.
	Failed string       `json:"failed,omitempty"`
	Parts  []PartStatus `json:"parts"`
}

// supervisor starts the parts in order of need, keeps them running and stops them.
type supervisor struct {
	dirs   layout.Dirs
	binDir string
	parts  []part
	// steps run once each, when what they need is ready; parts may need them by name.
	steps []step
	// drain stops the pods; it runs between the host agent's end and that of the rest.
	drain func()

	mu     sync.Mutex
	status map[string]*PartStatus
	done   map[string]chan struct{}
	failed string
}

const (
	bootstrapStep = "bootstrap"
	systemStep    = "system"
	agentPart     = "berth-host"
)

// step is something to be done once at each start.
type step struct {
	name  string
	needs []string
	run   func(ctx context.Context) error
}

func newSupervisor(dirs layout.Dirs, binDir string, parts []part, steps []step) *supervisor {
	s := &supervisor{dirs: dirs, binDir: binDir, parts: parts, steps: steps, status: map[string]*PartStatus{}, done: map[string]chan struct{}{}}
	for _, name := range s.order() {
		s.done[name] = make(chan struct{})
		s.status[name] = &PartStatus{Name: name, Log: s.logPath(name)}
	}
	return s
}

func (s *supervisor) logPath(name string) string { return filepath.Join(s.dirs.Log, name+".log") }

// run keeps the parts running until ctx ends or one cannot be started; then it stops all, the latest first.
func (s *supervisor) run(ctx context.Context) error {
	runCtx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	finished := make(map[string]chan struct{})
	cancels := make(map[string]context.CancelFunc)
	for _, p := range s.parts {
		partCtx, stop := context.WithCancel(context.WithoutCancel(ctx))
		over := make(chan struct{})
		finished[p.name], cancels[p.name] = over, stop
		wg.Go(func() {
			defer close(over)
			if err := s.keep(runCtx, partCtx, p); err != nil {
				cancel(err)
			}
		})
	}
	for _, step := range s.steps {
		wg.Go(func() {
			if err := s.take(runCtx, step); err != nil && runCtx.Err() == nil {
				cancel(err)
			}
		})
	}
	<-runCtx.Done()
	err := context.Cause(runCtx)
	if errors.Is(err, context.Canceled) {
		err = nil
	} else {
		s.mu.Lock()
		s.failed = err.Error()
		s.mu.Unlock()
	}
	for i := len(s.parts) - 1; i >= 0; i-- {
		cancels[s.parts[i].name]()
		<-finished[s.parts[i].name]
		if s.parts[i].name == agentPart && s.drain != nil {
			s.drain()
		}
	}
	wg.Wait()
	return err
}

func (s *supervisor) take(ctx context.Context, step step) error {
	if err := s.await(ctx, step.needs...); err != nil {
		return nil //nolint:nilerr // the start was given up
	}
	if err := step.run(ctx); err != nil {
		return fmt.Errorf("set the cluster up (%s): %w", step.name, err)
	}
	s.markReady(step.name)
	return nil
}

func (s *supervisor) await(ctx context.Context, names ...string) error {
	for _, n := range names {
		select {
		case <-s.done[n]:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (s *supervisor) markReady(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := s.status[name]
	st.Ready, st.Problem, st.Since = true, "", time.Now()
	select {
	case <-s.done[name]:
	default:
		close(s.done[name])
	}
}

// keep starts a part when what it needs is ready and starts it again when it ends, until stop ends. An error means that
// it never became ready.
func (s *supervisor) keep(start, stop context.Context, p part) error {
	if err := s.await(start, p.needs...); err != nil {
		return nil //nolint:nilerr // the start was given up
	}
	pause := restartMin
	for first := true; ; first = false {
		began := time.Now()
		err := s.once(start, stop, p, first)
		if stop.Err() != nil || start.Err() != nil && first {
			return nil //nolint:nilerr // it was told to end, or the start was given up
		}
		if first && !s.wasReady(p.name) {
			return fmt.Errorf("%s did not start: %w; last line of its log %s: %s", p.name, err, s.logPath(p.name), lastLine(s.logPath(p.name)))
		}
		slog.Error("part ended and is started again", "part", p.name, "error", err)
		s.mu.Lock()
		st := s.status[p.name]
		st.Ready, st.PID, st.Problem = false, 0, fmt.Sprint(err)
		st.Restarts++
		s.mu.Unlock()
		if time.Since(began) > restartMax {
			pause = restartMin
		}
		select {
		case <-time.After(pause):
		case <-stop.Done():
			return nil
		}
		pause = min(2*pause, restartMax)
	}
}

func (s *supervisor) wasReady(name string) bool {
	select {
	case <-s.done[name]:
		return true
	default:
		return false
	}
}

// once runs a part until it ends or stop does.
func (s *supervisor) once(start, stop context.Context, p part, first bool) error {
	log, err := openLog(s.logPath(p.name))
	if err != nil {
		return err
	}
	defer log.Close()
	program := p.program
	if !filepath.IsAbs(program) {
		program = filepath.Join(s.binDir, program)
	}
	cmd := exec.Command(program, p.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Env = append(os.Environ(), "PATH="+s.binDir+":"+os.Getenv("PATH"), "OTEL_TRACES_EXPORTER=none") // nobody collects the registry's traces
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	exited := make(chan error, 1)
	started := make(chan error, 1)
	go func() {
		// The kernel sends Pdeathsig when the thread that started the child ends: this one stays until the child has.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if err := cmd.Start(); err != nil {
			started <- err
			return
		}
		started <- nil
		exited <- cmd.Wait()
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w", p.program, err)
	}
	s.mu.Lock()
	s.status[p.name].PID = cmd.Process.Pid
	s.mu.Unlock()
	limit := time.NewTimer(p.limit)
	defer limit.Stop()
	poll := time.NewTicker(pollReady)
	defer poll.Stop()
	ready := false
	for {
		select {
		case err := <-exited:
			return fmt.Errorf("it ended: %w", orEnded(err))
		case <-stop.Done():
			return end(p.name, cmd, exited)
		case <-limit.C:
			if !ready && first {
				return errors.Join(fmt.Errorf("it was not ready within %s", p.limit), end(p.name, cmd, exited))
			}
		case <-poll.C:
			if ready {
				continue
			}
			if p.ready(start) == nil {
				ready = true
				poll.Stop()
				s.markReady(p.name)
			}
		}
	}
}

func orEnded(err error) error {
	if err == nil {
		return errors.New("exit status 0")
	}
	return err
}

// end stops a child: politely, and after stopLimit for certain.
func end(part string, cmd *exec.Cmd, exited <-chan error) error {
	_ = cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-exited: //nolint:errcheck // it ended because it was told to
		return nil
	case <-time.After(stopLimit):
		slog.Warn("part did not end and is killed", "part", part, "after", stopLimit)
		_ = cmd.Process.Kill()
		<-exited //nolint:errcheck // as above
		return nil
	}
}

func openLog(path string) (*os.File, error) {
	if info, err := os.Stat(path); err == nil && info.Size() > maxLogBytes {
		if err := os.Rename(path, path+".1"); err != nil {
			return nil, fmt.Errorf("rotate log: %w", err)
		}
	}
	f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o640)
	if err != nil {
		return nil, fmt.Errorf("open log: %w", err)
	}
	return f, nil
}

func lastLine(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	lines := strings.Split(strings.TrimSpace(string(data)), "\n")
	return lines[len(lines)-1]
}

// snapshot is the status now.
func (s *supervisor) snapshot() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Status{Ready: s.failed == "", Failed: s.failed}
	for _, name := range s.order() {
		st := *s.status[name]
		out.Ready = out.Ready && st.Ready
		out.Parts = append(out.Parts, st)
	}
	return out
}

func (s *supervisor) order() []string {
	names := make([]string, 0, len(s.parts)+len(s.steps))
	for _, p := range s.parts {
		names = append(names, p.name)
	}
	for _, step := range s.steps {
		names = append(names, step.name)
	}
	return names
}

// serve answers `berth status` on a unix socket until ctx ends.
func (s *supervisor) serve(ctx context.Context) error {
	path := statusSocket(s.dirs)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return fmt.Errorf("serve the cluster's status: %w", err)
	}
	srv := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if err := json.NewEncoder(w).Encode(s.snapshot()); err != nil {
			slog.Error("answer a status request", "error", err)
		}
	})}
	context.AfterFunc(ctx, func() { srv.Close() })
	go srv.Serve(l) //nolint:errcheck // it ends with ctx
	return nil
}

func statusSocket(dirs layout.Dirs) string { return filepath.Join(dirs.Run, "supervisor.sock") }
