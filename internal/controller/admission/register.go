package admission

import (
	"context"
	"fmt"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/berth-run/berth/internal/eks"
)

// URL of the webhook on its own machine; on EKS the port is eks.WebhookPort (facts 2.1).
func URL(port int) string { return fmt.Sprintf("https://127.0.0.1:%d%s", port, Path) }

// Register creates or corrects the MutatingWebhookConfiguration; caBundle (PEM) verifies the certificate of the webhook at url.
func Register(ctx context.Context, c client.Client, url string, caBundle []byte) error {
	config := &admissionregistration.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: eks.WebhookConfigurationName}}
	_, err := controllerutil.CreateOrUpdate(ctx, c, config, func() error {
		config.Webhooks = []admissionregistration.MutatingWebhook{hook(url, caBundle)}
		return nil
	})
	if err != nil {
		return fmt.Errorf("register the admission webhook: %w", err)
	}
	return nil
}

// hook is the webhook as EKS registers it (facts 2.1).
func hook(url string, caBundle []byte) admissionregistration.MutatingWebhook {
	return admissionregistration.MutatingWebhook{
		Name:                    eks.WebhookConfigurationName,
		ClientConfig:            admissionregistration.WebhookClientConfig{URL: &url, CABundle: caBundle},
		FailurePolicy:           ptr.To(admissionregistration.Ignore),
		MatchPolicy:             ptr.To(admissionregistration.Equivalent),
		ReinvocationPolicy:      ptr.To(admissionregistration.NeverReinvocationPolicy),
		SideEffects:             ptr.To(admissionregistration.SideEffectClassNone),
		TimeoutSeconds:          ptr.To(int32(eks.WebhookTimeoutSeconds)),
		AdmissionReviewVersions: []string{"v1"},
		NamespaceSelector:       &metav1.LabelSelector{},
		ObjectSelector:          &metav1.LabelSelector{},
		Rules: []admissionregistration.RuleWithOperations{{
			Operations: []admissionregistration.OperationType{admissionregistration.Create},
			Rule: admissionregistration.Rule{
				APIGroups: []string{"*"}, APIVersions: []string{"*"}, Resources: []string{"pods"}, Scope: ptr.To(admissionregistration.AllScopes),
			},
		}},
	}
}
