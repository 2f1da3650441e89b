// Package berth ends Berths: when the pod is gone its Berth goes, when the host is clean the Node goes. A pod does not
// outlive its machine: one whose Berth or Node is deleted is deleted too, and one whose machine never came, or is gone, does
// not wait for a kubelet that does not run.
package berth

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/controller/node"
	"github.com/berth-run/berth/internal/controller/scheduler"
)

const (
	parallel = 8
	// unacceptedGrace is how long a deleted pod may wait for a host agent to take up its Berth, from the deletion on.
	unacceptedGrace = 3 * time.Second
	// orphanGrace is how long a deleted pod may wait, beyond its own grace period, for a kubelet that never registered.
	orphanGrace = 10 * time.Second

	// Reasons of events of a pod that ends because its machine was taken away.
	reasonBerthDeleted = "BerthDeleted"
	reasonNodeDeleted  = "NodeDeleted"
)

// Reconciler ends Berths.
type Reconciler struct {
	Client client.Client
	// Live reads past the cache: what is not in it may just not be there yet.
	Live     client.Reader
	Recorder record.EventRecorder
	Now      func() time.Time
}

// Setup lets the manager run the reconciler, for Berths, the pods that own them and the Nodes that are made for them.
func (r *Reconciler) Setup(mgr ctrl.Manager) error {
	toBerth := func(_ context.Context, o client.Object) []reconcile.Request {
		pod, ok := o.(*corev1.Pod)
		if !ok || pod.Spec.NodeName == "" && pod.DeletionTimestamp == nil {
			return nil
		}
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Namespace: pod.Namespace, Name: scheduler.BerthName(pod)}}}
	}
	deleted := predicate.Funcs{
		CreateFunc: func(event.CreateEvent) bool { return false },
		UpdateFunc: func(event.UpdateEvent) bool { return false },
	}
	return ctrl.NewControllerManagedBy(mgr).Named("berth").For(&v1alpha1.Berth{}).
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(toBerth)).
		WatchesMetadata(&corev1.Node{}, handler.EnqueueRequestsFromMapFunc(r.ofNode), builder.WithPredicates(deleted)).
		WithOptions(controller.Options{MaxConcurrentReconciles: parallel}).
		Complete(r)
}

func (r *Reconciler) ofNode(ctx context.Context, node client.Object) []reconcile.Request {
	var berths v1alpha1.BerthList
	if err := r.Client.List(ctx, &berths, client.MatchingFields{v1alpha1.BerthNodeNameField: node.GetName()}); err != nil {
		return nil
	}
	var out []reconcile.Request
	for i := range berths.Items {
		out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(&berths.Items[i])})
	}
	return out
}

// Reconcile looks after one Berth.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	berth := &v1alpha1.Berth{}
	err := r.Client.Get(ctx, req.NamespacedName, berth)
	if apierrors.IsNotFound(err) {
		return r.endStray(ctx, req.NamespacedName)
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("get berth %s: %w", req.NamespacedName, err)
	}
	if berth.DeletionTimestamp != nil && !controllerutil.ContainsFinalizer(berth, v1alpha1.FinalizerPod) {
		return reconcile.Result{}, r.finalize(ctx, berth)
	}
	pod, err := r.podOf(ctx, berth)
	if err != nil {
		return reconcile.Result{}, err
	}
	if pod == nil {
		return reconcile.Result{}, r.release(ctx, berth)
	}
	return r.accompany(ctx, pod, berth)
}

// release lets the host agent end the machine of a pod that is gone.
func (r *Reconciler) release(ctx context.Context, berth *v1alpha1.Berth) error {
	before := berth.DeepCopy()
	if controllerutil.RemoveFinalizer(berth, v1alpha1.FinalizerPod) {
		if err := r.letGo(ctx, berth, before); err != nil {
			return err
		}
	}
	if berth.DeletionTimestamp != nil {
		return nil
	}
	return client.IgnoreNotFound(r.Client.Delete(ctx, berth, client.Preconditions{UID: &berth.UID}))
}

