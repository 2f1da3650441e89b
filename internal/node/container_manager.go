package node

import (
	"context"
	"fmt"
	"maps"
	"sync/atomic"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apiserver/pkg/server/healthz"
	internalapi "k8s.io/cri-api/pkg/apis"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	"k8s.io/kubernetes/pkg/kubelet/config"
	"k8s.io/kubernetes/pkg/kubelet/status"
	"k8s.io/utils/ptr"

	"github.com/berth-run/berth/internal/nodeconfig"
	"github.com/berth-run/berth/internal/podcgroup"
)

// containerManager is upstream's stub with a capacity: the pod's size. Cgroups, CPU sets and devices are the host
// agent's business or nobody's.
type containerManager struct {
	cm.ContainerManager
	capacity v1.ResourceList
	cgroup   string
	gate     *startGate
	// active are the pods that have not ended; met says that there was one.
	active atomic.Pointer[cm.ActivePodsFunc]
	met    atomic.Bool
}

func newContainerManager(cfg nodeconfig.Config, gate *startGate) cm.ContainerManager {
	return &containerManager{ContainerManager: cm.NewStubContainerManager(), capacity: cfg.Capacity, cgroup: cfg.CgroupParent, gate: gate}
}

// Start is the last step of the kubelet's first look at the container runtime.
func (m *containerManager) Start(ctx context.Context, node *v1.Node, pods cm.ActivePodsFunc, getNode cm.GetNodeFunc, ready config.SourcesReady, provider status.PodStatusProvider, runtime internalapi.RuntimeService, isolation bool) error {
	m.active.Store(&pods)
	err := m.ContainerManager.Start(ctx, node, pods, getNode, ready, provider, runtime, isolation)
	m.gate.markRuntimeUp()
	return err
}

// GetHealthCheckers is asked right before the kubelet's sync loop begins.
func (m *containerManager) GetHealthCheckers() []healthz.HealthChecker {
	m.gate.awaitRuntime()
	return nil
}

// GetCapacity is asked for the ephemeral storage only.
func (m *containerManager) GetCapacity(klog.Logger, bool) v1.ResourceList { return m.capacity }

// GetDevicePluginResourceCapacity overrides what cAdvisor's whole CPUs can say: capacity and allocatable are the pod's size. Once the pod has ended
// no other is to come: schedulers, which do not count ended pods, would take the node for an empty one.
func (m *containerManager) GetDevicePluginResourceCapacity(klog.Logger) (v1.ResourceList, v1.ResourceList, []string) {
	allocatable := m.capacity
	if active := m.active.Load(); active != nil && m.met.Load() && len((*active)()) == 0 {
		allocatable = maps.Clone(m.capacity)
		allocatable[v1.ResourcePods] = resource.Quantity{Format: resource.DecimalSI}
	}
	return m.capacity, allocatable, nil
}

// GetNodeAllocatableAbsolute is the pod's size.
func (m *containerManager) GetNodeAllocatableAbsolute() v1.ResourceList { return m.capacity }

// NewPodContainerManager is asked early in each sync of a pod.
func (m *containerManager) NewPodContainerManager() cm.PodContainerManager {
	m.met.Store(true)
	return podContainerManager{m.ContainerManager.NewPodContainerManager(), m.capacity, m.cgroup, m.gate}
}

// podContainerManager is the pod's cgroup as the kubelet sees it when containers are resized in place: as large as the
// machine, whatever they request.
type podContainerManager struct {
	cm.PodContainerManager
	capacity v1.ResourceList
	cgroup   string
	gate     *startGate
}

// GetPodCgroupConfig is the limit that the pod's cgroup has: the pod's size.
func (m podContainerManager) GetPodCgroupConfig(_ *v1.Pod, name v1.ResourceName) (*cm.ResourceConfig, error) {
	cpu := m.capacity.Cpu().MilliValue()
	switch name {
	case v1.ResourceMemory:
		return &cm.ResourceConfig{Memory: ptr.To(m.capacity.Memory().Value())}, nil
	case v1.ResourceCPU:
		return &cm.ResourceConfig{CPUShares: ptr.To(cm.MilliCPUToShares(cpu)), CPUPeriod: ptr.To(uint64(cm.QuotaPeriod)),
			CPUQuota: ptr.To(cm.MilliCPUToQuota(cpu, cm.QuotaPeriod))}, nil
	}
	return nil, fmt.Errorf("a pod's cgroup does not limit %s", name)
}

// SetPodCgroupConfig leaves the pod's cgroup as it is: its size was chosen, and is paid for, since the pod's creation.
// The API server admits no resize beyond it.
func (m podContainerManager) SetPodCgroupConfig(klog.Logger, *v1.Pod, *cm.ResourceConfig) error {
	return nil
}

// GetPodCgroupMemoryUsage is asked before a limit is lowered.
func (m podContainerManager) GetPodCgroupMemoryUsage(*v1.Pod) (uint64, error) {
	used, err := podcgroup.Read(m.cgroup)
	return used.Memory, err
}

// Exists says that the pod's cgroup is there: the host agent made it before it started this process.
func (m podContainerManager) Exists(pod *v1.Pod) bool {
	m.gate.awaitVolumes(pod)
	return true
}
