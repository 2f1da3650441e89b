package node

import (
	"context"

	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/lifecycle"

	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/podcheck"
)

// admission is asked by the kubelet whether a pod may run here. The default scheduler's pods do not tolerate the node's
// taint; one whose owner wrote spec.nodeName, or tolerates it, comes all the same and fails here, as on EKS (facts 2.7).
type admission struct{}

// Admit refuses what the kubelet of EKS Fargate refuses, in its words. Claims were looked at by the scheduler.
func (admission) Admit(_ context.Context, attrs *lifecycle.PodAdmitAttributes) lifecycle.PodAdmitResult {
	if why := podcheck.Foreign(attrs.Pod); len(why) > 0 {
		return lifecycle.PodAdmitResult{Reason: eks.ReasonUnsupportedSpec, Message: eks.MessageUnsupportedSpec(why)}
	}
	return lifecycle.PodAdmitResult{Admit: true}
}

// GetAllocateResourcesPodAdmitHandler is asked before the kubelet counts how many pods a node may have.
func (m *containerManager) GetAllocateResourcesPodAdmitHandler(klog.Logger) lifecycle.PodAdmitHandler {
	return admission{}
}
