package hostagent

import (
	"context"
	"fmt"
	"time"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/kit/conditions"
)

// complete ends the sandbox of a pod that Succeeded or Failed. Its kubelet has done so, as a rule, before it reported the
// pod's end; it stays, small as it is, and serves logs, which are files. What containerd knows of the ended containers stays
// with it. From the pod's end on the Berth takes no room and is not metered.
func (r *reconciler) complete(ctx context.Context, b *v1alpha1.Berth) error {
	at := parseMicro(b.Annotations[v1alpha1.AnnotationCompleted])
	if at == nil || b.Status.Timeline.Completed != nil {
		return nil
	}
	if err := stopSandboxes(ctx, r.cri, b.Spec.NodeName); err != nil {
		return fmt.Errorf("end the sandbox of completed pod %s/%s: %w", b.Namespace, b.Spec.Pod.Name, err)
	}
	b.Status.Timeline.Completed = at
	completed(b)
	return nil
}

// completed writes what is true of a Berth without a sandbox.
func completed(b *v1alpha1.Berth) {
	b.Status.Phase = v1alpha1.BerthCompleted
	conditions.Set(&b.Status.Conditions, v1alpha1.ConditionCompleted, true, b.Generation, "PodEnded",
		"the pod ended at "+b.Status.Timeline.Completed.UTC().Format(time.RFC3339)+"; its sandbox is gone and is not metered from then on; its logs stay until the pod is deleted")
	for _, kind := range []string{v1alpha1.ConditionSandboxReady, v1alpha1.ConditionReady} {
		conditions.Set(&b.Status.Conditions, kind, false, b.Generation, "PodEnded", "the pod has ended")
	}
}
