// Package host notices Hosts whose agent has gone quiet.
package host

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/kit/conditions"
)

// silence is how long an agent may be quiet (it reports every 10 s) before its host gets no new pods.
const silence = 40 * time.Second

// Reconciler watches heartbeats.
type Reconciler struct {
	Client client.Client
	Now    func() time.Time
}

// Setup lets the manager run the reconciler.
func (r *Reconciler) Setup(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).Named("host").For(&v1alpha1.Host{}).Complete(r)
}

// Reconcile looks at one host's heartbeat.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	h := &v1alpha1.Host{}
	if err := r.Client.Get(ctx, req.NamespacedName, h); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if !meta.IsStatusConditionTrue(h.Status.Conditions, v1alpha1.ConditionReady) {
		return reconcile.Result{}, nil
	}
	if wait := h.Status.HeartbeatTime.Add(silence).Sub(r.Now()); wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	before := h.DeepCopy()
	conditions.Set(&h.Status.Conditions, v1alpha1.ConditionReady, false, h.Generation, "AgentSilent",
		fmt.Sprintf("the host agent has not reported since %s; is berth-host running there?", h.Status.HeartbeatTime.UTC().Format(time.RFC3339)))
	return reconcile.Result{}, client.IgnoreNotFound(r.Client.Status().Patch(ctx, h, client.MergeFrom(before)))
}
