// Package admission is the mutating webhook that marks the pods that a profile takes: on CREATE it sets their scheduler
// and the profile label, and nothing else (facts 2.1 to 2.3).
package admission

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/profile"
)

const (
	// Path on which the webhook answers.
	Path = "/mutate"
	// AnnotationAdmitted on a pod is when the webhook saw it (RFC 3339 with nanoseconds); it begins the Berth's timeline.
	AnnotationAdmitted = "berth.run/admitted-at"
)

// Handler answers admission reviews from the cache of Reader.
type Handler struct {
	Reader client.Reader
	Now    func() time.Time
}

// Handle marks the pod if an ACTIVE profile takes it, and lets everything pass.
func (h *Handler) Handle(ctx context.Context, req admission.Request) admission.Response {
	var pod corev1.Pod
	if err := json.Unmarshal(req.Object.Raw, &pod); err != nil {
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("decode the pod: %w", err))
	}
	var profiles v1alpha1.FargateProfileList
	if err := h.Reader.List(ctx, &profiles); err != nil {
		return admission.Errored(http.StatusInternalServerError, fmt.Errorf("list profiles: %w", err))
	}
	decision := profile.Select(profiles.Items, &pod, req.Namespace)
	if decision.Profile == nil {
		return admission.Allowed(decision.Reason)
	}
	pod.Spec.SchedulerName = eks.SchedulerName
	setKey(&pod.Labels, eks.LabelProfile, decision.Profile.Name)
	setKey(&pod.Annotations, AnnotationAdmitted, h.Now().UTC().Format(time.RFC3339Nano))
	marked, err := json.Marshal(&pod)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, fmt.Errorf("encode the pod: %w", err))
	}
	return admission.PatchResponseFromRaw(req.Object.Raw, marked)
}

func setKey(m *map[string]string, key, value string) {
	if *m == nil {
		*m = map[string]string{}
	}
	(*m)[key] = value
}

// Register creates or updates the MutatingWebhookConfiguration; caBundle (PEM) verifies the webhook's certificate.
func Register(ctx context.Context, c client.Client, caBundle []byte) error {
	config := &admissionregistration.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: eks.WebhookConfigurationName}}
	_, err := controllerutil.CreateOrUpdate(ctx, c, config, func() error {
		config.Webhooks = []admissionregistration.MutatingWebhook{hook(caBundle)}
		return nil
	})
	if err != nil {
		return fmt.Errorf("register the admission webhook: %w", err)
	}
	return nil
}

// hook is the webhook as EKS registers it (facts 2.1).
func hook(caBundle []byte) admissionregistration.MutatingWebhook {
	url := fmt.Sprintf("https://127.0.0.1:%d%s", eks.WebhookPort, Path)
	ignore, equivalent := admissionregistration.Ignore, admissionregistration.Equivalent
	never, none := admissionregistration.NeverReinvocationPolicy, admissionregistration.SideEffectClassNone
	scope, timeout := admissionregistration.AllScopes, int32(eks.WebhookTimeoutSeconds)
	return admissionregistration.MutatingWebhook{
		Name:                    eks.WebhookConfigurationName,
		ClientConfig:            admissionregistration.WebhookClientConfig{URL: &url, CABundle: caBundle},
		FailurePolicy:           &ignore,
		MatchPolicy:             &equivalent,
		ReinvocationPolicy:      &never,
		SideEffects:             &none,
		TimeoutSeconds:          &timeout,
		AdmissionReviewVersions: []string{"v1"},
		NamespaceSelector:       &metav1.LabelSelector{},
		ObjectSelector:          &metav1.LabelSelector{},
		Rules: []admissionregistration.RuleWithOperations{{
			Operations: []admissionregistration.OperationType{admissionregistration.Create},
			Rule:       admissionregistration.Rule{APIGroups: []string{"*"}, APIVersions: []string{"*"}, Resources: []string{"pods"}, Scope: &scope},
		}},
	}
}
