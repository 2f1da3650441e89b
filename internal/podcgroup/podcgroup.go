// Package podcgroup is the cgroup that holds a pod to its size, in cgroup v1 and v2: the host agent makes and removes it,
// the sandbox's processes live in it, the pod's kubelet reads its use. The rest of Berth does not tell the versions apart.
package podcgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/cgroups"
	cgroupsv1 "github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/manager"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/layout"
)

const (
	cpuPeriod = 100_000 // microseconds, the kernel's default
	// pidsPerPod bounds the threads of a pod's sandbox processes on the host (not the pod's own processes, which live inside).
	pidsPerPod = 32768
	root       = "/sys/fs/cgroup"
	// removeRounds is how often the processes of a cgroup are killed before its removal is given up; each takes up to a second.
	removeRounds = 5
)

// controllers are those that hold a pod to its size.
var controllers = []string{"cpu", "memory", "pids"}

// Check says which of the needed controllers this machine lacks, and what to do about it.
func Check() error {
	var errs []error
	unified, err := os.ReadFile(filepath.Join(root, "cgroup.controllers"))
	for _, c := range controllers {
		if err == nil && slices.Contains(strings.Fields(string(unified)), c) {
			continue
		}
		if _, err := os.Stat(filepath.Join(root, c, "cgroup.procs")); err == nil {
			continue
		}
		errs = append(errs, fmt.Errorf("cgroup controller %q is not there: mount cgroups at %s, and do not switch the controller off on the kernel's command line (cgroup_disable=, cgroup_enable=)", c, root))
	}
	return errors.Join(errs...)
}

// Make makes the pod's cgroup in every hierarchy, with the pod's memory as its limit; LimitCPU sets that of the CPU.
// Whatever the sandbox needs for itself comes out of it, as on Fargate. Making it again changes nothing.
func Make(podUID string, size v1alpha1.Size) error {
	pids := int64(pidsPerPod)
	r := &cgroups.Resources{
		Memory: size.Memory.Value(), PidsLimit: &pids, SkipDevices: true,
		CpuShares: uint64(max(2, size.CPU.MilliValue()*1024/1000)),
	}
	if limitsSwap() {
		r.MemorySwap = r.Memory // both together, so: no swap
	}
	if cgroups.IsCgroup2UnifiedMode() {
		r.CpuWeight, r.CpuShares = cgroups.ConvertCPUSharesToCgroupV2Value(r.CpuShares), 0
	}
	m, err := open(layout.PodCgroupPath(podUID), r)
	if err != nil {
		return err
	}
	if err := m.Apply(-1); err != nil {
		return fmt.Errorf("make the pod's cgroup: %w", err)
	}
	if err := m.Set(r); err != nil {
		return fmt.Errorf("limit the pod's cgroup to %s memory: %w", size.Memory.String(), err)
	}
	return nil
}

// limitsSwap says whether swap can be limited: version 1 does so only in kernels that count it.
func limitsSwap() bool {
	_, err := os.Stat(filepath.Join(root, "memory", "memory.memsw.limit_in_bytes"))
	return err == nil || cgroups.IsCgroup2UnifiedMode()
}

func open(path string, r *cgroups.Resources) (cgroups.Manager, error) {
	m, err := manager.New(&cgroups.Cgroup{Path: path, Resources: r})
	if err != nil {
		return nil, fmt.Errorf("open the pod's cgroup %s: %w", path, err)
	}
	return m, nil
}

// LimitCPU holds the pod's cgroup to the CPU of its size.
func LimitCPU(podUID string, size v1alpha1.Size) error {
	r := &cgroups.Resources{CpuQuota: size.CPU.MilliValue() * cpuPeriod / 1000, CpuPeriod: cpuPeriod, SkipDevices: true}
	m, err := open(layout.PodCgroupPath(podUID), r)
	if err != nil {
		return err
	}
	if err := m.Set(r); err != nil {
		return fmt.Errorf("limit the pod's cgroup to %s CPU: %w", size.CPU.String(), err)
	}
	return nil
}

