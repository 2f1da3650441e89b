package shim

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
)

// quota is the limit that the host agent sets to the CPU of the pod's cgroup, where the machine's monitor runs. It is for the pod's containers:
// while none of them runs, the machine is not held back in what there is left to do, which is to end, or to start the next container.
type quota struct {
	// file of the limit, and what means none in it.
	file, none string

	mu     sync.Mutex
	lifted string // what was in the file
}

// quotaOf finds the limit of the cgroup at path; there is none in no cgroup.
func quotaOf(path string) (*quota, error) {
	if path == "" {
		return &quota{}, nil
	}
	m, err := manager.New(&cgroups.Cgroup{Path: path, Resources: &cgroups.Resources{SkipDevices: true}})
	if err != nil {
		return nil, fmt.Errorf("find the CPU limit of cgroup %s: %w", path, err)
	}
	if cgroups.IsCgroup2UnifiedMode() {
		return &quota{file: filepath.Join(m.Path("cpu"), "cpu.max"), none: "max"}, nil
	}
	return &quota{file: filepath.Join(m.Path("cpu"), "cpu.cfs_quota_us"), none: "-1"}, nil
}

// lift takes the limit away if idle says, now, that no container runs.
func (q *quota) lift(idle func() bool) error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.file == "" || q.lifted != "" || !idle() {
		return nil
	}
	limit, err := os.ReadFile(q.file)
	if err != nil {
		return fmt.Errorf("read the pod's CPU limit: %w", err)
	}
	if strings.HasPrefix(string(limit), q.none) {
		return nil
	}
	if err := os.WriteFile(q.file, []byte(q.none), 0); err != nil {
		return fmt.Errorf("lift the pod's CPU limit: %w", err)
	}
	q.lifted = string(limit)
	return nil
}

// restore puts the limit back that lift took away.
func (q *quota) restore() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.lifted == "" {
		return nil
	}
	if err := os.WriteFile(q.file, []byte(q.lifted), 0); err != nil {
		return fmt.Errorf("put the pod's CPU limit back: %w", err)
	}
	q.lifted = ""
	return nil
}
