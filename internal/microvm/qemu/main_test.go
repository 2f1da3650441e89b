package qemu_test

import (
	"cmp"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berth-run/berth/internal/microvm/qemu"
	"github.com/berth-run/berth/internal/microvm/vmm/vmmtest"
)

// top of the repository, from here.
const top = "../../.."

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
	dir := os.Getenv(vmmtest.ProgramsVariable)
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "qemu-test"); err != nil {
			return 1, err
		}
		defer os.RemoveAll(dir)
		if err := build(dir); err != nil {
			return 1, err
		}
	}
	jailProgram = filepath.Join(dir, "berth-jail")
	return m.Run(), nil
}

// build what QEMU is started with: the jail, and beside it the libraries that it looks for there.
func build(dir string) error {
	libraries := []string{"bin/qemu-trim-v1.so", "bin/qemu-trim-v2.so", "bin/qemu-capstone.so"}
	for _, command := range [][]string{
		{"go", "build", "-o", dir, "github.com/berth-run/berth/cmd/berth-jail"},
		slices.Concat([]string{"make"}, libraries),
		slices.Concat([]string{"cp"}, libraries, []string{dir}),
	} {
		step := exec.Command(command[0], command[1:]...)
		step.Dir = top
		if out, err := step.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w: %s", strings.Join(command, " "), err, out)
		}
	}
	return nil
}
