// Package still keeps what a pod was measured to use as long as the pod does next to nothing. To answer, a sandbox has to wake up, which is most of
// what it does when the pod does nothing. Node processes and shims import it, of which there is one for each pod: it stays small.
package still

import (
	"path/filepath"
	"sync"
	"time"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/fscommon"
)

const (
	// A pod does next to nothing if it took no more processor time since than allowance, and share of a CPU, which is what a virtual machine takes
	// that is only there, twice over.
	allowance = 50 * time.Millisecond
	share     = 0.002
	// root of the cgroup hierarchies.
	root = "/sys/fs/cgroup"
)

// Answer is the last answer to a question about a pod.
type Answer[T any] struct {
	maxAge time.Duration
	cpu    func() (uint64, error)
	now    func() time.Time

	mu     sync.Mutex
	value  T
	at     time.Time
	taken  uint64 // nanoseconds, once the answer was there
	change uint64 // of what the asker knows, before the question
}

// New makes an Answer about the pod whose processor time, in nanoseconds, cpu tells. It stays good for maxAge if the pod does next to nothing.
func New[T any](maxAge time.Duration, cpu func() (uint64, error)) *Answer[T] {
	return &Answer[T]{maxAge: maxAge, cpu: cpu, now: time.Now}
}

// Get gives the last answer once more if it is still right, and asks if it is not. change is a number that differs when something happened to the
// pod of which the asker knows.
func (a *Answer[T]) Get(change uint64, ask func() (T, error)) (T, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if change == a.change && a.still() {
		return a.value, nil
	}
	value, err := ask()
	a.at = time.Time{}
	if err != nil {
		return value, err
	}
	if taken, err := a.cpu(); err == nil {
		a.value, a.at, a.taken, a.change = value, a.now(), taken, change
	}
	return value, nil
}

func (a *Answer[T]) still() bool {
	age := a.now().Sub(a.at)
	if a.at.IsZero() || age >= a.maxAge {
		return false
	}
	taken, err := a.cpu()
	return err == nil && taken >= a.taken && float64(taken-a.taken) < float64(allowance)+share*float64(age)
}

// CPU is the processor time that the cgroup at path, below the root of each hierarchy, has taken, in nanoseconds.
func CPU(path string) (uint64, error) {
	if cgroups.IsCgroup2UnifiedMode() {
		microseconds, err := fscommon.GetValueByKey(filepath.Join(root, path), "cpu.stat", "usage_usec")
		return microseconds * 1000, err
	}
	return fscommon.GetCgroupParamUint(filepath.Join(root, "cpuacct", path), "cpuacct.usage")
}
