package localcluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/layout"
)

// patience bounds waits for what takes milliseconds on an idle machine.
const patience = 30 * time.Second

// stage is where the parts of a test play: each writes what happens to it into one file.
type stage struct {
	t    *testing.T
	dirs layout.Dirs
}

func newStage(t *testing.T) *stage {
	t.Helper()
	top := t.TempDir()
	dirs := layout.Dirs{State: filepath.Join(top, "state"), Run: filepath.Join(top, "run"), Log: filepath.Join(top, "log")}
	for _, d := range []string{dirs.State, dirs.Run, dirs.Log} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return &stage{t, dirs}
}

func (s *stage) file(name string) string { return filepath.Join(s.dirs.State, name) }

func (s *stage) there(name string) error {
	_, err := os.Stat(s.file(name))
	return err
}

// part starts and stops as the script says, and is ready when the script has made file NAME.ready.
func (s *stage) part(name, script string, needs ...string) part {
	return part{name: name, program: "/bin/sh", args: []string{"-c", script, name}, needs: needs, limit: patience,
		ready: func(context.Context) error { return s.there(name + ".ready") }}
}

// steady says when it starts, becomes ready and says when it is told to stop.
func (s *stage) steady(name string, needs ...string) part {
	return s.part(name, fmt.Sprintf(`echo start %[1]s >> %[2]s; trap 'echo stop %[1]s >> %[2]s; exit 0' TERM; touch %[3]s; while :; do sleep 0.01; done`,
		name, s.file("story"), s.file(name+".ready")), needs...)
}

func (s *stage) story() string {
	data, err := os.ReadFile(s.file("story"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		s.t.Fatal(err)
	}
	return strings.Join(strings.Split(strings.TrimSpace(string(data)), "\n"), ", ")
}

func (s *stage) tell(line string) {
	f, err := os.OpenFile(s.file("story"), os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = fmt.Fprintln(f, line)
	}
	if err = errors.Join(err, f.Close()); err != nil {
		s.t.Error(err)
	}
}

// play runs the supervisor; the returned functions stop it and give its error.
func (s *stage) play(sup *supervisor) (stop func(), end func() error) {
	ctx, cancel := context.WithCancel(s.t.Context())
	var err error
	over := make(chan struct{})
	go func() {
		defer close(over)
		err = sup.run(ctx)
	}()
	s.t.Cleanup(func() { cancel(); <-over })
	return cancel, sync.OnceValue(func() error {
		select {
		case <-over:
		case <-time.After(patience):
			s.t.Fatalf("the supervisor does not end: %+v", sup.snapshot())
		}
		return err
	})
}

func (s *stage) until(what string, holds func() bool) {
	s.t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			s.t.Fatalf("not within %s: %s; so far: %s", patience, what, s.story())
		}
	}
}

// TestOrder: a part starts when what it needs is ready, all stop in the opposite order, and the pods between the agent and
// what they need.
func TestOrder(t *testing.T) {
	s := newStage(t)
	first := s.steady("first")
	open := make(chan struct{})
	first.ready = func(context.Context) error {
		select {
		case <-open:
			return nil
		default:
			return errors.New("not yet")
		}
	}
	sup := newSupervisor(s.dirs, "", []part{first, s.steady("second", "first"), s.steady(agentPart, "second", "step")},
		[]step{{name: "step", needs: []string{"first"}, run: func(context.Context) error { s.tell("step"); return nil }}})
	sup.drain = func() { s.tell("drain") }
	stop, end := s.play(sup)
	s.until("the first part runs", func() bool { return s.there("first.ready") == nil })
	if s.story() != "start first" || sup.snapshot().Ready {
		t.Errorf("before the first part is ready: %s", s.story())
	}
	close(open)
	s.until("all is ready", func() bool { return sup.snapshot().Ready })
	story := s.story()
	if !strings.HasPrefix(story, "start first, ") || !strings.HasSuffix(story, "start "+agentPart) || !strings.Contains(story, "step") {
		t.Errorf("started: %s", story)
	}
	stop()
	if err := end(); err != nil {
		t.Error(err)
	}
	if got := strings.TrimPrefix(s.story(), story); got != ", stop berth-host, drain, stop second, stop first" {
		t.Errorf("stopped: %s", got)
	}
}

