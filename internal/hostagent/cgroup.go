package hostagent

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/layout"
)

const (
	cpuPeriod = 100_000 // microseconds, the kernel's default
	// pidsPerPod bounds the threads of a pod's sandbox processes on the host (not the pod's own processes, which live inside).
	pidsPerPod = 32768
	cgroupRoot = "/sys/fs/cgroup"
)

// makeCgroup makes the pod's cgroup in every hierarchy, with the pod's size as its limit. Whatever the sandbox needs for
// itself comes out of it, as on Fargate.
func makeCgroup(podUID string, size v1alpha1.Size) error {
	pids := int64(pidsPerPod)
	milli := size.CPU.MilliValue()
	resources := &cgroups.Resources{
		Memory: size.Memory.Value(), MemorySwap: size.Memory.Value(),
		CpuQuota: milli * cpuPeriod / 1000, CpuPeriod: cpuPeriod, CpuShares: uint64(max(2, milli*1024/1000)),
		PidsLimit: &pids, SkipDevices: true,
	}
	m, err := manager.New(&cgroups.Cgroup{Path: layout.PodCgroupPath(podUID), Resources: resources})
	if err != nil {
		return fmt.Errorf("open the pod's cgroup: %w", err)
	}
	if err := m.Apply(-1); err != nil {
		return fmt.Errorf("make the pod's cgroup: %w", err)
	}
	if err := m.Set(resources); err != nil {
		return fmt.Errorf("limit the pod's cgroup to %s CPU, %s memory: %w", size.CPU.String(), size.Memory.String(), err)
	}
	return nil
}

// hierarchies are the mounted cgroup roots: one with cgroup v2, one per controller with v1.
func hierarchies() []string {
	if cgroups.IsCgroup2UnifiedMode() {
		return []string{cgroupRoot}
	}
	roots, err := filepath.Glob(cgroupRoot + "/*")
	if err != nil {
		return nil
	}
	return roots
}

// removeCgroup kills what is left in the cgroup below each hierarchy's root and removes it.
func removeCgroup(path string) error {
	for _, root := range hierarchies() {
		dir := filepath.Join(root, path)
		if _, err := os.Stat(dir); err != nil {
			continue
		}
		if pids, err := cgroups.GetAllPids(dir); err == nil {
			for _, pid := range pids {
				if p, err := os.FindProcess(pid); err == nil {
					_ = p.Kill()
				}
			}
		}
		if err := cgroups.RemovePath(dir); err != nil {
			return fmt.Errorf("remove cgroup %s: %w", dir, err)
		}
	}
	return nil
}
