package node

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	cadvisorapi "github.com/google/cadvisor/lib/model"
	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/cadvisor"

	"github.com/berth-run/berth/internal/nodeconfig"
	"github.com/berth-run/berth/internal/podcgroup"
)

// machine answers what the kubelet asks cAdvisor: the machine is the pod's size, its use is the pod's cgroup's, its file
// system is the one that holds the kubelet's directory.
type machine struct {
	cfg nodeconfig.Config

	mu   sync.Mutex
	last sample
	inst uint64 // nanocores between the two latest samples
}

type sample struct {
	at  time.Time
	cpu uint64 // nanoseconds, cumulative
}

var _ cadvisor.Interface = (*machine)(nil)

func newMachine(cfg nodeconfig.Config) *machine { return &machine{cfg: cfg} }

// Start has nothing to start.
func (m *machine) Start() error { return nil }

// MachineInfo is the pod's size, CPUs rounded up to whole ones; the Node's capacity has the exact figure (containerManager).
func (m *machine) MachineInfo(klog.Logger) (*cadvisorapi.MachineInfo, error) {
	return &cadvisorapi.MachineInfo{
		NumCores:       int(m.cfg.Capacity.Cpu().Value()),
		MemoryCapacity: uint64(m.cfg.Capacity.Memory().Value()),
		MachineID:      strings.ReplaceAll(string(m.cfg.PodUID), "-", ""),
		SystemUUID:     string(m.cfg.PodUID),
		BootID:         string(m.cfg.PodUID),
	}, nil
}

// VersionInfo tells the kernel's and the operating system's version.
func (m *machine) VersionInfo() (*cadvisorapi.VersionInfo, error) {
	var name unix.Utsname
	if err := unix.Uname(&name); err != nil {
		return nil, fmt.Errorf("read the kernel's version: %w", err)
	}
	return &cadvisorapi.VersionInfo{
		KernelVersion:      unix.ByteSliceToString(name.Release[:]),
		ContainerOsVersion: osName(),
	}, nil
}

func osName() string {
	release, err := os.ReadFile("/etc/os-release")
	if err != nil {
		return "Linux"
	}
	for _, line := range strings.Split(string(release), "\n") {
		if value, found := strings.CutPrefix(line, "PRETTY_NAME="); found {
			return strings.Trim(value, `"`)
		}
	}
	return "Linux"
}

// ContainerInfoV2 knows the root only: the pod's cgroup.
func (m *machine) ContainerInfoV2(name string, _ cadvisorapi.RequestOptions) (map[string]cadvisorapi.ContainerInfo, error) {
	info, err := m.info(name)
	if err != nil {
		return nil, err
	}
	return map[string]cadvisorapi.ContainerInfo{name: *info}, nil
}

// GetRequestedContainersInfo knows the root only.
func (m *machine) GetRequestedContainersInfo(name string, _ cadvisorapi.RequestOptions) (map[string]*cadvisorapi.ContainerInfo, error) {
	info, err := m.info(name)
	if err != nil {
		return nil, err
	}
	return map[string]*cadvisorapi.ContainerInfo{name: info}, nil
}

func (m *machine) info(name string) (*cadvisorapi.ContainerInfo, error) {
	if name != "/" {
		return nil, fmt.Errorf("no statistics of cgroup %q: a Berth node has only its pod's", name)
	}
	used, err := podcgroup.Read(m.cfg.CgroupParent)
	if err != nil {
		return nil, err
	}
	now := time.Now()
	info := &cadvisorapi.ContainerInfo{Stats: []*cadvisorapi.ContainerStats{{
		Timestamp: now,
		Cpu:       &cadvisorapi.CpuStats{Usage: cadvisorapi.CpuUsage{Total: used.CPU}},
		CpuInst:   &cadvisorapi.CpuInstStats{Usage: cadvisorapi.CpuInstUsage{Total: m.rate(now, used.CPU)}},
		Memory:    &cadvisorapi.MemoryStats{Usage: used.Memory, MaxUsage: used.MaxMemory, Cache: used.Cache, RSS: used.RSS, WorkingSet: used.WorkingSet},
	}}}
	info.Name = name
	info.Spec.HasCpu, info.Spec.HasMemory = true, true
	info.Spec.Memory.Limit = uint64(m.cfg.Capacity.Memory().Value())
	return info, nil
}

// rate is the CPU use in nanocores since the sample before; samples closer than a second are not compared.
func (m *machine) rate(now time.Time, cpu uint64) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	elapsed := now.Sub(m.last.at)
	if m.last.at.IsZero() || cpu < m.last.cpu {
		m.last = sample{now, cpu}
		return m.inst
	}
	if elapsed >= time.Second {
		m.inst = uint64(float64(cpu-m.last.cpu) / elapsed.Seconds())
		m.last = sample{now, cpu}
	}
	return m.inst
}

// ImagesFsInfo, RootFsInfo and ContainerFsInfo are all the file system of the kubelet's directory.
func (m *machine) ImagesFsInfo(context.Context) (cadvisorapi.FsInfo, error) {
	return m.GetDirFsInfo(m.cfg.RootDir)
}

// RootFsInfo is the file system of the kubelet's directory.
func (m *machine) RootFsInfo() (cadvisorapi.FsInfo, error) { return m.GetDirFsInfo(m.cfg.RootDir) }

// ContainerFsInfo is the file system of the kubelet's directory.
func (m *machine) ContainerFsInfo(context.Context) (cadvisorapi.FsInfo, error) {
	return m.GetDirFsInfo(m.cfg.RootDir)
}

// GetDirFsInfo is the file system that holds path.
func (m *machine) GetDirFsInfo(path string) (cadvisorapi.FsInfo, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(path, &fs); err != nil {
		return cadvisorapi.FsInfo{}, fmt.Errorf("read the file system of %s: %w", path, err)
	}
	inodes, free := fs.Files, fs.Ffree
	block := uint64(fs.Bsize)
	return cadvisorapi.FsInfo{
		Timestamp:  time.Now(),
		Mountpoint: path,
		Capacity:   fs.Blocks * block,
		Available:  fs.Bavail * block,
		Usage:      (fs.Blocks - fs.Bfree) * block,
		Inodes:     &inodes,
		InodesFree: &free,
	}, nil
}
