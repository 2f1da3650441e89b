package admission

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/podcheck"
)

const (
	// DebugPath on which the webhook for ephemeral containers answers.
	DebugPath = "/debug-containers"
	debugHook = "0501-amazon-eks-fargate-mutation.amazonaws.com"
)

// Debug looks at the ephemeral containers that `kubectl debug` puts into a pod. On EKS one that is not allowed is accepted
// and its pod suffers; here whoever asks for it is told at once, and the pod runs on.
type Debug struct{}

// Handle denies ephemeral containers of this scheduler's pods that have what Fargate refuses.
func (Debug) Handle(_ context.Context, req admission.Request) admission.Response {
	var pod corev1.Pod
	if err := json.Unmarshal(req.Object.Raw, &pod); err != nil {
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("decode the pod: %w", err))
	}
	if pod.Spec.SchedulerName != eks.SchedulerName {
		return admission.Allowed("not a pod of " + eks.SchedulerName)
	}
	if violations := podcheck.Debug(pod.Spec.EphemeralContainers); len(violations) > 0 {
		return admission.Denied(eks.MessageUnsupported(violations))
	}
	return admission.Allowed("")
}
