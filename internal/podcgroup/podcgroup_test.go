package podcgroup

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/layout"
)

// roleVariable makes the test program what a test wants to put into a cgroup.
const roleVariable = "BERTH_PODCGROUP_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "hog":
		hog()
	case "forker":
		forker()
	case "idle":
		select {}
	}
	if os.Getpid() == 1 && slices.Contains(os.Args, initArgument) {
		beFirstProcess()
	}
	if os.Geteuid() != 0 {
		fmt.Fprintln(os.Stderr, "the tests of podcgroup need root (cgroups): run them with sudo, or with make test")
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// hog waits for a byte, then takes as much memory as it gets.
func hog() {
	if _, err := os.Stdin.Read(make([]byte, 1)); err != nil {
		os.Exit(1)
	}
	for kept := [][]byte{}; ; {
		kept = append(kept, bytes.Repeat([]byte{1}, 1<<20))
	}
}

// forker starts children that do nothing, as long as it lives.
func forker() {
	for {
		child := exec.Command("/proc/self/exe")
		child.Env = []string{roleVariable + "=idle"}
		_ = child.Start() // until the cgroup's limits or its end
	}
}

func size(cpu, memory string) v1alpha1.Size {
	return v1alpha1.Size{CPU: resource.MustParse(cpu), Memory: resource.MustParse(memory)}
}

// newPod makes a cgroup for the test, which goes with it.
func newPod(t *testing.T, s v1alpha1.Size) string {
	t.Helper()
	uid := fmt.Sprintf("test-%s-%d", t.Name(), os.Getpid())
	if err := Make(uid, s); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := Remove(layout.PodCgroupPath(uid)); err != nil {
			t.Error(err)
		}
	})
	return uid
}

// dirs are where the pod's cgroup is, by controller.
func dirs(uid string) map[string]string {
	out := map[string]string{}
	for _, c := range controllers {
		out[c] = filepath.Join(root, c, layout.PodCgroupPath(uid))
		if cgroups.IsCgroup2UnifiedMode() {
			out[c] = filepath.Join(root, layout.PodCgroupPath(uid))
		}
	}
	return out
}

// join starts the test program in a role and puts it into the pod's cgroup.
func join(t *testing.T, uid, role string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	return start(t, uid, cmd)
}

func start(t *testing.T, uid string, cmd *exec.Cmd) *exec.Cmd {
	t.Helper()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	roots, err := hierarchies()
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range roots {
		procs := filepath.Join(root, layout.PodCgroupPath(uid), "cgroup.procs")
		if err := os.WriteFile(procs, []byte(strconv.Itoa(cmd.Process.Pid)), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			t.Fatal(err)
		}
	}
	return cmd
}

func setting(t *testing.T, dir, file string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, file))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func TestCheck(t *testing.T) {
	if err := Check(); err != nil {
		t.Fatal(err)
	}
}

// TestSize looks at what the kernel was told, in the words of the version that is mounted.
func TestSize(t *testing.T) {
	uid := newPod(t, size("250m", "512Mi"))
	if err := Make(uid, size("250m", "512Mi")); err != nil {
		t.Fatalf("making it again: %v", err)
	}
	if err := LimitCPU(uid, size("250m", "512Mi")); err != nil {
		t.Fatal(err)
	}
	want := map[string][3]string{
		"memory": {"memory", "memory.limit_in_bytes", "536870912"}, "shares": {"cpu", "cpu.shares", "256"},
		"quota": {"cpu", "cpu.cfs_quota_us", "25000"}, "pids": {"pids", "pids.max", "32768"},
	}
	if cgroups.IsCgroup2UnifiedMode() {
		want = map[string][3]string{
			"memory": {"memory", "memory.max", "536870912"}, "weight": {"cpu", "cpu.weight", "35"},
			"quota": {"cpu", "cpu.max", "25000 100000"}, "pids": {"pids", "pids.max", "32768"},
		}
	}
	for name, w := range want {
		if got := setting(t, dirs(uid)[w[0]], w[1]); got != w[2] {
			t.Errorf("%s: %s is %s, want %s", name, w[1], got, w[2])
		}
	}
}

func TestMemoryLimitKills(t *testing.T) {
	uid := newPod(t, size("1", "64Mi"))
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), roleVariable+"=hog")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	start(t, uid, cmd)
	if _, err := stdin.Write([]byte{1}); err != nil {
		t.Fatal(err)
	}
	err = cmd.Wait()
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || !status.Signaled() || status.Signal() != syscall.SIGKILL {
		t.Fatalf("a process that takes more memory than the pod has ended with %v, want it killed", err)
	}
	used, err := Read(layout.PodCgroupPath(uid))
	if err != nil {
		t.Fatal(err)
	}
	if used.MaxMemory < 60<<20 || used.MaxMemory > 66<<20 {
		t.Errorf("the most memory that was used is %d, want 64 MiB and little more, which the kernel books ahead", used.MaxMemory)
	}
	if used.CPU == 0 || used.WorkingSet > used.Memory {
		t.Errorf("implausible use: %+v", used)
	}
}

// TestRemoveWhileProcessesStart ends a cgroup whose processes start others as fast as they can.
func TestRemoveWhileProcessesStart(t *testing.T) {
	uid := newPod(t, size("1", "256Mi"))
	cmd := join(t, uid, "forker")
	children := func() int {
		pids, err := cgroups.GetAllPids(dirs(uid)["pids"])
		if err != nil {
			t.Fatal(err)
		}
		return len(pids)
	}
	for children() < 5 && unix.Kill(cmd.Process.Pid, 0) == nil {
	}
	if err := Remove(layout.PodCgroupPath(uid)); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err == nil {
		t.Error("the process was not killed")
	}
	for c, dir := range dirs(uid) {
		if _, err := os.Stat(dir); err == nil {
			t.Errorf("the cgroup of controller %s is still there", c)
		}
	}
	if err := Remove(layout.PodCgroupPath(uid)); err != nil {
		t.Errorf("removing it again: %v", err)
	}
}

// TestRemoveWhileSandboxesEnd removes a cgroup while others remove those below it, as a sandbox does that ends.
func TestRemoveWhileSandboxesEnd(t *testing.T) {
	for round := range 200 {
		uid := fmt.Sprintf("test-%d-%d", os.Getpid(), round)
		dir := dirs(uid)["pids"]
		var below []string
		for i := range 10 {
			below = append(below, filepath.Join(dir, strconv.Itoa(i)))
			if err := os.MkdirAll(below[i], 0o755); err != nil {
				t.Fatal(err)
			}
		}
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			for _, sandbox := range below {
				_ = unix.Rmdir(sandbox) // unless it is removed already
			}
		}()
		err := Remove(layout.PodCgroupPath(uid))
		<-ended
		if _, left := os.Stat(dir); err != nil || left == nil {
			t.Fatalf("round %d: the cgroup is left: %t; %v", round, left == nil, err)
		}
	}
}

func TestReadOfNothing(t *testing.T) {
	if _, err := Read("/berth/test-nothing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("%v, want fs.ErrNotExist", err)
	}
}
