package qemu_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/microvm/qemu"
	"github.com/berth-run/berth/internal/microvm/template"
	"github.com/berth-run/berth/internal/microvm/vmm"
	"github.com/berth-run/berth/internal/microvm/vmm/vmmtest"
)

// TestQEMU boots one template, which takes most of the time, for all that needs no more.
func TestQEMU(t *testing.T) {
	suite := realSuite(t)
	dir := t.TempDir()
	suite.Driver = qemu.New(qemu.Options{Acceleration: acceleration, Dir: dir, Jail: jailProgram})
	made := suite.Template(t)
	t.Run("passes the suite", func(t *testing.T) { suite.Run(t, made) })
	t.Run("is confined", func(t *testing.T) { isConfined(t, *suite, made) })
	t.Run("needs its cgroup", func(t *testing.T) { needsItsCgroup(t, *suite, made) })
	t.Run("refuses a template of another QEMU", func(t *testing.T) { refusesAnother(t, *suite, made) })
	t.Run("awaits room on the host", func(t *testing.T) { awaitsRoom(t, *suite, made) })
	t.Run("makes its tree anew", func(t *testing.T) { makesTreeAnew(t, *suite, made, dir) })
}

// TestManyProcessors: the emulated ones, too, are threads of their own.
func TestManyProcessors(t *testing.T) {
	suite := realSuite(t)
	suite.Shape = template.Shapes[2]
	made := suite.Template(t)
	m, _ := suite.Restore(t, made)
	if got, err := vmmtest.Ask(t.Context(), m, "PROCESSORS"); err != nil || got != "4" {
		t.Errorf("the guest has %q processors (%v)", got, err)
	}
}

func realSuite(t *testing.T) *vmmtest.Suite {
	t.Helper()
	guest, err := vmmtest.RealGuest(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return &vmmtest.Suite{Driver: driver(t, acceleration), Guest: guest, Confinement: vmm.Confinement{UID: 65001, GID: 65001},
		Shape: template.Shapes[0]}
}

func driver(t *testing.T, acceleration string) *qemu.Driver {
	t.Helper()
	return qemu.New(qemu.Options{Acceleration: acceleration, Dir: t.TempDir(), Jail: jailProgram})
}

func openTools(t *testing.T, s *vmmtest.Suite) *os.File {
	t.Helper()
	tools, err := os.Open(s.Guest.Tools)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tools.Close() })
	return tools
}

// TestStoredTemplate goes the whole way: built, stored, loaded, restored.
func TestStoredTemplate(t *testing.T) {
	suite := realSuite(t)
	store := template.NewStore(template.Options{Dir: t.TempDir(), Driver: suite.Driver, Confinement: suite.Confinement,
		Guest: template.Guest{Kernel: suite.Guest.Kernel, Initrd: suite.Guest.Initrd, Tools: suite.Guest.Tools}})
	loaded, err := store.Get(t.Context(), template.Shapes[0])
	if err != nil {
		t.Fatal(err)
	}
	defer loaded.Close()
	m, _ := suite.Restore(t, loaded.Template())
	if got, err := vmmtest.Ask(t.Context(), m, "PING"); err != nil || got != "PONG" {
		t.Errorf("the guest answers %q (%v)", got, err)
	}
	if loaded.Manifest.RAM.Bytes >= vmm.BaseMemory {
		t.Errorf("the template has %d bytes of memory: nothing of it is left out", loaded.Manifest.RAM.Bytes)
	}
}

// TestTouched: a machine is not saved when its guest has used memory that a template does not hold.
func TestTouched(t *testing.T) {
	const further = vmm.BaseMemory + vmm.BlockMemory
	suite := realSuite(t)
	ram, state := vmmtest.MemoryFile(t, "ram"), vmmtest.MemoryFile(t, "state")
	m, _ := suite.Boot(t, ram)
	blocks, err := suite.Driver.Blocks(suite.Shape, further)
	if err != nil {
		t.Fatal(err)
	}
	// What the guest would do: write to the first page of its first block.
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", m.PID()))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		if name, err := os.Readlink(path); err != nil || !strings.HasPrefix(name, "/memfd:memory-backend-memfd") {
			continue
		}
		memory, err := os.OpenFile(path, os.O_RDWR, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer memory.Close()
		if _, err := memory.WriteAt([]byte("touched"), int64(blocks[0].Start)-vmm.BaseMemory); err != nil {
			t.Fatal(err)
		}
	}
	if err := m.Pause(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := m.Snapshot(t.Context(), further, state); !errors.Is(err, vmm.ErrTouched) {
		t.Errorf("with %d MiB it is saved: %v", further>>20, err)
	}
	if err := m.Snapshot(t.Context(), vmm.BaseMemory, state); err != nil {
		t.Errorf("without: %v", err)
	}
}

