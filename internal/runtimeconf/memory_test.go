package runtimeconf_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// shimLimit bounds what a pod's shim may hold for itself: there is one per pod, and all of Berth's processes of a pod are
// to stay within 48 MB.
const shimLimit = 12 << 20

// checkMemory logs what the processes of a pod hold for themselves alone (dirty private pages: program text is shared by
// all pods) and sees that the shim is small.
func checkMemory(t *testing.T, sandbox string) {
	t.Helper()
	commands, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	var shims int
	for _, path := range commands {
		data, _ := os.ReadFile(path) // the process may have gone
		command, arguments, _ := strings.Cut(string(data), "\x00")
		if !strings.Contains(arguments, sandbox) {
			continue
		}
		bytes, err := privateDirty(filepath.Dir(path))
		if err != nil {
			continue
		}
		t.Logf("%s: %.1f MB private", filepath.Base(command), float64(bytes)/1e6)
		if filepath.Base(command) != "containerd-shim-runsc-v1" {
			continue
		}
		if shims++; bytes > shimLimit {
			t.Errorf("the shim holds %d bytes, want at most %d", bytes, shimLimit)
		}
	}
	if shims != 1 {
		t.Errorf("the pod has %d shims, want 1", shims)
	}
}

// privateDirty is in bytes.
func privateDirty(process string) (int, error) {
	data, err := os.ReadFile(process + "/smaps_rollup")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(data)) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "Private_Dirty:" {
			kib, err := strconv.Atoi(fields[1])
			return kib << 10, err
		}
	}
	return 0, fmt.Errorf("%s/smaps_rollup has no Private_Dirty", process)
}
