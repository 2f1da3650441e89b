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
