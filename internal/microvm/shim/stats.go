package shim

import (
	"fmt"

	stats "github.com/containerd/cgroups/v3/cgroup2/stats"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
)

// ensureCgroup makes the pod's cgroup in every hierarchy, unless it is there. The host agent has made and limited it for a pod of Berth.
func ensureCgroup(path string) error {
	if path == "" {
		return nil
	}
	m, err := manager.New(&cgroups.Cgroup{Path: path, Resources: &cgroups.Resources{SkipDevices: true}})
	if err == nil {
		err = m.Apply(-1)
	}
	if err != nil {
		return fmt.Errorf("make the pod's cgroup %s: %w", path, err)
	}
	return nil
}

// stats measures the pod's cgroup on the host: the machine with all that is in it.
func (p *pod) stats() (*stats.Metrics, error) {
	out := &stats.Metrics{Pids: &stats.PidsStat{}, CPU: &stats.CPUStat{}, Memory: &stats.MemoryStat{}}
	if p.cgroup == "" {
		return out, nil
	}
	m, err := manager.New(&cgroups.Cgroup{Path: p.cgroup, Resources: &cgroups.Resources{}})
	if err != nil {
		return nil, fmt.Errorf("open the pod's cgroup: %w", err)
	}
	s, err := m.GetStats()
	if err != nil {
		return nil, fmt.Errorf("measure the pod's cgroup: %w", err)
	}
	out.Pids.Current = s.PidsStats.Current
	out.CPU.UsageUsec = s.CpuStats.CpuUsage.TotalUsage / 1000
	out.Memory.Usage, out.Memory.UsageLimit = s.MemoryStats.Usage.Usage, s.MemoryStats.Usage.Limit
	return out, nil
}