// Usage is what the processes of a cgroup use.
type Usage struct {
	// CPU in nanoseconds since the cgroup was made.
	CPU uint64
	// Memory in bytes: all, the most there was, the file pages and the anonymous pages of it, and the working set as the
	// kubelet counts it: all but the file pages that can be dropped.
	Memory, MaxMemory, Cache, RSS, WorkingSet uint64
}

// Read reads the use of the cgroup at path below each hierarchy's root. The error of one that is not there is
// fs.ErrNotExist.
func Read(path string) (Usage, error) {
	stats, err := readStats(path)
	if err != nil {
		return Usage{}, fmt.Errorf("read the pod's cgroup %s: %w", path, err)
	}
	memory := stats.MemoryStats
	inactive, rss := memory.Stats["total_inactive_file"], memory.Stats["total_rss"]
	if cgroups.IsCgroup2UnifiedMode() {
		inactive, rss = memory.Stats["inactive_file"], memory.Stats["anon"]
	}
	u := Usage{CPU: stats.CpuStats.CpuUsage.TotalUsage, Memory: memory.Usage.Usage, MaxMemory: memory.Usage.MaxUsage, Cache: memory.Cache, RSS: rss}
	u.WorkingSet = u.Memory - min(u.Memory, inactive)
	return u, nil
}

// readStats leaves the controllers alone that nobody asks for: in version 1 their files are a hundred, and every pod's kubelet reads them every
// ten seconds.
func readStats(path string) (*cgroups.Stats, error) {
	if cgroups.IsCgroup2UnifiedMode() {
		if _, err := os.Stat(filepath.Join(root, path)); err != nil {
			return nil, err
		}
		m, err := open(path, &cgroups.Resources{})
		if err != nil {
			return nil, err
		}
		return m.GetStats()
	}
	stats := cgroups.NewStats()
	for _, c := range []interface {
		Name() string
		GetStats(path string, stats *cgroups.Stats) error
	}{&cgroupsv1.CpuacctGroup{}, &cgroupsv1.MemoryGroup{}} {
		dir := filepath.Join(root, c.Name(), path)
		if _, err := os.Stat(dir); err != nil {
			return nil, err
		}
		if err := c.GetStats(dir, stats); err != nil {
			return nil, err
		}
	}
	return stats, nil
}

// hierarchies are the mounted cgroup roots: one with cgroup v2, one per controller with v1.
func hierarchies() ([]string, error) {
	if cgroups.IsCgroup2UnifiedMode() {
		return []string{root}, nil
	}
	return filepath.Glob(root + "/*")
}

// Remove kills what is left in the cgroup at path, and in those below it, and removes them from each hierarchy. One that
// is not there is no error.
func Remove(path string) error {
	roots, err := hierarchies()
	if err != nil {
		return fmt.Errorf("find the cgroup hierarchies: %w", err)
	}
	for _, root := range roots {
		if err := removeDir(filepath.Join(root, path)); err != nil {
			return err
		}
	}
	return nil
}

// removeDir kills and removes in turns: a process may have started another between the two. Cgroups below it may go meanwhile,
// as their sandboxes end, which leaves the list of processes short.
func removeDir(dir string) error {
	gone := func(err error) bool { return errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENODEV) }
	for round := 1; ; round++ {
		pids, err := cgroups.GetAllPids(dir)
		if err != nil && !gone(err) {
			return fmt.Errorf("list the processes of cgroup %s: %w", dir, err)
		}
		for _, pid := range pids {
			if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("kill process %d of cgroup %s: %w", pid, dir, err)
			}
		}
		err = cgroups.RemovePath(dir) // waits for ended processes to go; nil if there is none
		switch {
		case err == nil:
			return nil
		case !errors.Is(err, unix.EBUSY) && !gone(err) || round == removeRounds:
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
	}
}
