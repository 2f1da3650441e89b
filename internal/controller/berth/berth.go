// Package berth ends Berths: when the pod is gone its Berth goes, when the host is clean the Node goes, and a pod whose
// machine never came does not wait for a kubelet that nobody started.
package berth

import (
	"context"
	"fmt"
	"time"

	coordination "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/controller/scheduler"
)

const (
	parallel = 8
	// unacceptedGrace is how long a deleted pod may wait for a host agent to take up its Berth, from the deletion on.
	unacceptedGrace = 3 * time.Second
	// orphanGrace is how long a deleted pod may wait, beyond its own grace period, for a kubelet that never registered.
	orphanGrace = 10 * time.Second
)

// Reconciler ends Berths.
type Reconciler struct {
	Client client.Client
	// Live reads past the cache: a pod that is not in it may just not be there yet.
	Live client.Reader
	Now  func() time.Time
}

// Setup lets the manager run the reconciler, for Berths and for the pods that own them.
func (r *Reconciler) Setup(mgr ctrl.Manager) error {
	toBerth := func(_ context.Context, o client.Object) []reconcile.Request {
		pod, ok := o.(*corev1.Pod)
		if !ok || pod.Spec.NodeName == "" && pod.DeletionTimestamp == nil {
			return nil
		}
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Namespace: pod.Namespace, Name: scheduler.BerthName(pod)}}}
	}
	return ctrl.NewControllerManagedBy(mgr).Named("berth").For(&v1alpha1.Berth{}).
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(toBerth)).
		WithOptions(controller.Options{MaxConcurrentReconciles: parallel}).
		Complete(r)
}

// Reconcile looks after one Berth.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	berth := &v1alpha1.Berth{}
	if err := r.Client.Get(ctx, req.NamespacedName, berth); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if berth.DeletionTimestamp != nil {
		return reconcile.Result{}, r.finalize(ctx, berth)
	}
	pod, err := r.podOf(ctx, berth)
	if err != nil {
		return reconcile.Result{}, err
	}
	if pod == nil {
		err := r.Client.Delete(ctx, berth, client.Preconditions{UID: &berth.UID})
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	return r.forceOrphan(ctx, pod, berth)
}

// podOf is the pod that the Berth is for, or nil if it is gone for certain.
func (r *Reconciler) podOf(ctx context.Context, berth *v1alpha1.Berth) (*corev1.Pod, error) {
	key := client.ObjectKey{Namespace: berth.Namespace, Name: berth.Spec.Pod.Name}
	for _, reader := range []client.Reader{r.Client, r.Live} {
		pod := &corev1.Pod{}
		err := reader.Get(ctx, key, pod)
		switch {
		case err == nil && pod.UID == berth.Spec.Pod.UID:
			return pod, nil
		case client.IgnoreNotFound(err) != nil:
			return nil, fmt.Errorf("get pod %s: %w", key, err)
		}
	}
	return nil, nil
}

// forceOrphan removes a deleted pod whose kubelet never came up: nobody else would.
func (r *Reconciler) forceOrphan(ctx context.Context, pod *corev1.Pod, berth *v1alpha1.Berth) (reconcile.Result, error) {
	if pod.DeletionTimestamp == nil || meta.IsStatusConditionTrue(berth.Status.Conditions, v1alpha1.ConditionNodeRegistered) {
		return reconcile.Result{}, nil
	}
	end := pod.DeletionTimestamp.Add(orphanGrace) // the timestamp is when the pod's own grace period ends
	if berth.Status.Timeline.Accepted == nil {
		end = pod.DeletionTimestamp.Add(unacceptedGrace - time.Duration(ptr.Deref(pod.DeletionGracePeriodSeconds, 0))*time.Second)
	}
	if wait := end.Sub(r.Now()); wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	now := int64(0)
	err := r.Client.Delete(ctx, pod, &client.DeleteOptions{GracePeriodSeconds: &now, Preconditions: &metav1.Preconditions{UID: &pod.UID}})
	return reconcile.Result{}, client.IgnoreNotFound(err)
}

// finalize removes the Node once the host agent has let go, or once its host is gone for good.
func (r *Reconciler) finalize(ctx context.Context, berth *v1alpha1.Berth) error {
	before := berth.DeepCopy()
	if controllerutil.ContainsFinalizer(berth, v1alpha1.FinalizerHost) {
		err := r.Live.Get(ctx, client.ObjectKey{Name: berth.Spec.HostName}, &v1alpha1.Host{})
		if err == nil {
			return nil
		}
		if client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("get host %s: %w", berth.Spec.HostName, err)
		}
		controllerutil.RemoveFinalizer(berth, v1alpha1.FinalizerHost)
	}
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: berth.Spec.NodeName}}
	lease := &coordination.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: berth.Spec.NodeName}}
	for _, o := range []client.Object{node, lease} {
		if err := r.Client.Delete(ctx, o); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("delete %T %s: %w", o, o.GetName(), err)
		}
	}
	controllerutil.RemoveFinalizer(berth, v1alpha1.FinalizerNode)
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if err := r.Client.Patch(ctx, berth, patch); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("let berth %s go: %w", berth.Name, err)
	}
	return nil
}
