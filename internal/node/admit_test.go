package node

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/lifecycle"

	"github.com/berth-run/berth/internal/nodeconfig"
)

// TestForeignPodsFail: in the words of EKS's kubelet (facts 2.7), through the seam that the kubelet asks.
func TestForeignPodsFail(t *testing.T) {
	handler := newContainerManager(nodeconfig.Config{}, newStartGate()).GetAllocateResourcesPodAdmitHandler(klog.Background())
	admit := func(scheduler string) lifecycle.PodAdmitResult {
		return handler.Admit(t.Context(), &lifecycle.PodAdmitAttributes{Pod: &v1.Pod{Spec: v1.PodSpec{SchedulerName: scheduler}}})
	}
	if r := admit("fargate-scheduler"); !r.Admit {
		t.Errorf("the node's own pod is refused: %+v", r)
	}
	want := lifecycle.PodAdmitResult{Reason: "UnsupportedPodSpec", Message: "Pod not supported: SchedulerName is not fargate-scheduler"}
	if r := admit("default-scheduler"); r != want {
		t.Errorf("got %+v, want %+v", r, want)
	}
}