// accompany ends a pod whose machine is being taken away, and makes certain that a pod that is being deleted ends.
func (r *Reconciler) accompany(ctx context.Context, pod *corev1.Pod, berth *v1alpha1.Berth) (reconcile.Result, error) {
	if err := r.noteCompletion(ctx, pod, berth); err != nil {
		return reconcile.Result{}, err
	}
	registered := meta.IsStatusConditionTrue(berth.Status.Conditions, v1alpha1.ConditionNodeRegistered)
	nodeGone := false
	if registered {
		var err error
		if nodeGone, err = r.nodeGone(ctx, berth.Spec.NodeName); err != nil {
			return reconcile.Result{}, err
		}
	}
	switch {
	case berth.DeletionTimestamp != nil:
		if err := r.end(ctx, pod, reasonBerthDeleted, "Berth "+berth.Name+" was deleted, and the pod ends with it"); err != nil {
			return reconcile.Result{}, err
		}
	case nodeGone:
		if err := r.end(ctx, pod, reasonNodeDeleted, "Node "+berth.Spec.NodeName+" was deleted, and the pod ends with it"); err != nil {
			return reconcile.Result{}, err
		}
	case registered:
		return reconcile.Result{}, nil
	}
	return r.forceOrphan(ctx, pod, berth)
}

// end deletes the pod, with its own grace period, and says why.
func (r *Reconciler) end(ctx context.Context, pod *corev1.Pod, reason, message string) error {
	if pod.DeletionTimestamp != nil {
		return nil
	}
	r.Recorder.Event(pod, corev1.EventTypeWarning, reason, message)
	if err := r.Client.Delete(ctx, pod, client.Preconditions{UID: &pod.UID}); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// nodeGone asks the API server only if the cache has no such Node.
func (r *Reconciler) nodeGone(ctx context.Context, name string) (bool, error) {
	node := &metav1.PartialObjectMetadata{}
	node.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Node"))
	for _, reader := range []client.Reader{r.Client, r.Live} {
		err := reader.Get(ctx, client.ObjectKey{Name: name}, node)
		if err == nil {
			return false, nil
		}
		if !apierrors.IsNotFound(err) {
			return false, fmt.Errorf("get node %s: %w", name, err)
		}
	}
	return true, nil
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

// forceOrphan removes a deleted pod that has no kubelet, or whose kubelet does not end it in time: nobody else would.
func (r *Reconciler) forceOrphan(ctx context.Context, pod *corev1.Pod, berth *v1alpha1.Berth) (reconcile.Result, error) {
	if pod.DeletionTimestamp == nil {
		return reconcile.Result{}, nil
	}
	end := pod.DeletionTimestamp.Add(orphanGrace) // the timestamp is when the pod's own grace period ends
	if berth.Status.Timeline.Accepted == nil {
		end = deletedAt(pod).Add(unacceptedGrace)
	}
	return r.force(ctx, pod, end)
}

// deletedAt is when the pod's deletion was asked for.
func deletedAt(pod *corev1.Pod) time.Time {
	return pod.DeletionTimestamp.Add(-time.Duration(ptr.Deref(pod.DeletionGracePeriodSeconds, 0)) * time.Second)
}

func (r *Reconciler) force(ctx context.Context, pod *corev1.Pod, end time.Time) (reconcile.Result, error) {
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
	if err := node.Delete(ctx, r.Client, berth.Spec.NodeName); err != nil {
		return err
	}
	controllerutil.RemoveFinalizer(berth, v1alpha1.FinalizerNode)
	return r.letGo(ctx, berth, before)
}

// letGo writes that finalizers are gone. If somebody else was faster, what they wrote leads here again.
func (r *Reconciler) letGo(ctx context.Context, berth, before *v1alpha1.Berth) error {
	err := r.Client.Patch(ctx, berth, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	if err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
		return fmt.Errorf("let berth %s go: %w", berth.Name, err)
	}
	return nil
}
