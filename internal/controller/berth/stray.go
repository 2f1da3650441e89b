package berth

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/controller/node"
	"github.com/berth-run/berth/internal/controller/scheduler"
	"github.com/berth-run/berth/internal/eks"
)

// reasonBerthMissing is the reason of the event of a pod whose Berth vanished.
const reasonBerthMissing = "BerthMissing"

// endStray ends a pod that was placed here and whose Berth does not exist: somebody took its finalizers away, or an older
// state of the cluster was restored. Its host agent removes the machine when it misses the Berth.
func (r *Reconciler) endStray(ctx context.Context, berth types.NamespacedName) (reconcile.Result, error) {
	pod, err := r.placedPod(ctx, berth)
	if pod == nil || err != nil {
		return reconcile.Result{}, err
	}
	// A Berth is written before its pod is bound: the API server has it, or it is gone.
	if err := r.Live.Get(ctx, berth, &v1alpha1.Berth{}); client.IgnoreNotFound(err) != nil || err == nil {
		return reconcile.Result{}, err
	}
	ending := pod.DeletionTimestamp != nil
	// The Node first: the pod may be gone at once, and with it what tells which Node was its own.
	if err := r.deleteStrayNode(ctx, pod.Spec.NodeName, berth); err != nil {
		return reconcile.Result{}, err
	}
	if err := r.end(ctx, pod, reasonBerthMissing, "Berth "+berth.Name+" is gone, and with it the pod's machine"); err != nil || !ending {
		return reconcile.Result{}, err
	}
	return r.force(ctx, pod, deletedAt(pod).Add(unacceptedGrace))
}

// placedPod is the pod whose Berth has the name, if this scheduler bound it: the annotation comes with the binding.
func (r *Reconciler) placedPod(ctx context.Context, berth types.NamespacedName) (*corev1.Pod, error) {
	name, known := scheduler.PodName(berth.Name)
	if !known {
		return nil, nil
	}
	pod := &corev1.Pod{}
	err := r.Client.Get(ctx, client.ObjectKey{Namespace: berth.Namespace, Name: name}, pod)
	if err != nil || scheduler.BerthName(pod) != berth.Name || pod.Spec.SchedulerName != eks.SchedulerName ||
		pod.Spec.NodeName == "" || pod.Annotations[eks.AnnotationCapacityProvisioned] == "" {
		return nil, client.IgnoreNotFound(err)
	}
	return pod, nil
}

// deleteStrayNode deletes the Node unless another Berth has it: addresses, and with them names of nodes, are used again.
func (r *Reconciler) deleteStrayNode(ctx context.Context, name string, berth types.NamespacedName) error {
	var berths v1alpha1.BerthList
	if err := r.Client.List(ctx, &berths, client.MatchingFields{v1alpha1.BerthNodeNameField: name}); err != nil {
		return fmt.Errorf("list the berths of node %s: %w", name, err)
	}
	for i := range berths.Items { // the cache may have the one that is gone
		if client.ObjectKeyFromObject(&berths.Items[i]) != berth {
			return nil
		}
	}
	return node.Delete(ctx, r.Client, name)
}
