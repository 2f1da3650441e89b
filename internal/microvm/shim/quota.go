package shim

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
)

// quotaPeriod of the pod's CPU limit, in microseconds: the kernel's default, and the host agent's.
const quotaPeriod = 100_000

// quota is the limit to the CPU of the pod's cgroup, where the machine's monitor runs. It is for the pod's containers: while none of them runs, the machine is
// not held back in what there is left to do, which is to start, to end, or to start the next container. The host agent sets the same limit when a pod's
// first container runs; it does not hear of a machine that takes the place of another.
type quota struct {
	// file of the limit, and what the limit and none are in it.
	file, limit, none string

	mu     sync.Mutex
	lifted bool
}

// quotaOf is the limit, in thousandths of a core, of the cgroup at path. There is none in no cgroup, nor if nobody told one: then the cgroup is not the pod's alone.
func quotaOf(path, told string, milliCPU int64) (*quota, error) {
	if path == "" || told == "" {
		return &quota{}, nil
	}
	m, err := manager.New(&cgroups.Cgroup{Path: path, Resources: &cgroups.Resources{SkipDevices: true}})
	if err != nil {
		return nil, fmt.Errorf("find the CPU limit of cgroup %s: %w", path, err)
	}
	limit := strconv.FormatInt(milliCPU*quotaPeriod/1000, 10)
	if cgroups.IsCgroup2UnifiedMode() {
		return &quota{file: filepath.Join(m.Path("cpu"), "cpu.max"), limit: fmt.Sprintf("%s %d", limit, quotaPeriod), none: "max"}, nil
	}
	return &quota{file: filepath.Join(m.Path("cpu"), "cpu.cfs_quota_us"), limit: limit, none: "-1"}, nil
}

// lift takes the limit away if idle says, now, that no container runs.
func (q *quota) lift(idle func() bool) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.file == "" || q.lifted || !idle() {
		return nil
	}
	if err := os.WriteFile(q.file, []byte(q.none), 0); err != nil {
		return fmt.Errorf("lift the pod's CPU limit: %w", err)
	}
	q.lifted = true
	return nil
}

// restore sets the limit that lift took away.
func (q *quota) restore() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if !q.lifted {
		return nil
	}
	if err := os.WriteFile(q.file, []byte(q.limit), 0); err != nil {
		return fmt.Errorf("set the pod's CPU limit to %s: %w", q.limit, err)
	}
	q.lifted = false
	return nil
}
