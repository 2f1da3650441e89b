package node

import (
	"context"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apiserver/pkg/server/healthz"
	internalapi "k8s.io/cri-api/pkg/apis"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	"k8s.io/kubernetes/pkg/kubelet/config"
	"k8s.io/kubernetes/pkg/kubelet/status"

	"github.com/berth-run/berth/internal/nodeconfig"
)

// containerManager is upstream's stub with a capacity: the pod's size. Cgroups, CPU sets and devices are the host
// agent's business or nobody's.
type containerManager struct {
	cm.ContainerManager
	capacity v1.ResourceList
	gate     *startGate
}

func newContainerManager(cfg nodeconfig.Config, gate *startGate) cm.ContainerManager {
	return &containerManager{ContainerManager: cm.NewStubContainerManager(), capacity: cfg.Capacity, gate: gate}
}

// Start is the last step of the kubelet's first look at the container runtime.
func (m *containerManager) Start(ctx context.Context, node *v1.Node, pods cm.ActivePodsFunc, getNode cm.GetNodeFunc, ready config.SourcesReady, provider status.PodStatusProvider, runtime internalapi.RuntimeService, isolation bool) error {
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

// GetDevicePluginResourceCapacity overrides what cAdvisor's whole CPUs can say: capacity and allocatable are the pod's size.
func (m *containerManager) GetDevicePluginResourceCapacity(klog.Logger) (v1.ResourceList, v1.ResourceList, []string) {
	return m.capacity, m.capacity, nil
}

// GetNodeAllocatableAbsolute is the pod's size.
func (m *containerManager) GetNodeAllocatableAbsolute() v1.ResourceList { return m.capacity }

// NewPodContainerManager is asked early in each sync of a pod.
func (m *containerManager) NewPodContainerManager() cm.PodContainerManager {
	return podContainerManager{m.ContainerManager.NewPodContainerManager(), m.gate}
}

type podContainerManager struct {
	cm.PodContainerManager
	gate *startGate
}

// Exists says that the pod's cgroup is there: the host agent made it before it started this process.
func (m podContainerManager) Exists(pod *v1.Pod) bool {
	m.gate.awaitVolumes(pod)
	return true
}
