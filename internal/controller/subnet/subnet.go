// Package subnet tells how full each Subnet is and keeps one that is in use from being deleted.
package subnet

import (
	"context"
	"fmt"
	"reflect"
	"time"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/ipam"
	"github.com/berth-run/berth/internal/kit/conditions"
	rules "github.com/berth-run/berth/internal/profile"
)

// Finalizer keeps a subnet until no Berth has an address of it.
const Finalizer = "berth.run/subnet"

// Usage counts the addresses of subnets; *scheduler.Addresses is one.
type Usage interface {
	Sync(ctx context.Context, r client.Reader, now time.Time) error
	Usage(subnet string, now time.Time) (free, used int)
	InUse(subnet string) bool
}

// Reconciler looks after subnets.
type Reconciler struct {
	Client client.Client
	Usage  Usage
	Now    func() time.Time
}

// Setup lets the manager run the reconciler; a Berth leads to its subnet.
func (r *Reconciler) Setup(mgr ctrl.Manager) error {
	ofBerth := func(_ context.Context, o client.Object) []reconcile.Request {
		if b, ok := o.(*v1alpha1.Berth); ok {
			return []reconcile.Request{{NamespacedName: client.ObjectKey{Name: b.Spec.SubnetName}}}
		}
		return nil
	}
	return ctrl.NewControllerManagedBy(mgr).Named("subnet").For(&v1alpha1.Subnet{}).
		Watches(&v1alpha1.Berth{}, handler.EnqueueRequestsFromMapFunc(ofBerth)).
		Complete(r)
}

// Reconcile looks after one subnet.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	s := &v1alpha1.Subnet{}
	if err := r.Client.Get(ctx, req.NamespacedName, s); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if s.DeletionTimestamp == nil && controllerutil.AddFinalizer(s, Finalizer) {
		if err := r.Client.Update(ctx, s); err != nil {
			return reconcile.Result{}, fmt.Errorf("hold subnet %s: %w", s.Name, err)
		}
	}
	now := r.Now()
	if err := r.Usage.Sync(ctx, r.Client, now); err != nil {
		return reconcile.Result{}, err
	}
	free, used := r.Usage.Usage(s.Name, now)
	if s.DeletionTimestamp != nil && !r.Usage.InUse(s.Name) {
		controllerutil.RemoveFinalizer(s, Finalizer)
		return reconcile.Result{}, client.IgnoreNotFound(r.Client.Update(ctx, s))
	}
	var all v1alpha1.SubnetList
	if err := r.Client.List(ctx, &all); err != nil {
		return reconcile.Result{}, fmt.Errorf("list subnets: %w", err)
	}
	conflict := rules.Conflict(s, all.Items)
	before := s.DeepCopy()
	s.Status.AvailableIPs, s.Status.UsedIPs = int32(free), int32(used)
	switch {
	case s.DeletionTimestamp != nil:
		conditions.Set(&s.Status.Conditions, v1alpha1.ConditionReady, false, s.Generation, "InUse", "pods still hold addresses of this subnet; it goes when they are gone")
	case conflict != "":
		conditions.Set(&s.Status.Conditions, v1alpha1.ConditionReady, false, s.Generation, "Conflict", conflict)
	case free == 0 && s.Spec.Type != v1alpha1.SubnetPublic:
		conditions.Set(&s.Status.Conditions, v1alpha1.ConditionReady, false, s.Generation, "Exhausted", "no address is free; delete pods or give the profile another subnet")
	default:
		conditions.Set(&s.Status.Conditions, v1alpha1.ConditionReady, true, s.Generation, "Available", "addresses can be taken")
	}
	if !reflect.DeepEqual(before.Status, s.Status) {
		if err := r.Client.Status().Patch(ctx, s, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
			return reconcile.Result{}, fmt.Errorf("write the status of subnet %s: %w", s.Name, err)
		}
	}
	// Addresses that rest become free without an event.
	return reconcile.Result{RequeueAfter: ipam.ReusePause}, nil
}
