package hostagent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/nodeconfig"
)

// nodeVariable makes the test program a node process: it does what cmd/berth-node does with its standard input, then waits
// for SIGTERM, or for nothing if the variable is "stubborn".
const nodeVariable = "BERTH_HOSTAGENT_TEST_NODE"

func playNode() {
	how := os.Getenv(nodeVariable)
	if how == "" {
		return
	}
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM)
	data, err := io.ReadAll(os.Stdin)
	if err != nil {
		os.Exit(1)
	}
	if len(data) == 0 {
		os.Exit(0)
	}
	var cfg nodeconfig.Config
	if err := json.Unmarshal(data, &cfg); err != nil {
		os.Exit(1)
	}
	if err := os.WriteFile(cfg.RootDir, []byte(cfg.NodeName), 0o600); err != nil {
		os.Exit(1)
	}
	for range stop {
		if how != "stubborn" {
			os.Exit(0)
		}
	}
}

// agentDirs are directories of an agent of this test's own.
func agentDirs(t *testing.T) layout.Dirs {
	t.Helper()
	top := t.TempDir()
	return layout.Dirs{State: filepath.Join(top, "state"), Run: filepath.Join(top, "run"), Log: filepath.Join(top, "log")}
}

func newProcesses(t *testing.T, dirs layout.Dirs, how string, ahead int) *nodeProcesses {
	t.Helper()
	t.Setenv(nodeVariable, how)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	n := newNodeProcesses(dirs, self, ahead)
	t.Cleanup(n.dismiss)
	return n
}

// startNode starts the process of a node and returns when it has its configuration. The channel tells its end.
func startNode(t *testing.T, n *nodeProcesses, uid string) <-chan struct{} {
	t.Helper()
	if err := os.MkdirAll(n.dirs.NodeRun(uid), 0o700); err != nil {
		t.Fatal(err)
	}
	got := filepath.Join(n.dirs.NodeRun(uid), "got")
	ended := make(chan struct{})
	err := n.start(nodeconfig.Config{PodUID: types.UID(uid), NodeName: "node-" + uid, RootDir: got}, func() { close(ended) })
	if err != nil {
		t.Fatal(err)
	}
	pid := n.running(uid)
	t.Cleanup(func() { _ = unix.Kill(pid, unix.SIGKILL); <-ended })
	until(t, "the node process has its configuration", func() bool {
		name, err := os.ReadFile(got)
		return err == nil && string(name) == "node-"+uid
	})
	return ended
}

func until(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for deadline := time.Now().Add(patience); !holds(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

func wait(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatalf("not within %s: %s", patience, what)
	}
}

func TestNodeProcess(t *testing.T) {
	dirs := agentDirs(t)
	n := newProcesses(t, dirs, "polite", 0)
	ended := startNode(t, n, "a")
	pid := n.running("a")
	if pid == 0 || n.running("b") != 0 {
		t.Fatalf("running: a %d, b %d", pid, n.running("b"))
	}
	if session, err := unix.Getsid(pid); err != nil || session != pid {
		t.Errorf("it is in session %d, %v: a signal to the agent's would end it", session, err)
	}
	if _, err := os.Stat(dirs.NodeLog("a")); err != nil {
		t.Errorf("its log: %v", err)
	}
	if err := n.stop("a"); err != nil {
		t.Fatal(err)
	}
	wait(t, "the end is told", ended)
	if n.running("a") != 0 {
		t.Error("it runs after its end")
	}
	if err := n.stop("a"); err != nil {
		t.Errorf("stopping what has ended: %v", err)
	}
}

func TestStubbornNodeProcess(t *testing.T) {
	n := newProcesses(t, agentDirs(t), "stubborn", 0)
	ended := startNode(t, n, "a")
	if err := n.stop("a"); err != nil {
		t.Fatal(err)
	}
	wait(t, "it is killed", ended)
}

// TestAdoption: the agent that starts after this one finds the process, leaves it alone and notices its end.
func TestAdoption(t *testing.T) {
	dirs := agentDirs(t)
	n := newProcesses(t, dirs, "polite", 0)
	ended := startNode(t, n, "a")
	later := newNodeProcesses(dirs, "", 0)
	pid := later.running("a")
	if pid == 0 || pid != n.running("a") {
		t.Fatalf("the later agent sees process %d, it is %d", pid, n.running("a"))
	}
	told := make(chan struct{})
	for range 2 {
		if err := later.adopt(pid, func() { close(told) }); err != nil { // a second close would panic
			t.Fatal(err)
		}
	}
	if err := unix.Kill(pid, 0); err != nil {
		t.Fatalf("adoption ended it: %v", err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	wait(t, "the first agent is told", ended)
	wait(t, "the later agent is told", told)
	if later.running("a") != 0 {
		t.Error("it runs after its end")
	}
	if err := later.adopt(pid, func() {}); err == nil {
		t.Error("a process that has ended was adopted")
	}
}

// TestReusedProcessID: the file names a process id that somebody else has now.
func TestReusedProcessID(t *testing.T) {
	dirs := agentDirs(t)
	other := exec.Command("sleep", "600")
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = other.Process.Kill(); _ = other.Wait() })
	if err := os.MkdirAll(dirs.NodeRun("a"), 0o700); err != nil {
		t.Fatal(err)
	}
	n := newNodeProcesses(dirs, "", 0)
	for _, content := range []string{fmt.Sprintf("%d 1\n", other.Process.Pid), "no number\n", "", "999999999 1\n"} {
		if err := os.WriteFile(filepath.Join(dirs.NodeRun("a"), pidFile), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if pid := n.running("a"); pid != 0 {
			t.Errorf("%q: process %d is taken for the node's", content, pid)
		}
		if err := n.stop("a"); err != nil {
			t.Errorf("%q: %v", content, err)
		}
	}
	if err := other.Process.Signal(syscall.Signal(0)); err != nil {
		t.Errorf("another's process was ended: %v", err)
	}
}

// TestProcessesAheadOfNeed: they wait, are taken in turn unless they have died meanwhile, and go when they are dismissed.
func TestProcessesAheadOfNeed(t *testing.T) {
	dirs := agentDirs(t)
	n := newProcesses(t, dirs, "polite", 2)
	n.refill()
	if len(n.pool) != 2 {
		t.Fatalf("%d processes wait, want 2", len(n.pool))
	}
	dead, alive := n.pool[0].cmd.Process, n.pool[1].cmd.Process
	if err := dead.Kill(); err != nil {
		t.Fatal(err)
	}
	until(t, "the killed process has ended", func() bool {
		_, err := startTime(dead.Pid)
		return err != nil
	})
	startNode(t, n, "a")
	if pid := n.running("a"); pid != alive.Pid {
		t.Errorf("process %d was taken, want %d", pid, alive.Pid)
	}
	n.refill()
	waiting := []int{n.pool[0].cmd.Process.Pid, n.pool[1].cmd.Process.Pid}
	n.dismiss()
	for _, pid := range waiting {
		if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("process %d still waits: %v", pid, err)
		}
	}
	logs, err := filepath.Glob(filepath.Join(dirs.Log, "nodes", "*"))
	if err != nil || len(logs) != 1 || !strings.HasSuffix(logs[0], "a.log") {
		t.Errorf("logs are left: %v, %v", logs, err)
	}
}
