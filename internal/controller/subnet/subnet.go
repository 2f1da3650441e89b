// Package subnet tells how full each Subnet is and keeps one that is in use from being deleted.
package subnet

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"time"

	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
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
	Settle(ctx context.Context, live client.Reader, c client.StatusClient, subnet string, now time.Time) (time.Duration, error)
}

// settlePause: addresses that have rested are freed together, no more often than this.
const settlePause = 5 * time.Second

// Reconciler looks after subnets.
type Reconciler struct {
	Client client.Client
	// Live reads past the cache; nil: Client does.
	Live  client.Reader
	Usage Usage
	Now   func() time.Time
}

// Setup lets the manager run the reconciler; a Berth leads to its subnet, and a Host whose
// networks change to all.
func (r *Reconciler) Setup(mgr ctrl.Manager) error {
	ofBerth := func(_ context.Context, o client.Object) []reconcile.Request {
		if b, ok := o.(*v1alpha1.Berth); ok {
			return []reconcile.Request{{NamespacedName: client.ObjectKey{Name: b.Spec.SubnetName}}}
		}
		return nil
	}
	all := func(ctx context.Context, _ client.Object) []reconcile.Request {
		var list v1alpha1.SubnetList
		if err := r.Client.List(ctx, &list); err != nil {
			return nil
		}
		var out []reconcile.Request
		for _, s := range list.Items {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKey{Name: s.Name}})
		}
		return out
	}
	networksChanged := func(e event.UpdateEvent) bool {
		before, isHost := e.ObjectOld.(*v1alpha1.Host)
		now, isHostNow := e.ObjectNew.(*v1alpha1.Host)
		return isHost && isHostNow && !slices.Equal(before.Status.Networks, now.Status.Networks)
	}
	return ctrl.NewControllerManagedBy(mgr).Named("subnet").For(&v1alpha1.Subnet{}).
		Watches(&v1alpha1.Host{}, handler.EnqueueRequestsFromMapFunc(all), builder.WithPredicates(predicate.Funcs{UpdateFunc: networksChanged})).
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
	live := r.Live
	if live == nil {
		live = r.Client
	}
	wait, err := r.Usage.Settle(ctx, live, r.Client, s.Name, now)
	if err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if s.DeletionTimestamp != nil && !r.Usage.InUse(s.Name) {
		controllerutil.RemoveFinalizer(s, Finalizer)
		return reconcile.Result{}, client.IgnoreNotFound(r.Client.Update(ctx, s))
	}
	if err := r.judge(ctx, s, now); err != nil {
		return reconcile.Result{}, err
	}
	if wait == 0 {
		wait = ipam.ReusePause
	}
	// Addresses that rest become free without an event.
	return reconcile.Result{RequeueAfter: max(wait, settlePause)}, nil
}

// judge writes how full the subnet is and whether it can be used. What is taken of a public one its load balancer counts.
func (r *Reconciler) judge(ctx context.Context, s *v1alpha1.Subnet, now time.Time) error {
	var all v1alpha1.SubnetList
	if err := r.Client.List(ctx, &all); err != nil {
		return fmt.Errorf("list subnets: %w", err)
	}
	var hosts v1alpha1.HostList
	if err := r.Client.List(ctx, &hosts); err != nil {
		return fmt.Errorf("list hosts: %w", err)
	}
	conflict, collision := rules.Conflict(s, all.Items), rules.Collision(s, hosts.Items)
	free, used := r.Usage.Usage(s.Name, now)
	before := s.DeepCopy()
	if s.Spec.Type != v1alpha1.SubnetPublic {
		s.Status.AvailableIPs, s.Status.UsedIPs = int32(free), int32(used)
	}
	switch {
	case s.DeletionTimestamp != nil:
		conditions.Set(&s.Status.Conditions, v1alpha1.ConditionReady, false, s.Generation, "InUse", "pods still hold addresses of this subnet; it goes when they are gone")
	case collision != "":
		conditions.Set(&s.Status.Conditions, v1alpha1.ConditionReady, false, s.Generation, rules.ReasonCollision, collision)
	case conflict != "":
		conditions.Set(&s.Status.Conditions, v1alpha1.ConditionReady, false, s.Generation, "Conflict", conflict)
	case free == 0 && s.Spec.Type != v1alpha1.SubnetPublic:
		conditions.Set(&s.Status.Conditions, v1alpha1.ConditionReady, false, s.Generation, "Exhausted", fmt.Sprintf("0 of %d addresses are free; delete pods or give the profile another subnet", used))
	default:
		conditions.Set(&s.Status.Conditions, v1alpha1.ConditionReady, true, s.Generation, "Available", "addresses can be taken")
	}
	if reflect.DeepEqual(before.Status, s.Status) {
		return nil
	}
	if err := r.Client.Status().Patch(ctx, s, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write the status of subnet %s: %w", s.Name, err)
	}
	return nil
}
