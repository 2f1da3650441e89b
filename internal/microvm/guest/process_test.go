package guest_test

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

// addExec makes and starts another process of container main.
func (m *vm) addExec(exec string, terminal bool, args ...string) {
	m.t.Helper()
	spec, err := json.Marshal(&specs.Process{Args: args, Cwd: "/", Env: []string{"PATH=/bin"}, Terminal: terminal})
	if err != nil {
		m.t.Fatal(err)
	}
	request := &api.ExecProcessRequest{ID: "main", ExecID: exec, Terminal: terminal, Stdin: "0", Stdout: "1", Spec: &anypb.Any{Value: spec}}
	if !terminal {
		request.Stderr = "2"
	}
	if _, err := m.tasks.Exec(m.t.Context(), request); err != nil {
		m.t.Fatal(err)
	}
	if _, err := m.tasks.Start(m.t.Context(), &api.StartRequest{ID: "main", ExecID: exec}); err != nil {
		m.t.Fatal(err)
	}
}

func (m *vm) kill(id, exec string, signal uint32, all bool) {
	m.t.Helper()
	if _, err := m.tasks.Kill(m.t.Context(), &api.KillRequest{ID: id, ExecID: exec, Signal: signal, All: all}); err != nil {
		m.t.Fatal(err)
	}
}

func (m *vm) stdio(id, exec string, fd int) *stream {
	m.t.Helper()
	return m.open(guestapi.Request{Op: guestapi.OpStdio, Stdio: &guestapi.Stdio{ID: id, Exec: exec, FD: fd}})
}

// line reads one line.
func (s *stream) line(t testing.TB) string {
	t.Helper()
	line, err := s.reader.ReadString('\n')
	if err != nil {
		t.Fatalf("read a line: %v (after %q)", err, line)
	}
	return strings.TrimSpace(line)
}

const forever = "trap 'exit 7' TERM; echo ready; while :; do sleep 1000 & wait; done"

