package shim

import (
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"

	"github.com/berth-run/berth/internal/microvm/vmm"
)

// errHostMemory says why a monitor was killed by the host's kernel.
var errHostMemory = errors.New("the host's kernel ended the machine for want of memory; free memory on the host, or let fewer or smaller pods run there")

// oomKills counts how often the kernel has killed a process of a cgroup for want of memory: the cgroup's, or the host's.
type oomKills struct {
	file  string
	begin int
}

// oomKillsOf counts from now on; in no cgroup there is nothing to count.
func oomKillsOf(path string) oomKills {
	if path == "" {
		return oomKills{}
	}
	m, err := manager.New(&cgroups.Cgroup{Path: path, Resources: &cgroups.Resources{SkipDevices: true}})
	if err != nil {
		return oomKills{}
	}
	name := "memory.oom_control"
	if cgroups.IsCgroup2UnifiedMode() {
		name = "memory.events"
	}
	k := oomKills{file: filepath.Join(m.Path("memory"), name)}
	k.begin = k.count()
	return k
}

func (k oomKills) count() int {
	content, err := os.ReadFile(k.file)
	if err != nil {
		return 0 // then nothing can be said
	}
	for line := range strings.Lines(string(content)) {
		if n, ok := strings.CutPrefix(line, "oom_kill "); ok {
			count, _ := strconv.Atoi(strings.TrimSpace(n)) // the kernel's own
			return count
		}
	}
	return 0
}

// ended says whether that is how a machine ended.
func (k oomKills) ended(exit vmm.Exit) bool {
	return exit.Reason == vmm.ReasonFailed && k.count() > k.begin
}