// TestRestart: a part that ends is started again, and others do not notice.
func TestRestart(t *testing.T) {
	s := newStage(t)
	sup := newSupervisor(s.dirs, "", []part{s.steady("one"), s.steady("two", "one")}, nil)
	s.play(sup)
	s.until("all is ready", func() bool { return sup.snapshot().Ready })
	before := sup.snapshot().Parts
	if err := unix.Kill(before[0].PID, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	s.until("it was started again", func() bool {
		now := sup.snapshot()
		return now.Ready && now.Parts[0].Restarts == 1 && now.Parts[0].PID != before[0].PID
	})
	if now := sup.snapshot().Parts[1]; now.PID != before[1].PID || now.Restarts != 0 {
		t.Errorf("the other part was %+v, is %+v", before[1], now)
	}
}

// TestFailedStart: each way in which the start fails is one sentence with its reason, and nothing goes on running.
func TestFailedStart(t *testing.T) {
	tests := map[string]struct {
		broken func(*stage) part
		step   error
		want   string
	}{
		"a part ends": {func(s *stage) part { return s.part("broken", "echo no such luck; exit 3") }, nil,
			"broken did not start: it ended: exit status 3; last line of its log LOG/broken.log: no such luck"},
		"a part ends without an error": {func(s *stage) part { return s.part("broken", "exit 0") }, nil, "broken did not start: it ended: exit status 0"},
		"a part does not become ready": {func(s *stage) part {
			p := s.part("broken", "exec sleep 600")
			p.limit = 100 * time.Millisecond
			return p
		}, nil, "broken did not start: it was not ready within 100ms"},
		"a program is missing": {func(s *stage) part { p := s.steady("broken"); p.program = "/no/such/program"; return p }, nil,
			"broken did not start: start /no/such/program: fork/exec /no/such/program: no such file or directory"},
		"a step fails": {func(s *stage) part { return s.steady("broken") }, errors.New("the types are not served"),
			"set the cluster up (step): the types are not served"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			s := newStage(t)
			sup := newSupervisor(s.dirs, "", []part{s.steady("good"), test.broken(s), s.steady("never", "broken", "step")},
				[]step{{name: "step", needs: []string{"good"}, run: func(context.Context) error { return test.step }}})
			_, end := s.play(sup)
			err := end()
			if want := strings.ReplaceAll(test.want, "LOG", s.dirs.Log); err == nil || !strings.HasPrefix(err.Error(), want) {
				t.Errorf("got  %v\nwant %s", err, want)
			}
			if status := sup.snapshot(); status.Ready || status.Failed != err.Error() {
				t.Errorf("the status says %+v", status)
			}
			for _, p := range sup.snapshot().Parts {
				if p.PID != 0 && unix.Kill(p.PID, 0) == nil {
					t.Errorf("%s still runs", p.Name)
				}
			}
			if strings.Contains(s.story(), "start never") {
				t.Error("a part was started whose needs were not met")
			}
		})
	}
}

// TestStatusSocket asks as `berth status` does.
func TestStatusSocket(t *testing.T) {
	s := newStage(t)
	if _, err := GetStatus(t.Context(), s.dirs); !errors.Is(err, ErrNotRunning) {
		t.Errorf("without a supervisor: %v", err)
	}
	sup := newSupervisor(s.dirs, "", []part{s.steady("one")}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if err := sup.serve(ctx); err != nil {
		t.Fatal(err)
	}
	status, err := GetStatus(t.Context(), s.dirs)
	if err != nil || status.Ready || len(status.Parts) != 1 || status.Parts[0].Name != "one" || status.Parts[0].Log != filepath.Join(s.dirs.Log, "one.log") {
		t.Errorf("%+v, %v", status, err)
	}
}

func TestLogsAreRotated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "part.log")
	if err := os.WriteFile(path, []byte("old\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, maxLogBytes+1); err != nil {
		t.Fatal(err)
	}
	f, err := openLog(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || info.Size() != 0 {
		t.Errorf("the new log has %d bytes, %v", info.Size(), err)
	}
	if info, err := os.Stat(path + ".1"); err != nil || info.Size() != maxLogBytes+1 {
		t.Errorf("the old log: %v", err)
	}
}
