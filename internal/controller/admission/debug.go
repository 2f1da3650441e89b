package admission

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/podcheck"
	"github.com/berth-run/berth/internal/profile"
)

const (
	// DebugPath on which the webhook for ephemeral containers answers.
	DebugPath = "/debug-containers"
	debugHook = "0501-amazon-eks-fargate-mutation.amazonaws.com"
)

// Debug looks at the ephemeral containers that `kubectl debug` puts into a pod. On EKS one that is not allowed is accepted
// and its pod suffers; here whoever asks for it is told at once, and the pod runs on.
type Debug struct{ Reader client.Reader }

// Handle denies ephemeral containers of this scheduler's pods that have what Fargate refuses.
func (d Debug) Handle(ctx context.Context, req admission.Request) admission.Response {
	var pod corev1.Pod
	if err := json.Unmarshal(req.Object.Raw, &pod); err != nil {
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("decode the pod: %w", err))
	}
	if pod.Spec.SchedulerName != eks.SchedulerName {
		return admission.Allowed("not a pod of " + eks.SchedulerName)
	}
	privileged, err := d.allowsPrivileged(ctx, &pod)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	if violations := podcheck.Debug(pod.Spec.EphemeralContainers, podcheck.Options{AllowPrivileged: privileged}); len(violations) > 0 {
		return admission.Denied(eks.MessageUnsupported(violations))
	}
	return admission.Allowed("")
}

// allowsPrivileged tells whether the pod's profile permits all rights inside the isolation that the pod runs in.
func (d Debug) allowsPrivileged(ctx context.Context, pod *corev1.Pod) (bool, error) {
	var p v1alpha1.FargateProfile
	err := d.Reader.Get(ctx, client.ObjectKey{Name: pod.Labels[eks.LabelProfile]}, &p)
	if err != nil || !p.Spec.AllowPrivileged {
		return false, client.IgnoreNotFound(err)
	}
	var berths v1alpha1.BerthList
	if err := d.Reader.List(ctx, &berths, client.InNamespace(pod.Namespace)); err != nil {
		return false, fmt.Errorf("list berths: %w", err)
	}
	for _, b := range berths.Items {
		if b.Spec.Pod.UID == pod.UID {
			return profile.AllowsPrivileged(&p, b.Spec.Isolation), nil
		}
	}
	return false, nil
}
