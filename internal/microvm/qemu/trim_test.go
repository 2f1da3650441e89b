package qemu_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/qemu"
	"github.com/berth-run/berth/internal/microvm/vmm/vmmtest"
)

// TestTrim: the code that an emulated machine was booted with does not stay in memory when it is idle, and the machine goes on.
func TestTrim(t *testing.T) {
	const much, little, patience = 16 << 20, 12 << 20, time.Minute
	if acceleration != qemu.TCG {
		t.Skip("nothing is translated")
	}
	suite := realSuite(t)
	fd, err := unix.MemfdCreate("ram", unix.MFD_CLOEXEC)
	if err != nil {
		t.Fatal(err)
	}
	ram := os.NewFile(uintptr(fd), "ram")
	defer ram.Close()
	m, _ := suite.Boot(t, ram)
	// The guest asks and asks whether somebody is there, unless somebody is.
	caller, err := m.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	most := codeOf(t, m.PID())
	if most < much {
		t.Fatalf("the emulator has %d bytes of code after a boot; there is nothing to give back", most)
	}
	for began := time.Now(); ; time.Sleep(time.Second) {
		left := codeOf(t, m.PID())
		if left < little {
			t.Logf("%d of %d bytes are left after %s", left, most, time.Since(began))
			break
		}
		if time.Since(began) > patience {
			t.Fatalf("%d of %d bytes of code are left", left, most)
		}
	}
	if err := caller.Close(); err != nil {
		t.Fatal(err)
	}
	if got, err := vmmtest.Ask(t.Context(), m, "PING"); err != nil || got != "PONG" {
		t.Errorf("the guest answers %q (%v)", got, err)
	}
}

// codeOf is the memory of a process that is writable and executable, in bytes.
func codeOf(t *testing.T, pid int) int {
	t.Helper()
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps", pid))
	if err != nil {
		t.Fatal(err)
	}
	sum, in := 0, false
	for line := range strings.Lines(string(maps)) {
		fields := strings.Fields(line)
		if len(fields) > 1 && len(fields[1]) == len("rwxp") && strings.Contains(fields[0], "-") {
			in = fields[1] == "rwxp"
		}
		var kb int
		if n, _ := fmt.Sscanf(line, "Private_Dirty: %d kB", &kb); n == 1 && in {
			sum += kb << 10
		}
	}
	return sum
}

// TestStandIn: the monitor has loaded the small library in the place of the large one.
func TestStandIn(t *testing.T) {
	suite := realSuite(t)
	made := suite.Template(t)
	m, _ := suite.Restore(t, made)
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", m.PID()))
	if err != nil {
		t.Fatal(err)
	}
	var end, start uint64
	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, "/libcapstone.so.") {
			var from, to uint64
			if _, err := fmt.Sscanf(line, "%x-%x", &from, &to); err != nil {
				t.Fatal(err)
			}
			if start == 0 {
				start = from
			}
			end = to
		}
	}
	const most = 64 << 10
	if end-start > most {
		t.Errorf("libcapstone takes %d bytes, the one that stands in for it less than %d", end-start, most)
	}
}
