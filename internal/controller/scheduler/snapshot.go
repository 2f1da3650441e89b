package scheduler

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/placement"
)

// parallel pods are worked on at once; only the choice itself is made one by one.
const parallel = 8

// New makes the reconciler.
func New(c client.Client, recorder record.EventRecorder, addresses *Addresses, region string) *Reconciler {
	return &Reconciler{Client: c, Recorder: recorder, Addresses: addresses, Region: region, Now: time.Now, pending: map[types.UID]v1alpha1.Berth{}}
}

// Setup lets the manager run the reconciler: for the pods of this scheduler, and for all that wait when something changes
// that they may wait for.
func (r *Reconciler) Setup(mgr ctrl.Manager) error {
	waiting := handler.EnqueueRequestsFromMapFunc(r.waiting)
	return ctrl.NewControllerManagedBy(mgr).Named("scheduler").For(&corev1.Pod{}).
		Watches(&v1alpha1.FargateProfile{}, waiting).
		Watches(&v1alpha1.Subnet{}, waiting).
		Watches(&v1alpha1.Host{}, waiting).
		Watches(&v1alpha1.Berth{}, handler.EnqueueRequestsFromMapFunc(r.waitingForRoom)).
		WithOptions(controller.Options{MaxConcurrentReconciles: parallel}).
		Complete(r)
}

func (r *Reconciler) waitingForRoom(ctx context.Context, o client.Object) []reconcile.Request {
	if o.GetDeletionTimestamp() == nil {
		return nil
	}
	if berth, ok := o.(*v1alpha1.Berth); ok {
		r.forget(berth)
	}
	return r.waiting(ctx, o)
}

// waiting lists the pods that were refused or could not be placed.
func (r *Reconciler) waiting(ctx context.Context, _ client.Object) []reconcile.Request {
	var pods corev1.PodList
	if err := r.Client.List(ctx, &pods); err != nil {
		return nil
	}
	var out []reconcile.Request
	for i := range pods.Items {
		p := &pods.Items[i]
		if p.Spec.NodeName == "" && p.Spec.SchedulerName == eks.SchedulerName {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKeyFromObject(p)})
		}
	}
	return out
}

// snapshot is what placement sees: the cache, and what was decided here a moment ago.
func (r *Reconciler) snapshot(ctx context.Context, profile *v1alpha1.FargateProfile, now time.Time) (placement.Input, error) {
	var in placement.Input
	var berths v1alpha1.BerthList
	if err := r.Client.List(ctx, &berths); err != nil {
		return in, fmt.Errorf("list berths: %w", err)
	}
	for _, b := range berths.Items {
		delete(r.pending, b.Spec.Pod.UID)
	}
	all := berths.Items
	for _, b := range r.pending {
		all = append(all, b)
	}
	for _, name := range profile.Status.Subnets {
		var s v1alpha1.Subnet
		if err := r.Client.Get(ctx, client.ObjectKey{Name: name}, &s); err != nil {
			if client.IgnoreNotFound(err) == nil {
				continue
			}
			return in, fmt.Errorf("get subnet %s: %w", name, err)
		}
		if s.DeletionTimestamp != nil {
			continue
		}
		free, _ := r.Addresses.Usage(name, now)
		state := placement.SubnetState{Name: name, Zone: s.Spec.Zone, FreeIPs: free}
		for _, b := range all {
			if b.Spec.SubnetName == name && b.Spec.ProfileName == profile.Name {
				state.Pods++
			}
		}
		in.Subnets = append(in.Subnets, state)
	}
	var hosts v1alpha1.HostList
	if err := r.Client.List(ctx, &hosts); err != nil {
		return in, fmt.Errorf("list hosts: %w", err)
	}
	for _, h := range hosts.Items {
		in.Hosts = append(in.Hosts, hostState(h, all))
	}
	return in, nil
}

func hostState(h v1alpha1.Host, berths []v1alpha1.Berth) placement.HostState {
	state := placement.HostState{
		Name: h.Name, Zones: h.Spec.Zones, Capacity: h.Status.Capacity, Isolations: h.Status.Isolations, Used: corev1.ResourceList{},
		Ready: !h.Spec.Unschedulable && h.DeletionTimestamp == nil && meta.IsStatusConditionTrue(h.Status.Conditions, v1alpha1.ConditionReady),
	}
	for _, b := range berths {
		if b.Spec.HostName != h.Name {
			continue
		}
		state.Pods++
		add(state.Used, corev1.ResourceCPU, b)
		add(state.Used, corev1.ResourceMemory, b)
		add(state.Used, corev1.ResourceEphemeralStorage, b)
	}
	return state
}

func add(list corev1.ResourceList, name corev1.ResourceName, b v1alpha1.Berth) {
	sum := list[name]
	switch name {
	case corev1.ResourceCPU:
		sum.Add(b.Spec.Size.CPU)
	case corev1.ResourceMemory:
		sum.Add(b.Spec.Size.Memory)
	case corev1.ResourceEphemeralStorage:
		sum.Add(b.Spec.Size.EphemeralStorage)
	}
	list[name] = sum
}
