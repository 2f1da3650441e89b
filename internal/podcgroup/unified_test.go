package podcgroup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
)

const (
	// initArgument is on the kernel's command line of the machine in which this program runs as the first process.
	initArgument = "berth-podcgroup-test"
	// passed is what that machine says if all its tests passed.
	passed = "the tests passed under cgroup version 2"
	// machineLimit is how long it may take; about five seconds are usual.
	machineLimit = 5 * time.Minute
)

// TestUnified runs the other tests under cgroup version 2 on a machine that has version 1: in a virtual machine, whose
// kernel is that of microVMs and whose first process is this program.
func TestUnified(t *testing.T) {
	if cgroups.IsCgroup2UnifiedMode() {
		return // they run under version 2 as it is
	}
	dir := t.TempDir()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "init"), self, 0o700); err != nil {
		t.Fatal(err)
	}
	pack := exec.Command("sh", "-c", "echo init | cpio --quiet --create --format=newc > initrd")
	pack.Dir = dir
	if out, err := pack.CombinedOutput(); err != nil {
		t.Fatalf("pack the machine's files (Debian package cpio): %v\n%s", err, out)
	}
	kernel := filepath.Join("..", "..", "bin", "guest", "vmlinux")
	if _, err := os.Stat(kernel); err != nil {
		t.Fatalf("the machine's kernel is not made, run make guest: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), machineLimit)
	defer cancel()
	out, err := exec.CommandContext(ctx, "qemu-system-x86_64", "-M", "pc,accel=tcg", "-cpu", "max", "-m", "768", "-nodefaults", "-no-reboot", "-display", "none",
		"-serial", "stdio", "-kernel", kernel, "-initrd", filepath.Join(dir, "initrd"), "-append", "console=ttyS0 quiet panic=-1 "+initArgument).CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte(passed)) {
		t.Fatalf("the tests fail under cgroup version 2 (this program must be static: CGO_ENABLED=0): %v\n%s", err, out)
	}
}

// beFirstProcess is what this program does as the only one of a virtual machine: mount what the tests need, run them,
// say whether they passed, and switch the machine off.
func beFirstProcess() {
	err := prepare()
	if err == nil {
		tests := exec.Command("/init", "-test.v")
		tests.Stdout, tests.Stderr = os.Stdout, os.Stderr
		err = tests.Run()
	}
	if err == nil {
		fmt.Println(passed)
	} else {
		fmt.Println("the tests failed:", err)
	}
	if err := unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART); err != nil { // QEMU takes it for the end
		fmt.Println("end the machine:", err)
	}
}

func prepare() error {
	errs := []error{os.MkdirAll("/tmp", 0o777)}
	for _, m := range []struct{ kind, dir string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}, {"cgroup2", root}} {
		errs = append(errs, os.MkdirAll(m.dir, 0o755), unix.Mount(m.kind, m.dir, m.kind, 0, ""))
	}
	return errors.Join(errs...)
}