// TestProbe: machines with usable KVM pass it, others are told why not, soon and cleanly.
func TestProbe(t *testing.T) {
	const limit = 5 * time.Second
	suite := realSuite(t)
	guest := template.Guest{Kernel: suite.Guest.Kernel, Initrd: suite.Guest.Initrd, Tools: suite.Guest.Tools}
	own, err := os.MkdirTemp("", "probe")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(own) })
	t.Setenv("TMPDIR", own)
	ctx, cancel := context.WithTimeout(t.Context(), 24*limit)
	defer cancel()
	err = template.Probe(ctx, driver(t, qemu.KVM), guest, suite.Confinement, limit)
	t.Log(err)
	if ctx.Err() != nil {
		t.Error("the probe knows no limit")
	}
	if err != nil && !errors.Is(err, vmm.ErrUnavailable) && !strings.Contains(err.Error(), "no usable KVM") {
		t.Errorf("the probe fails with %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(own, "berth-template*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

func TestUnfitQEMU(t *testing.T) {
	script := func(text string) string {
		path := filepath.Join(t.TempDir(), "qemu")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for name, tt := range map[string]struct{ program, want string }{
		"missing":    {"/nowhere/qemu-system-x86_64", "apt-get install qemu-system-x86"},
		"old":        {script("echo QEMU emulator version 5.2.0"), "QEMU 5.2.0; install QEMU 7.2"},
		"broken":     {script("echo no libfdt; exit 127"), "no libfdt"},
		"not QEMU":   {script("echo hello"), `"hello"`},
		"no program": {script("echo QEMU emulator version 8.2.1"), "is no program"},
	} {
		t.Run(name, func(t *testing.T) {
			d := qemu.New(qemu.Options{Acceleration: qemu.TCG, Dir: t.TempDir(), Jail: jailProgram, Program: tt.program})
			_, err := d.Fingerprint(t.Context())
			if !errors.Is(err, vmm.ErrUnavailable) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want something with %q", err, tt.want)
			}
		})
	}
}

// refusesAnother: a template is restored by the QEMU that made it, or not at all.
func refusesAnother(t *testing.T, suite vmmtest.Suite, made vmm.Template) {
	made.Monitor.Digest = strings.Repeat("0", 64)
	_, err := suite.Driver.Restore(t.Context(), vmm.Restore{Host: testHost(t, &suite), Template: made})
	if !errors.Is(err, vmm.ErrTemplate) || !strings.Contains(err.Error(), "berth template build") {
		t.Errorf("restore fails with %v", err)
	}
}

// makesTreeAnew: whoever tidies up must not make a template useless.
func makesTreeAnew(t *testing.T, suite vmmtest.Suite, made vmm.Template, dir string) {
	trees, err := filepath.Glob(filepath.Join(dir, "qemu-*"))
	if err != nil || len(trees) != 1 {
		t.Fatalf("trees %v (%v)", trees, err)
	}
	if err := os.RemoveAll(trees[0]); err != nil {
		t.Fatal(err)
	}
	m, _ := suite.Restore(t, made)
	if got, err := vmmtest.Ask(t.Context(), m, "PING"); err != nil || got != "PONG" {
		t.Errorf("the guest answers %q (%v)", got, err)
	}
}

func testHost(t *testing.T, s *vmmtest.Suite) vmm.Host {
	t.Helper()
	return vmm.Host{Name: "test", AgentSocket: filepath.Join(t.TempDir(), "a"), Tools: openTools(t, s), Confinement: s.Confinement}
}
