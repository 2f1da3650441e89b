// Package patch recycles pods whose nodes are old, as a Patch asks for, in the manner of Amazon EKS (facts 6): a notice to
// each, eviction zone by zone with respect for PodDisruptionBudgets, an announced termination for those that it does not
// move. Unlike EKS it tries again until then whether the budget allows it.
package patch

import (
	"context"
	"fmt"
	"reflect"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/kit/conditions"
	"github.com/berth-run/berth/internal/patching"
)

const (
	// patience: so long a pod's eviction is tried, every evictSoon, before its termination is announced. A budget that only
	// waits for the other zone's pods to be ready again allows it by then. Afterwards it is tried every evictAgain.
	patience   = time.Minute
	evictSoon  = 5 * time.Second
	evictAgain = time.Minute
	// atOnce is the shortest wait there is: 0 waits for an event.
	atOnce = time.Millisecond
	// defaultDelay is that of EKS's example: a termination three days after the failed eviction.
	defaultDelay = 72 * time.Hour
)

// Reconciler carries Patches out.
type Reconciler struct {
	Client   client.Client
	Recorder record.EventRecorder
	Now      func() time.Time
	// Cluster is the cluster's name in notices.
	Cluster string

	// tried is when a pod's eviction was tried (types.UID -> attempts). Forgotten at a restart, which tries anew.
	tried sync.Map
}

type attempts struct{ first, last time.Time }

// Setup lets the manager run the reconciler. Hosts that change their version, pods that go and berths that come lead to all
// patches: there are few.
func (r *Reconciler) Setup(mgr ctrl.Manager) error {
	all := handler.EnqueueRequestsFromMapFunc(func(ctx context.Context, _ client.Object) []reconcile.Request {
		var list v1alpha1.PatchList
		if err := r.Client.List(ctx, &list); err != nil {
			return nil
		}
		var out []reconcile.Request
		for _, p := range list.Items {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKey{Name: p.Name}})
		}
		return out
	})
	gone := predicate.Funcs{CreateFunc: func(event.CreateEvent) bool { return false }, UpdateFunc: func(event.UpdateEvent) bool { return false }}
	versions := predicate.Funcs{UpdateFunc: func(e event.UpdateEvent) bool {
		before, ok := e.ObjectOld.(*v1alpha1.Host)
		now, alsoOK := e.ObjectNew.(*v1alpha1.Host)
		return ok && alsoOK && before.Status.NodeVersion != now.Status.NodeVersion
	}}
	return ctrl.NewControllerManagedBy(mgr).Named("patch").For(&v1alpha1.Patch{}).
		Watches(&corev1.Pod{}, all, builder.WithPredicates(gone)).
		Watches(&v1alpha1.Host{}, all, builder.WithPredicates(versions)).
		Complete(r)
}

// Reconcile takes one Patch a step further.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	p := &v1alpha1.Patch{}
	if err := r.Client.Get(ctx, req.NamespacedName, p); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if p.DeletionTimestamp != nil || p.Spec.Window == nil && p.Status.Phase == v1alpha1.PatchComplete {
		return reconcile.Result{}, nil
	}
	before := p.DeepCopy()
	wait, err := r.advance(ctx, p)
	if err != nil {
		return reconcile.Result{}, err
	}
	if !reflect.DeepEqual(before.Status, p.Status) {
		if err := r.Client.Status().Patch(ctx, p, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
			return reconcile.Result{}, fmt.Errorf("write the status of patch %s: %w", p.Name, err)
		}
	}
	return reconcile.Result{RequeueAfter: wait}, nil
}

// advance does what can be done now, and says after how long to look again; 0 means when something happens.
func (r *Reconciler) advance(ctx context.Context, p *v1alpha1.Patch) (time.Duration, error) {
	now := r.Now()
	opening, open := patching.Open(p.Spec.Window, now)
	if !open {
		p.Status.Zone = ""
		state(p, v1alpha1.PatchWaiting, false, "OutsideWindow", "the window opens at "+opening.UTC().Format(time.RFC3339))
		return opening.Sub(now), nil
	}
	if p.Status.StartedAt == nil || p.Spec.Window != nil && p.Status.StartedAt.Time.Before(opening) {
		p.Status.StartedAt = &metav1.Time{Time: now.Truncate(time.Second)} // as the API server keeps it
	}
	subjects, err := r.subjects(ctx, p)
	if err != nil {
		return 0, err
	}
	if len(subjects) == 0 {
		p.Status.Zone, p.Status.Remaining, p.Status.Blocked = "", 0, 0
		state(p, v1alpha1.PatchComplete, true, "Recycled", "no pod is left that this patch is for")
		return untilClosed(p.Spec.Window, opening, now, 0), nil
	}
	zone := patching.Zone(subjects)
	wait := time.Duration(0)
	for _, s := range subjects {
		next, err := r.recycle(ctx, p, s, zone, now)
		if err != nil {
			return 0, err
		}
		if next > 0 && (wait == 0 || next < wait) {
			wait = next
		}
	}
	p.Status.Zone, p.Status.Remaining, p.Status.Blocked = patching.Zone(subjects), int32(len(subjects)), int32(patching.Blocked(subjects))
	state(p, v1alpha1.PatchPatching, false, "PodsRemain", fmt.Sprintf("%d pods remain, %d of them wait for their scheduled termination", p.Status.Remaining, p.Status.Blocked))
	if p.Status.Zone != zone { // the zone's pods could not be moved: on to the next
		return atOnce, nil
	}
	return untilClosed(p.Spec.Window, opening, now, wait), nil
}

// untilClosed is the wait, but no longer than the window is open: what happens then is not an event.
func untilClosed(w *v1alpha1.MaintenanceWindow, opening, now time.Time, wait time.Duration) time.Duration {
	if w == nil {
		return wait
	}
	closes := opening.Add(w.Duration.Duration).Sub(now)
	if wait == 0 {
		return closes
	}
	return min(wait, closes)
}

func state(p *v1alpha1.Patch, phase v1alpha1.PatchPhase, ready bool, reason, message string) {
	p.Status.Phase = phase
	conditions.Set(&p.Status.Conditions, v1alpha1.ConditionReady, ready, p.Generation, reason, message)
}

// subjects are what is left of the round.
func (r *Reconciler) subjects(ctx context.Context, p *v1alpha1.Patch) ([]patching.Subject, error) {
	var pods corev1.PodList
	var berths v1alpha1.BerthList
	var hosts v1alpha1.HostList
	for _, list := range []client.ObjectList{&pods, &berths, &hosts} {
		if err := r.Client.List(ctx, list); err != nil {
			return nil, fmt.Errorf("list what patch %s is for: %w", p.Name, err)
		}
	}
	uids := map[types.UID]bool{}
	for i := range pods.Items {
		uids[pods.Items[i].UID] = true
	}
	r.tried.Range(func(uid, _ any) bool {
		if !uids[uid.(types.UID)] {
			r.tried.Delete(uid)
		}
		return true
	})
	return patching.Subjects(p.Spec.Pods, pods.Items, berths.Items, hosts.Items, p.Status.StartedAt.Time), nil
}

func delay(p *v1alpha1.Patch) time.Duration {
	if p.Spec.TerminationDelay == nil {
		return defaultDelay
	}
	return p.Spec.TerminationDelay.Duration
}
