package scheduler

import (
	"context"
	"maps"
	"slices"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/podcheck"
)

// parallel pods are worked on at once; only the choice itself is made one by one.
const parallel = 8

// Setup lets the manager run the reconciler: for the pods of this scheduler, and for all that wait when something changes
// that they may wait for.
func (r *Reconciler) Setup(mgr ctrl.Manager) error {
	waiting := handler.EnqueueRequestsFromMapFunc(r.waiting)
	return ctrl.NewControllerManagedBy(mgr).Named("scheduler").For(&corev1.Pod{}).
		Watches(&v1alpha1.FargateProfile{}, waiting).
		Watches(&v1alpha1.Subnet{}, waiting).
		Watches(&v1alpha1.Host{}, waiting, builder.WithPredicates(predicate.Funcs{UpdateFunc: hostChanged})).
		Watches(&v1alpha1.Berth{}, handler.EnqueueRequestsFromMapFunc(r.waitingForRoom)).
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(r.waitingForOthers), builder.WithPredicates(neighbourChanged)).
		Watches(&corev1.PersistentVolumeClaim{}, handler.EnqueueRequestsFromMapFunc(r.waitingForClaim)).
		Watches(&corev1.PersistentVolume{}, handler.EnqueueRequestsFromMapFunc(r.waitingForVolume)).
		Watches(&nodev1.RuntimeClass{}, handler.EnqueueRequestsFromMapFunc(r.waitingForClass)).
		Watches(&corev1.Namespace{}, handler.EnqueueRequestsFromMapFunc(r.waitingIn), builder.WithPredicates(predicate.LabelChangedPredicate{})).
		WithOptions(controller.Options{MaxConcurrentReconciles: parallel}).
		Complete(r)
}

// hostChanged leaves out what no placement depends on, such as heartbeats.
func hostChanged(e event.UpdateEvent) bool {
	before, isHost := e.ObjectOld.(*v1alpha1.Host)
	now, isHostNow := e.ObjectNew.(*v1alpha1.Host)
	if !isHost || !isHostNow {
		return false
	}
	isReady := func(h *v1alpha1.Host) bool {
		return meta.IsStatusConditionTrue(h.Status.Conditions, v1alpha1.ConditionReady) && h.DeletionTimestamp == nil
	}
	return isReady(before) != isReady(now) || !equality.Semantic.DeepEqual(before.Spec, now.Spec) ||
		!equality.Semantic.DeepEqual(before.Status.Capacity, now.Status.Capacity) || !slices.Equal(before.Status.Isolations, now.Status.Isolations) ||
		!equality.Semantic.DeepEqual(before.Status.Probes, now.Status.Probes)
}

// neighbourChanged lets through what changes the judgement of others' spread constraints and pod affinity: another pod's
// labels, and its end. That it was placed shows in its Berth.
var neighbourChanged = predicate.Funcs{
	CreateFunc:  func(event.CreateEvent) bool { return false },
	GenericFunc: func(event.GenericEvent) bool { return false },
	UpdateFunc: func(e event.UpdateEvent) bool {
		return !maps.Equal(e.ObjectOld.GetLabels(), e.ObjectNew.GetLabels()) || (e.ObjectOld.GetDeletionTimestamp() == nil) != (e.ObjectNew.GetDeletionTimestamp() == nil)
	},
}

// waitingForOthers are the pods that spread constraints or pod affinity left no place.
func (r *Reconciler) waitingForOthers(context.Context, client.Object) []reconcile.Request {
	var out []reconcile.Request
	r.said.Range(func(pod, last any) bool {
		if name, ok := pod.(types.NamespacedName); ok && last.(saying).key == topologyKey {
			out = append(out, reconcile.Request{NamespacedName: name})
		}
		return true
	})
	return out
}

// waitingForRoom: a Berth gives its room back when it is deleted, and already when its pod has completed. Until then it only
// matters to those who look at other pods.
func (r *Reconciler) waitingForRoom(ctx context.Context, o client.Object) []reconcile.Request {
	berth, ok := o.(*v1alpha1.Berth)
	switch {
	case !ok:
		return nil
	case berth.DeletionTimestamp != nil:
		r.forget(berth)
	case berth.Status.Timeline.Completed == nil:
		return r.waitingForOthers(ctx, o)
	}
	return r.waiting(ctx, o)
}

func (r *Reconciler) waitingForClaim(ctx context.Context, o client.Object) []reconcile.Request {
	return r.waitingThat(ctx, func(p *corev1.Pod) bool { return slices.Contains(podcheck.Claims(p), o.GetName()) }, client.InNamespace(o.GetNamespace()))
}

// waitingForVolume: a claim's volume is one of the claim's namespace only by the claim, which may not be in the cache yet.
func (r *Reconciler) waitingForVolume(ctx context.Context, _ client.Object) []reconcile.Request {
	return r.waitingThat(ctx, func(p *corev1.Pod) bool { return len(podcheck.Claims(p)) > 0 })
}

func (r *Reconciler) waitingForClass(ctx context.Context, class client.Object) []reconcile.Request {
	return r.waitingThat(ctx, func(p *corev1.Pod) bool { return ptr.Deref(p.Spec.RuntimeClassName, "") == class.GetName() })
}

func (r *Reconciler) waitingIn(ctx context.Context, namespace client.Object) []reconcile.Request {
	return r.waitingThat(ctx, func(*corev1.Pod) bool { return true }, client.InNamespace(namespace.GetName()))
}

// waiting lists the pods that were refused or could not be placed.
func (r *Reconciler) waiting(ctx context.Context, _ client.Object) []reconcile.Request {
	return r.waitingThat(ctx, func(*corev1.Pod) bool { return true })
}

func (r *Reconciler) waitingThat(ctx context.Context, holds func(*corev1.Pod) bool, where ...client.ListOption) []reconcile.Request {
	var pods corev1.PodList
	if err := r.Client.List(ctx, &pods, where...); err != nil {
		return nil
	}
	var out []reconcile.Request
	for i := range pods.Items {
		p := &pods.Items[i]
		if p.Spec.NodeName == "" && p.Spec.SchedulerName == eks.SchedulerName && holds(p) {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(p)})
		}
	}
	return out
}
