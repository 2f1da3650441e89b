// Package node removes the Nodes of hosts of Berth's that no Berth names. As a rule a Node goes with its Berth (package berth); one
// stays behind if its kubelet registers late, when the Berth has been taken away by force, or an older state was restored.
package node

import (
	"context"
	"fmt"

	coordination "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-run/berth/api/v1alpha1"
)

// Reconciler looks after Nodes that carry v1alpha1.LabelHost. All others, such as those of EKS Fargate itself, are not Berth's.
type Reconciler struct {
	Client client.Client
	Live   client.Reader // reads past the cache
}

// Setup lets the manager run the reconciler, for each Node that comes and for that of each Berth that goes.
func (r *Reconciler) Setup(mgr ctrl.Manager) error {
	ofBerth := func(_ context.Context, o client.Object) []reconcile.Request {
		b, ok := o.(*v1alpha1.Berth)
		if !ok {
			return nil
		}
		return []reconcile.Request{{NamespacedName: types.NamespacedName{Name: b.Spec.NodeName}}}
	}
	comes := predicate.Funcs{
		UpdateFunc: func(event.UpdateEvent) bool { return false },
		DeleteFunc: func(event.DeleteEvent) bool { return false },
	}
	goes := predicate.Funcs{
		CreateFunc: func(event.CreateEvent) bool { return false },
		UpdateFunc: func(event.UpdateEvent) bool { return false },
	}
	return ctrl.NewControllerManagedBy(mgr).Named("node").
		For(&corev1.Node{}, builder.OnlyMetadata, builder.WithPredicates(comes)).
		Watches(&v1alpha1.Berth{}, handler.EnqueueRequestsFromMapFunc(ofBerth), builder.WithPredicates(goes)).
		Complete(r)
}

// Reconcile deletes the Node if it is Berth's and no Berth has it. A Berth is written before its Node can be.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	node := &metav1.PartialObjectMetadata{}
	node.SetGroupVersionKind(corev1.SchemeGroupVersion.WithKind("Node"))
	if err := r.Client.Get(ctx, req.NamespacedName, node); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if node.Labels[v1alpha1.LabelHost] == "" {
		return reconcile.Result{}, nil
	}
	for _, reader := range []client.Reader{r.Client, r.Live} {
		var berths v1alpha1.BerthList
		if err := reader.List(ctx, &berths, client.MatchingFields{v1alpha1.BerthNodeNameField: node.Name}); err != nil {
			return reconcile.Result{}, fmt.Errorf("list the berths of node %s: %w", node.Name, err)
		}
		if len(berths.Items) > 0 {
			return reconcile.Result{}, nil
		}
	}
	return reconcile.Result{}, Delete(ctx, r.Client, node.Name, client.Preconditions{UID: &node.UID})
}

// Delete deletes a Node, as the options allow, and its lease. That they are not there is no error.
func Delete(ctx context.Context, c client.Client, name string, options ...client.DeleteOption) error {
	if err := c.Delete(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}, options...); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete node %s: %w", name, err)
	}
	lease := &coordination.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: name}}
	if err := c.Delete(ctx, lease); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete the lease of node %s: %w", name, err)
	}
	return nil
}