func TestProcesses(t *testing.T) {
	m := pod(t)
	image := m.busybox()

	t.Run("an exit code is true, and output is kept after the end", func(t *testing.T) {
		before := time.Now()
		m.start("exit", shell("exit", "echo out; echo err >&2; exit 42", nil), image)
		exit, err := m.tasks.Wait(t.Context(), &api.WaitRequest{ID: "exit"})
		if err != nil {
			t.Fatal(err)
		}
		if ended := exit.ExitedAt.AsTime(); exit.ExitStatus != 42 || ended.Before(before.Add(-time.Second)) || ended.After(time.Now().Add(time.Second)) {
			t.Errorf("status %d at %v", exit.ExitStatus, ended)
		}
		if out, said := m.output("exit", "", 1), m.output("exit", "", 2); out != "out\n" || said != "err\n" {
			t.Errorf("stdout %q, stderr %q", out, said)
		}
		state, err := m.tasks.State(t.Context(), &api.StateRequest{ID: "exit"})
		if err != nil || state.Status != task.Status_STOPPED || state.ExitStatus != 42 {
			t.Errorf("state %v: %v", state, err)
		}
		if _, err := m.tasks.Delete(t.Context(), &api.DeleteRequest{ID: "exit"}); err != nil {
			t.Error(err)
		}
		if _, err := m.tasks.State(t.Context(), &api.StateRequest{ID: "exit"}); !errdefs.IsNotFound(errgrpc.ToNative(err)) {
			t.Errorf("a deleted container is %v", err)
		}
	})

	m.start("main", shell("main", forever, nil), image)
	m.stdio("main", "", 1).line(t)

	t.Run("a program that is not there is an error at start", func(t *testing.T) {
		spec := shell("missing", "", func(s *specs.Spec) { s.Process.Args = []string{"/no/such/program"} })
		if _, err := m.tasks.Create(t.Context(), &api.CreateTaskRequest{ID: "missing", Options: containerOptions(t, spec, image)}); err != nil {
			t.Fatal(err)
		}
		_, err := m.tasks.Start(t.Context(), &api.StartRequest{ID: "missing"})
		if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
			t.Errorf("error %v", err)
		}
		if status := m.wait("missing", ""); status == 0 {
			t.Error("it counts as having ended well")
		}
		if _, err := m.tasks.Delete(t.Context(), &api.DeleteRequest{ID: "missing"}); err != nil {
			t.Error(err)
		}
	})

	t.Run("a container's addresses are random, whatever crun's are", func(t *testing.T) {
		m.start("random", shell("random", "cat /proc/self/personality", nil), image)
		m.addExec("personality", false, "cat", "/proc/self/personality")
		m.wait("random", "")
		m.wait("main", "personality")
		if first, exec := m.output("random", "", 1), m.output("main", "personality", 1); first != "00000000\n" || exec != "00000000\n" {
			t.Errorf("personality of the first process %q, of another %q", first, exec)
		}
		if _, err := m.tasks.Delete(t.Context(), &api.DeleteRequest{ID: "random"}); err != nil {
			t.Error(err)
		}
	})

	t.Run("stdin is the process's until it is closed", func(t *testing.T) {
		m.addExec("wc", false, "wc", "-c")
		in := m.stdio("main", "wc", 0)
		if _, err := io.WriteString(in, strings.Repeat("x", 200000)); err != nil {
			t.Fatal(err)
		}
		if err := in.Close(); err != nil {
			t.Fatal(err)
		}
		if out := m.output("main", "wc", 1); out != "200000\n" {
			t.Errorf("wc counts %q", out)
		}
		if status := m.wait("main", "wc"); status != 0 {
			t.Errorf("status %d", status)
		}
	})

	t.Run("CloseIO closes stdin", func(t *testing.T) {
		m.addExec("cat", false, "cat")
		if _, err := m.tasks.CloseIO(t.Context(), &api.CloseIORequest{ID: "main", ExecID: "cat", Stdin: true}); err != nil {
			t.Fatal(err)
		}
		if status := m.wait("main", "cat"); status != 0 {
			t.Errorf("status %d", status)
		}
	})

	t.Run("a terminal is one, with a size", func(t *testing.T) {
		m.addExec("tty", true, "sh", "-c", "read line; echo got $line; stty size; exit 3")
		if _, err := m.tasks.ResizePty(t.Context(), &api.ResizePtyRequest{ID: "main", ExecID: "tty", Width: 91, Height: 17}); err != nil {
			t.Fatal(err)
		}
		in := m.stdio("main", "tty", 0)
		if _, err := io.WriteString(in, "hello\n"); err != nil {
			t.Fatal(err)
		}
		if out := m.output("main", "tty", 1); !strings.Contains(out, "got hello\r\n17 91\r\n") {
			t.Errorf("terminal says %q", out)
		}
		if status := m.wait("main", "tty"); status != 3 {
			t.Errorf("status %d", status)
		}
	})

	t.Run("many processes exit with their own codes", func(t *testing.T) {
		for i := range 5 {
			exec := "n" + string(rune('0'+i))
			m.addExec(exec, false, "sh", "-c", "exit "+string(rune('0'+i)))
			if status := m.wait("main", exec); status != i {
				t.Errorf("exit %d is %d", i, status)
			}
			if _, err := m.tasks.Delete(t.Context(), &api.DeleteRequest{ID: "main", ExecID: exec}); err != nil {
				t.Error(err)
			}
		}
	})

	t.Run("a signal ends an exec", func(t *testing.T) {
		m.addExec("sleep", false, "sleep", "1000")
		m.kill("main", "sleep", 9, false)
		if status := m.wait("main", "sleep"); status != 137 {
			t.Errorf("status %d", status)
		}
	})

	t.Run("pids, statistics, limits", func(t *testing.T) {
		pids, err := m.tasks.Pids(t.Context(), &api.PidsRequest{ID: "main"})
		if err != nil || len(pids.Processes) < 1 {
			t.Errorf("pids %v: %v", pids, err)
		}
		limit := int64(48 << 20)
		resources, err := json.Marshal(&specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := m.tasks.Update(t.Context(), &api.UpdateTaskRequest{ID: "main", Resources: &anypb.Any{Value: resources}}); err != nil {
			t.Fatal(err)
		}
		files := []string{"memory.max", "memory.current", "pids.current", "cpu.stat", "no.such"}
		answer, err := m.send(guestapi.Request{Op: guestapi.OpMeasure, Measure: &guestapi.Measure{ID: "main", Files: files}}).response()
		if err != nil || len(answer.Files) != len(files) {
			t.Fatalf("the guest measures %+v: %v", answer, err)
		}
		if answer.Files[0] != fmt.Sprintln(limit) || answer.Files[1] < "1" || answer.Files[2] < "1" || !strings.HasPrefix(answer.Files[3], "usage_usec ") || answer.Files[4] != "" {
			t.Errorf("files %q", answer.Files)
		}
	})

	t.Run("a paused container does nothing", func(t *testing.T) {
		if _, err := m.tasks.Pause(t.Context(), &api.PauseRequest{ID: "main"}); err != nil {
			t.Fatal(err)
		}
		if state, err := m.tasks.State(t.Context(), &api.StateRequest{ID: "main"}); err != nil || state.Status != task.Status_PAUSED {
			t.Errorf("state %v: %v", state, err)
		}
		if _, err := m.tasks.Resume(t.Context(), &api.ResumeRequest{ID: "main"}); err != nil {
			t.Fatal(err)
		}
	})

	t.Run("a running container is not deleted", func(t *testing.T) {
		if _, err := m.tasks.Delete(t.Context(), &api.DeleteRequest{ID: "main"}); !errdefs.IsFailedPrecondition(errgrpc.ToNative(err)) {
			t.Errorf("error %v", err)
		}
	})

	t.Run("SIGTERM is handled by the container", func(t *testing.T) {
		m.kill("main", "", 15, false)
		if status := m.wait("main", ""); status != 7 {
			t.Errorf("status %d", status)
		}
		if _, err := m.tasks.Delete(t.Context(), &api.DeleteRequest{ID: "main"}); err != nil {
			t.Error(err)
		}
	})

	t.Run("what was never started can be killed and deleted", func(t *testing.T) {
		create := &api.CreateTaskRequest{ID: "never", Options: containerOptions(t, shell("never", "true", nil), image)}
		if _, err := m.tasks.Create(t.Context(), create); err != nil {
			t.Fatal(err)
		}
		m.kill("never", "", 9, false)
		if status := m.wait("never", ""); status != 137 {
			t.Errorf("status %d", status)
		}
		if _, err := m.tasks.Delete(t.Context(), &api.DeleteRequest{ID: "never"}); err != nil {
			t.Error(err)
		}
		if err := m.do(guestapi.Request{Op: guestapi.OpRelease, Release: &guestapi.Release{LUN: image}}); err != nil {
			t.Errorf("nothing uses the image, but it is not released: %v", err)
		}
	})
}
