package runtimeconf_test

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/opencontainers/cgroups"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// These tests run containerd, the registry and gVisor for real. They do so in namespaces of their own (processes, mounts,
// network), which the kernel takes away with everything in them when the tests end, however they end.
const (
	stageVariable = "BERTH_RUNTIMECONF_TEST_STAGE"
	// topVariable names the directory that holds all files of the tests; its base names their cgroup.
	topVariable = "BERTH_RUNTIMECONF_TEST_DIR"
)

// testCgroup is the parent of the tests' pods, below each hierarchy's root.
var testCgroup = "/berth-test-" + filepath.Base(os.Getenv(topVariable))

func TestMain(m *testing.M) {
	var (
		code int
		err  error
	)
	switch os.Getenv(stageVariable) {
	case "":
		code, err = outside()
	case "first":
		code, err = first()
	default:
		code = m.Run()
		removeCgroups()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "cannot run the tests of runtimeconf:", err)
		code = 1
	}
	os.Exit(code)
}

// outside starts the tests again, as the first process of new namespaces.
func outside() (int, error) {
	if os.Geteuid() != 0 {
		return 1, errors.New("they need root (namespaces, mounts, cgroups); run them with sudo, or with make test")
	}
	// Short, because paths of sockets are limited to 107 bytes; removed here, where no mount holds it any more.
	top, err := os.MkdirTemp("/tmp", "brt")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(top)
	cmd := again("first")
	cmd.Env = append(cmd.Env, topVariable+"="+top)
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWPID | unix.CLONE_NEWNS | unix.CLONE_NEWNET, Pdeathsig: unix.SIGKILL}
	return run(cmd)
}

// first prepares the namespaces, then runs the tests and buries the orphans that containerd's shims leave.
func first() (int, error) {
	if err := prepare(); err != nil {
		return 1, err
	}
	cmd := again("test")
	if err := cmd.Start(); err != nil {
		return 1, err
	}
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, 0, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return 1, fmt.Errorf("wait for the tests: %w", err)
		}
		if pid == cmd.Process.Pid {
			return status.ExitStatus(), nil
		}
	}
}

func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to ourselves: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", 0, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	loopback, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(loopback)
}

func again(stage string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), stageVariable+"="+stage)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	return cmd
}

func run(cmd *exec.Cmd) (int, error) {
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return exit.ExitCode(), nil
	}
	return 0, err
}

// memoryRoot is the hierarchy in which the memory of a cgroup is limited.
func memoryRoot() string {
	if cgroups.IsCgroup2UnifiedMode() {
		return "/sys/fs/cgroup"
	}
	return "/sys/fs/cgroup/memory"
}

func removeCgroups() {
	roots := []string{"/sys/fs/cgroup" + testCgroup}
	if perController, err := filepath.Glob("/sys/fs/cgroup/*" + testCgroup); err == nil {
		roots = append(roots, perController...)
	}
	for _, root := range roots {
		_ = cgroups.RemovePath(root)
	}
}
