package qemu_test

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/berth-run/berth/internal/microvm/qemu"
)

var (
	// jailProgram is berth-jail, built for the tests.
	jailProgram string
	// acceleration of the machines: BERTH_ACCELERATION, or emulation, which every machine has.
	acceleration = cmp.Or(os.Getenv("BERTH_ACCELERATION"), qemu.TCG)
)

func TestMain(m *testing.M) {
	code, err := run(m)
	if err != nil {
		fmt.Fprintln(os.Stderr, "cannot run the tests of qemu:", err)
		code = 1
	}
	os.Exit(code)
}

func run(m *testing.M) (int, error) {
	if os.Geteuid() != 0 {
		return 1, fmt.Errorf("they need root (namespaces, cgroups); run them with sudo, or with make test")
	}
	dir, err := os.MkdirTemp("", "qemu-test")
	if err != nil {
		return 1, err
	}
	defer os.RemoveAll(dir)
	jailProgram = filepath.Join(dir, "berth-jail")
	if out, err := exec.Command("go", "build", "-o", jailProgram, "github.com/berth-run/berth/cmd/berth-jail").CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build berth-jail: %w: %s", err, out)
	}
	trim := exec.Command("make", "-C", "../../..", "bin/qemu-trim-v1.so", "bin/qemu-trim-v2.so", "bin/qemu-capstone.so")
	if out, err := trim.CombinedOutput(); err != nil {
		return 1, fmt.Errorf("build qemu-trim: %w: %s", err, out)
	}
	if out, err := exec.Command("cp", "../../../bin/qemu-trim-v1.so", "../../../bin/qemu-trim-v2.so", "../../../bin/qemu-capstone.so", dir).CombinedOutput(); err != nil {
		return 1, fmt.Errorf("copy qemu-trim: %w: %s", err, out)
	}
	return m.Run(), nil
}
