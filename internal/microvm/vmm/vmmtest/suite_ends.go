package vmmtest

import (
	"errors"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/vmm"
)

func killLeavesNothing(t *testing.T, s *Suite, template vmm.Template) {
	m, host := s.Restore(t, template)
	pid := m.PID()
	for range 2 {
		if err := m.Kill(); err != nil {
			t.Fatal(err)
		}
	}
	if exit := exitOf(t, m); exit.Reason != vmm.ReasonKilled {
		t.Errorf("the machine ended by %+v", exit)
	}
	if err := unix.Kill(pid, 0); !errors.Is(err, unix.ESRCH) {
		t.Errorf("process %d is left (%v)", pid, err)
	}
	if _, err := os.Stat(host.AgentSocket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the agent's socket is left (%v)", err)
	}
}

func endsAreTold(t *testing.T, s *Suite, template vmm.Template) {
	for question, want := range map[string]vmm.Reason{"POWEROFF": vmm.ReasonPowerOff, "PANIC": vmm.ReasonReset} {
		t.Run(question, func(t *testing.T) {
			m, host := s.Restore(t, template)
			ask(t, m, host, "PING")
			if answer, err := Ask(within(t), m, question); err == nil && answer != "" {
				t.Fatalf("the guest answers %q", answer)
			}
			if exit := exitOf(t, m); exit.Reason != want || exit.Detail == "" {
				t.Errorf("the machine ended by %+v, want %s", exit, want)
			}
		})
	}
	t.Run("somebody kills the monitor", func(t *testing.T) {
		m, _ := s.Restore(t, template)
		if err := unix.Kill(m.PID(), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if exit := exitOf(t, m); exit.Reason != vmm.ReasonFailed || !strings.Contains(exit.Detail, "killed") {
			t.Errorf("the machine ended by %+v", exit)
		}
	})
}

func endedSaysSo(t *testing.T, s *Suite, template vmm.Template) {
	m, _ := s.Restore(t, template)
	if err := m.Kill(); err != nil {
		t.Fatal(err)
	}
	disk := diskFile(t, "")
	_, attach := m.Attach(within(t), vmm.Disk{File: disk})
	for call, err := range map[string]error{"Attach": attach, "Pause": m.Pause(within(t)), "Resume": m.Resume(within(t)),
		"Snapshot": m.Snapshot(within(t), vmm.BaseMemory, disk)} {
		if !errors.Is(err, vmm.ErrGone) {
			t.Errorf("%s fails with %v, want %v", call, err, vmm.ErrGone)
		}
	}
	if err := m.Detach(within(t), 1); !errors.Is(err, vmm.ErrGone) && !errors.Is(err, vmm.ErrNotAttached) {
		t.Errorf("Detach fails with %v", err)
	}
}

// diskFile is a disk of 1 MiB that begins with the text. It is open for reading and writing, and for root only.
func diskFile(t *testing.T, text string) *os.File {
	t.Helper()
	file, err := os.OpenFile(t.TempDir()+"/disk", os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { file.Close() })
	if _, err := file.WriteString(text); err != nil {
		t.Fatal(err)
	}
	if err := file.Truncate(1 << 20); err != nil {
		t.Fatal(err)
	}
	return file
}

func attach(t *testing.T, m vmm.Machine, disk vmm.Disk, want int) {
	t.Helper()
	lun, err := m.Attach(within(t), disk)
	if err != nil {
		t.Fatal(err)
	}
	if lun != want {
		t.Fatalf("the disk is LUN %d, want %d", lun, want)
	}
	awaitDisks(t, m, lun, true)
}

// awaitDisks asks the guest, which notices disks in its own time, until it has the disk or has it no more.
func awaitDisks(t *testing.T, m vmm.Machine, lun int, there bool) {
	t.Helper()
	ctx := within(t)
	for {
		answer, err := Ask(ctx, m, "DISKS")
		if err != nil {
			t.Fatalf("the guest has not noticed LUN %d (want %v): %v", lun, there, err)
		}
		found := false
		for _, one := range strings.Fields(answer) {
			found = found || one == strconv.Itoa(lun)
		}
		if found == there {
			return
		}
	}
}

func disksComeAndGo(t *testing.T, s *Suite, template vmm.Template) {
	m, host := s.Restore(t, template)
	ask(t, m, host, "PING")
	first, second, third := diskFile(t, "first"), diskFile(t, "second"), diskFile(t, "third")
	attach(t, m, vmm.Disk{File: first}, 1)
	attach(t, m, vmm.Disk{File: second}, 2)
	for question, want := range map[string]string{"READ 1": "first", "READ 2": "second"} {
		if got := ask(t, m, host, question); got != want {
			t.Errorf("%s answers %q, want %q", question, got, want)
		}
	}
	if got := ask(t, m, host, "WRITE 1 changed"); got != "0" {
		t.Errorf("the disk cannot be written (%q)", got)
	}
	if err := m.Detach(within(t), 1); err != nil {
		t.Fatal(err)
	}
	awaitDisks(t, m, 1, false)
	text := make([]byte, len("changed"))
	if _, err := first.ReadAt(text, 0); err != nil || string(text) != "changed" {
		t.Errorf("the file begins with %q (%v)", text, err)
	}
	attach(t, m, vmm.Disk{File: third}, 1)
	if got := ask(t, m, host, "READ 1"); got != "third" {
		t.Errorf("the new disk reads %q", got)
	}
	for _, lun := range []int{0, 7} {
		if err := m.Detach(within(t), lun); !errors.Is(err, vmm.ErrNotAttached) {
			t.Errorf("detach LUN %d fails with %v", lun, err)
		}
	}
}

func readOnlyDisk(t *testing.T, s *Suite, template vmm.Template) {
	m, host := s.Restore(t, template)
	ask(t, m, host, "PING")
	disk := diskFile(t, "original")
	attach(t, m, vmm.Disk{File: disk, ReadOnly: true}, 1)
	if got := ask(t, m, host, "WRITE 1 changed"); got == "0" {
		t.Error("the guest could write")
	}
	if got := ask(t, m, host, "READ 1"); got != "original" {
		t.Errorf("the disk reads %q", got)
	}
	text := make([]byte, len("original"))
	if _, err := disk.ReadAt(text, 0); err != nil || string(text) != "original" {
		t.Errorf("the file begins with %q (%v)", text, err)
	}
}

// filesAreTheCallers: whoever hands a file over may close it.
func filesAreTheCallers(t *testing.T, s *Suite, template vmm.Template) {
	m, host := s.Restore(t, template)
	if err := host.Tools.Close(); err != nil {
		t.Fatal(err)
	}
	disk := diskFile(t, "mine")
	attach(t, m, vmm.Disk{File: disk}, 1)
	if err := disk.Close(); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, m, host, "READ 1"); got != "mine" {
		t.Errorf("the disk reads %q", got)
	}
	// A monitor that is reached in another way makes no socket.
	if info, err := os.Stat(host.AgentSocket); err == nil && info.Mode().Perm()&0o077 != 0 {
		t.Errorf("others than root may connect to the agent: %v", info.Mode())
	}
	// A socket that was left behind is replaced, not an obstacle.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: host.AgentSocket + "2", Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	stale.SetUnlinkOnClose(false)
	stale.Close()
	again := s.host(t)
	again.AgentSocket = host.AgentSocket + "2"
	other, err := s.Driver.Restore(within(t), vmm.Restore{Host: again, Template: template})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = other.Kill() }()
	if got := ask(t, other, again, "PING"); got != "PONG" {
		t.Errorf("the guest answers %q", got)
	}
}
