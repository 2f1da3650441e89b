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

// makeCgroup makes the pod's cgroup in every hierarchy, with the pod's memory as its limit; limitCPU sets that of the CPU.
// Whatever the sandbox needs for itself comes out of it, as on Fargate.
func makeCgroup(podUID string, size v1alpha1.Size) error {
	pids := int64(pidsPerPod)
	r := &cgroups.Resources{
		Memory: size.Memory.Value(), MemorySwap: size.Memory.Value(), PidsLimit: &pids, SkipDevices: true,
		CpuShares: uint64(max(2, size.CPU.MilliValue()*1024/1000)),
	}
	m, err := openCgroup(podUID, r)
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

func openCgroup(podUID string, r *cgroups.Resources) (cgroups.Manager, error) {
	m, err := manager.New(&cgroups.Cgroup{Path: layout.PodCgroupPath(podUID), Resources: r})
	if err != nil {
		return nil, fmt.Errorf("open the pod's cgroup: %w", err)
	}
	return m, nil
}

// limitCPU holds the pod's cgroup to the CPU of its size.
func limitCPU(podUID string, size v1alpha1.Size) error {
	milli := size.CPU.MilliValue()
	r := &cgroups.Resources{CpuQuota: milli * cpuPeriod / 1000, CpuPeriod: cpuPeriod, SkipDevices: true}
	m, err := openCgroup(podUID, r)
	if err != nil {
		return err
	}
	if err := m.Set(r); err != nil {
		return fmt.Errorf("limit the pod's cgroup to %s CPU: %w", size.CPU.String(), err)
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
