package admission

import (
	"context"
	"fmt"
	"net/http"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/berth-run/berth/internal/eks"
)

// URL of the webhooks on their own machine, less the path; on EKS the port is eks.WebhookPort (facts 2.1).
func URL(port int) string { return fmt.Sprintf("https://127.0.0.1:%d", port) }

// Registration keeps the MutatingWebhookConfiguration as it is to be: it is written at the start, and again when somebody
// changes or deletes it, because without it new pods silently go to the default scheduler.
type Registration struct {
	Client client.Client
	// URL of the webhooks, less the path, and CA (PEM) that verifies their certificate.
	URL string
	CA  []byte
}

// Setup lets the manager run the registration.
func (r *Registration) Setup(mgr ctrl.Manager) error {
	start := make(chan event.GenericEvent, 1) // the object that is to be made does not lead here by itself
	start <- event.GenericEvent{Object: &admissionregistration.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: eks.WebhookConfigurationName}}}
	return ctrl.NewControllerManagedBy(mgr).Named("webhook-registration").
		For(&admissionregistration.MutatingWebhookConfiguration{}).
		WatchesRawSource(source.Channel(start, &handler.EnqueueRequestForObject{})).
		Complete(r)
}

// Reconcile writes the configuration if it is not as it is to be.
func (r *Registration) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if req.Name != eks.WebhookConfigurationName {
		return reconcile.Result{}, nil
	}
	config := &admissionregistration.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: eks.WebhookConfigurationName}}
	_, err := controllerutil.CreateOrUpdate(ctx, r.Client, config, func() error {
		config.Webhooks = hooks(r.URL, r.CA)
		return nil
	})
	switch {
	case apierrors.IsConflict(err), apierrors.IsAlreadyExists(err):
		return reconcile.Result{}, nil // the cache is behind; what it has yet to learn leads here again
	case err != nil:
		return reconcile.Result{}, fmt.Errorf("register the admission webhook: %w", err)
	}
	return reconcile.Result{}, nil
}

// Check is nil if the API server has the webhook's registration, as far as the cache knows: new pods are judged.
func (r *Registration) Check(req *http.Request) error {
	var config admissionregistration.MutatingWebhookConfiguration
	if err := r.Client.Get(req.Context(), client.ObjectKey{Name: eks.WebhookConfigurationName}, &config); err != nil {
		return fmt.Errorf("the admission webhook is not registered: %w", err)
	}
	if !equality.Semantic.DeepEqual(config.Webhooks, hooks(r.URL, r.CA)) {
		return fmt.Errorf("the admission webhook's registration %s was changed by somebody else", config.Name)
	}
	return nil
}

// hooks are two, as on EKS (facts 2.1): one that marks pods, and one, of which nothing is known there, that looks at the
// ephemeral containers which are put into them.
func hooks(url string, caBundle []byte) []admissionregistration.MutatingWebhook {
	pods := hook(eks.WebhookConfigurationName, url+Path, caBundle, admissionregistration.Create, "pods", "*")
	debug := hook(debugHook, url+DebugPath, caBundle, admissionregistration.Update, "pods/ephemeralcontainers", "")
	return []admissionregistration.MutatingWebhook{pods, debug}
}

// hook is a webhook as EKS registers it (facts 2.1).
func hook(name, url string, caBundle []byte, operation admissionregistration.OperationType, resource, group string) admissionregistration.MutatingWebhook {
	return admissionregistration.MutatingWebhook{
		Name:                    name,
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
			Operations: []admissionregistration.OperationType{operation},
			Rule: admissionregistration.Rule{
				APIGroups: []string{group}, APIVersions: []string{"*"}, Resources: []string{resource}, Scope: ptr.To(admissionregistration.AllScopes),
			},
		}},
	}
}
