package qemu_test

import (
	"context"
	"errors"
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

func TestQEMUPassesTheSuite(t *testing.T) { realSuite(t).Run(t) }

// TestManyProcessors: the emulated ones, too, are threads of their own, and 16 is the most that a pod has.
func TestManyProcessors(t *testing.T) {
	suite := realSuite(t)
	suite.Shape = template.Shapes[len(template.Shapes)-1]
	made := suite.Template(t)
	_, host := suite.Restore(t, made)
	if got, err := vmmtest.Ask(t.Context(), host.AgentSocket, "PROCESSORS"); err != nil || got != "16" {
		t.Errorf("the guest has %q processors (%v)", got, err)
	}
}

func realSuite(t *testing.T) *vmmtest.Suite {
	t.Helper()
	guest, err := vmmtest.RealGuest(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return &vmmtest.Suite{Driver: driver(t, qemu.TCG), Guest: guest, Confinement: vmm.Confinement{UID: 65001, GID: 65001},
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
	_, host := suite.Restore(t, loaded.Template())
	if got, err := vmmtest.Ask(t.Context(), host.AgentSocket, "PING"); err != nil || got != "PONG" {
		t.Errorf("the guest answers %q (%v)", got, err)
	}
	if loaded.Manifest.RAM.Bytes >= vmm.BaseMemory {
		t.Errorf("the template has %d bytes of memory: nothing of it is left out", loaded.Manifest.RAM.Bytes)
	}
}

// TestProbe: machines with usable KVM pass it, others are told why not, soon and cleanly.
func TestProbe(t *testing.T) {
	const limit = 5 * time.Second
	suite := realSuite(t)
	guest := template.Guest{Kernel: suite.Guest.Kernel, Initrd: suite.Guest.Initrd, Tools: suite.Guest.Tools}
	ctx, cancel := context.WithTimeout(t.Context(), 6*limit)
	defer cancel()
	err := template.Probe(ctx, driver(t, qemu.KVM), guest, suite.Confinement, limit)
	t.Log(err)
	if ctx.Err() != nil {
		t.Error("the probe knows no limit")
	}
	if err != nil && !errors.Is(err, vmm.ErrUnavailable) && !strings.Contains(err.Error(), "no usable KVM") {
		t.Errorf("the probe fails with %v", err)
	}
	if left, err := filepath.Glob(filepath.Join(os.TempDir(), "berth-template*", "agent")); err != nil || len(left) > 0 {
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

// TestTemplateOfAnotherQEMU: a template is restored by the QEMU that made it, or not at all.
func TestTemplateOfAnotherQEMU(t *testing.T) {
	suite := realSuite(t)
	made := suite.Template(t)
	made.Monitor.Digest = strings.Repeat("0", 64)
	host := vmm.Host{Name: "test", AgentSocket: filepath.Join(t.TempDir(), "a"), Tools: openTools(t, suite), Confinement: suite.Confinement}
	if _, err := suite.Driver.Restore(t.Context(), vmm.Restore{Host: host, Template: made}); !errors.Is(err, vmm.ErrTemplate) ||
		!strings.Contains(err.Error(), "berth template build") {
		t.Errorf("restore fails with %v", err)
	}
}

// TestTreeComesBack: whoever tidies up must not make a template useless.
func TestTreeComesBack(t *testing.T) {
	suite := realSuite(t)
	dir := t.TempDir()
	suite.Driver = qemu.New(qemu.Options{Acceleration: qemu.TCG, Dir: dir, Jail: jailProgram})
	made := suite.Template(t)
	trees, err := filepath.Glob(filepath.Join(dir, "qemu-*"))
	if err != nil || len(trees) != 1 {
		t.Fatalf("trees %v (%v)", trees, err)
	}
	if err := os.RemoveAll(trees[0]); err != nil {
		t.Fatal(err)
	}
	_, host := suite.Restore(t, made)
	if got, err := vmmtest.Ask(t.Context(), host.AgentSocket, "PING"); err != nil || got != "PONG" {
		t.Errorf("the guest answers %q (%v)", got, err)
	}
}
