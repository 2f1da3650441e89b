package node

import (
	"errors"
	"io/fs"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/cm"

	"github.com/berth-run/berth/internal/nodeconfig"
)

// TestNoRoomAfterThePod: a node has room for one pod until that has ended, before it came as well.
func TestNoRoomAfterThePod(t *testing.T) {
	m, ok := newContainerManager(nodeconfig.Config{Capacity: v1.ResourceList{v1.ResourceCPU: resource.MustParse("1")}}, newStartGate()).(*containerManager)
	if !ok {
		t.Fatal("not ours")
	}
	var active []*v1.Pod
	pods := cm.ActivePodsFunc(func() []*v1.Pod { return active })
	m.active.Store(&pods)
	full := func() bool {
		capacity, allocatable, _ := m.GetDevicePluginResourceCapacity(klog.Background())
		if _, said := capacity[v1.ResourcePods]; said || allocatable.Cpu().Value() != 1 {
			t.Errorf("capacity %v, allocatable %v", capacity, allocatable)
		}
		pods, said := allocatable[v1.ResourcePods]
		return said && pods.IsZero()
	}
	if full() {
		t.Error("full before its pod came")
	}
	m.NewPodContainerManager()
	active = []*v1.Pod{{}}
	if full() {
		t.Error("full while its pod runs, whose admission asks for room")
	}
	active = nil
	if !full() {
		t.Error("room for another once its pod has ended")
	}
}

// TestPodCgroup: to a kubelet that resizes containers the pod's cgroup is as large as the pod, before and after.
func TestPodCgroup(t *testing.T) {
	cfg := nodeconfig.Config{CgroupParent: "/berth/test-no-such-pod", Capacity: v1.ResourceList{
		v1.ResourceCPU: resource.MustParse("250m"), v1.ResourceMemory: resource.MustParse("512Mi")}}
	pods := newContainerManager(cfg, newStartGate()).NewPodContainerManager()
	less := int64(1)
	if err := pods.SetPodCgroupConfig(klog.Background(), nil, &cm.ResourceConfig{Memory: &less}); err != nil {
		t.Error(err)
	}
	memory, err := pods.GetPodCgroupConfig(nil, v1.ResourceMemory)
	if err != nil || *memory.Memory != 512<<20 || memory.CPUQuota != nil {
		t.Errorf("memory: %+v, %v", memory, err)
	}
	cpu, err := pods.GetPodCgroupConfig(nil, v1.ResourceCPU)
	if err != nil || *cpu.CPUQuota != 25_000 || *cpu.CPUPeriod != 100_000 || *cpu.CPUShares != 256 || cpu.Memory != nil {
		t.Errorf("CPU: %+v, %v", cpu, err)
	}
	if _, err := pods.GetPodCgroupConfig(nil, v1.ResourceEphemeralStorage); err == nil {
		t.Error("a cgroup has a limit of storage")
	}
	if _, err := pods.GetPodCgroupMemoryUsage(nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the use of a cgroup that is not there: %v", err)
	}
}
