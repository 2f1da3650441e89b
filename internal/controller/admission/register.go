package admission

import (
	"context"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/berth-run/berth/internal/eks"
)

// listenRetry is how soon the registration looks again whether the webhook listens.
const listenRetry = 100 * time.Millisecond

// Registration keeps the MutatingWebhookConfiguration as it must be: it is made when the webhook listens, and put right
// when somebody changes or deletes it. Every replica does so, since each has a webhook on its own loopback address.
type Registration struct {
	Client client.Client
	// URL of the webhook; CABundle (PEM) verifies its certificate.
	URL      string
	CABundle []byte
	// Listening says whether the webhook answers.
	Listening healthz.Checker

	done atomic.Bool
}

// Setup lets the manager run the registration.
func (r *Registration) Setup(mgr ctrl.Manager) error {
	first := reconcile.Request{NamespacedName: client.ObjectKey{Name: eks.WebhookConfigurationName}}
	return ctrl.NewControllerManagedBy(mgr).Named("admission").
		For(&admissionregistration.MutatingWebhookConfiguration{}).
		WatchesRawSource(source.Func(func(_ context.Context, q workqueue.TypedRateLimitingInterface[reconcile.Request]) error {
			q.Add(first)
			return nil
		})).
		WithOptions(controller.Options{NeedLeaderElection: ptr.To(false)}).
		Complete(r)
}

// Reconcile creates or corrects the configuration.
func (r *Registration) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	if req.Name != eks.WebhookConfigurationName {
		return reconcile.Result{}, nil
	}
	if r.Listening != nil && r.Listening(nil) != nil {
		return reconcile.Result{RequeueAfter: listenRetry}, nil
	}
	config := &admissionregistration.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: eks.WebhookConfigurationName}}
	_, err := controllerutil.CreateOrUpdate(ctx, r.Client, config, func() error {
		config.Webhooks = []admissionregistration.MutatingWebhook{r.hook()}
		return nil
	})
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("register the admission webhook: %w", err)
	}
	r.done.Store(true)
	return reconcile.Result{}, nil
}

// Ready is a health check: the webhook is registered.
func (r *Registration) Ready(*http.Request) error {
	if !r.done.Load() {
		return fmt.Errorf("the admission webhook is not registered yet")
	}
	return nil
}

// hook is the webhook as EKS registers it (facts 2.1).
func (r *Registration) hook() admissionregistration.MutatingWebhook {
	return admissionregistration.MutatingWebhook{
		Name:                    eks.WebhookConfigurationName,
		ClientConfig:            admissionregistration.WebhookClientConfig{URL: &r.URL, CABundle: r.CABundle},
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
