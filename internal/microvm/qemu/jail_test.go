package qemu_test

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"

	"github.com/berth-run/berth/internal/microvm/qemu"
	"github.com/berth-run/berth/internal/microvm/vmm"
	"github.com/berth-run/berth/internal/microvm/vmm/vmmtest"
)

// isConfined looks at a running QEMU from outside.
func isConfined(t *testing.T, suite vmmtest.Suite, template vmm.Template) {
	suite.Confinement.Cgroup = testCgroup(t)
	m, _ := suite.Restore(t, template)
	proc := fmt.Sprintf("/proc/%d/", m.PID())

	status := read(t, proc+"status")
	for _, want := range []string{"Uid:\t65001\t65001\t65001\t65001", "Gid:\t65001\t65001\t65001\t65001", "Groups:\t \n", "NoNewPrivs:\t1",
		"CapInh:\t0000000000000000", "CapPrm:\t0000000000000000", "CapEff:\t0000000000000000", "CapBnd:\t0000000000000000",
		"CapAmb:\t0000000000000000", "Seccomp:\t2"} {
		if !strings.Contains(status, want) {
			t.Errorf("its status lacks %q", want)
		}
	}
	for _, namespace := range []string{"mnt", "pid", "net", "ipc", "uts"} {
		its, err := os.Readlink(proc + "ns/" + namespace)
		if err != nil {
			t.Fatal(err)
		}
		if ours, err := os.Readlink("/proc/self/ns/" + namespace); err != nil || its == ours {
			t.Errorf("it is in our namespace %s (%v)", its, err)
		}
	}
	seesNoHost(t, proc)
	holdsOnlyWhatItNeeds(t, proc)
	if got := read(t, proc+"cgroup"); strings.Count(got, suite.Confinement.Cgroup) < 1 || strings.Contains(got, "memory:/\n") {
		t.Errorf("its cgroups are %s", got)
	}
	if got := read(t, proc+"limits"); !strings.Contains(got, "Max core file size        0                    0") {
		t.Errorf("it may dump the guest's memory: %s", got)
	}
}

// seesNoHost: its root has nothing but QEMU, read-only.
func seesNoHost(t *testing.T, proc string) {
	t.Helper()
	root := proc + "root/"
	entries, err := os.ReadDir(root)
	if err != nil {
		t.Fatal(err)
	}
	allowed := map[string]bool{"usr": true, "lib": true, "lib64": true, "etc": true, "proc": true, "dev": true}
	for _, e := range entries {
		if !allowed[e.Name()] {
			t.Errorf("it sees /%s", e.Name())
		}
	}
	for _, path := range []string{"etc/passwd", "etc/shadow", "usr/bin/sh", "dev/null", "proc/sys", "proc/cmdline", "proc/2"} {
		if _, err := os.Stat(root + path); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("it sees /%s (%v)", path, err)
		}
	}
	for line := range strings.Lines(read(t, proc+"mountinfo")) {
		fields := strings.Fields(line)
		at, readOnly := fields[4], strings.HasPrefix(fields[5], "ro,")
		expected := at == "/proc" || readOnly && (at == "/" || at == "/dev" && acceleration == qemu.KVM)
		if !expected {
			t.Errorf("it has a mount that it should not have: %s", line)
		}
	}
}

// holdsOnlyWhatItNeeds: each open file is one that it was given, or made.
func holdsOnlyWhatItNeeds(t *testing.T, proc string) {
	t.Helper()
	fds, err := filepath.Glob(proc + "fd/*")
	if err != nil {
		t.Fatal(err)
	}
	allowed := []string{"socket:", "pipe:", "anon_inode:", "/memfd:", "/dev/null", "/dev/net/tun", "/dev/vhost-vsock"}
	if acceleration == qemu.KVM {
		allowed = append(allowed, "/dev/kvm")
	}
	for _, fd := range fds {
		to, err := os.Readlink(fd)
		if err != nil {
			continue // closed meanwhile
		}
		known := false
		for _, prefix := range allowed {
			known = known || strings.HasPrefix(to, prefix)
		}
		if !known && !strings.HasSuffix(to, "/tools.erofs") {
			t.Errorf("it has %s open", to)
		}
	}
}

// testCgroup makes a cgroup in every hierarchy.
func testCgroup(t *testing.T) string {
	t.Helper()
	path := fmt.Sprintf("/berth-test-qemu-%d", os.Getpid())
	m, err := manager.New(&cgroups.Cgroup{Path: path, Resources: &cgroups.Resources{SkipDevices: true}})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Apply(-1); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Destroy(); err != nil {
			t.Error(err)
		}
	})
	return path
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(bytes.TrimRight(data, "\x00"))
}

// needsItsCgroup: without it a machine would not be held to its size.
func needsItsCgroup(t *testing.T, suite vmmtest.Suite, template vmm.Template) {
	suite.Confinement.Cgroup = "/berth-test-that-does-not-exist"
	m, err := suite.Driver.Restore(t.Context(), vmm.Restore{Host: testHost(t, &suite), Template: template})
	if err == nil {
		_ = m.Kill()
	}
	if !errors.Is(err, os.ErrNotExist) {
		t.Errorf("restore fails with %v", err)
	}
}
