// Package profile leads a FargateProfile through its life: CREATING, ACTIVE or CREATE_FAILED, DELETING.
package profile

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/kit/conditions"
	rules "github.com/berth-run/berth/internal/profile"
)

// Finalizer keeps a profile until its pods are gone.
const Finalizer = "berth.run/profile"

// Reconciler leads profiles.
type Reconciler struct{ Client client.Client }

// Setup lets the manager run the reconciler; subnets and pods lead back to profiles.
func (r *Reconciler) Setup(mgr ctrl.Manager) error {
	ofPod := func(_ context.Context, o client.Object) []reconcile.Request {
		name := o.GetLabels()[eks.LabelProfile]
		if name == "" {
			return nil
		}
		return []reconcile.Request{{NamespacedName: client.ObjectKey{Name: name}}}
	}
	all := func(ctx context.Context, _ client.Object) []reconcile.Request {
		var list v1alpha1.FargateProfileList
		if err := r.Client.List(ctx, &list); err != nil {
			return nil
		}
		var out []reconcile.Request
		for _, p := range list.Items {
			out = append(out, reconcile.Request{NamespacedName: client.ObjectKey{Name: p.Name}})
		}
		return out
	}
	return ctrl.NewControllerManagedBy(mgr).Named("profile").For(&v1alpha1.FargateProfile{}).
		Watches(&v1alpha1.Subnet{}, handler.EnqueueRequestsFromMapFunc(all)).
		Watches(&corev1.Pod{}, handler.EnqueueRequestsFromMapFunc(ofPod)).
		Complete(r)
}

// Reconcile leads one profile a step on.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	p := &v1alpha1.FargateProfile{}
	if err := r.Client.Get(ctx, req.NamespacedName, p); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if p.DeletionTimestamp != nil {
		return reconcile.Result{}, r.finalize(ctx, p)
	}
	if controllerutil.AddFinalizer(p, Finalizer) {
		if err := r.Client.Update(ctx, p); err != nil {
			return reconcile.Result{}, fmt.Errorf("hold profile %s: %w", p.Name, err)
		}
	}
	var subnets v1alpha1.SubnetList
	if err := r.Client.List(ctx, &subnets); err != nil {
		return reconcile.Result{}, fmt.Errorf("list subnets: %w", err)
	}
	before := p.DeepCopy()
	judge(p, subnets.Items)
	return reconcile.Result{}, r.patchStatus(ctx, before, p)
}

// judge writes the profile's status from its spec and the subnets.
func judge(p *v1alpha1.FargateProfile, subnets []v1alpha1.Subnet) {
	byName := map[string]v1alpha1.Subnet{}
	var private []string
	for _, s := range subnets {
		byName[s.Name] = s
		if s.Spec.Type != v1alpha1.SubnetPublic && s.DeletionTimestamp == nil {
			private = append(private, s.Name)
		}
	}
	sort.Strings(private)
	p.Status.ObservedGeneration = p.Generation
	wrong := rules.Validate(p.Name, p.Spec, byName)
	if len(wrong) == 0 && len(private) == 0 {
		wrong = []string{"the cluster has no private subnet; create one (kind Subnet, spec.type private)"}
	}
	if len(wrong) > 0 {
		p.Status.Status = v1alpha1.ProfileCreateFailed
		p.Status.Subnets = nil
		conditions.Set(&p.Status.Conditions, v1alpha1.ConditionReady, false, p.Generation, "Invalid", strings.Join(wrong, " "))
		return
	}
	p.Status.Status = v1alpha1.ProfileActive
	p.Status.Subnets = private
	if len(p.Spec.Subnets) > 0 {
		p.Status.Subnets = slices.Sorted(slices.Values(p.Spec.Subnets))
	}
	conditions.Set(&p.Status.Conditions, v1alpha1.ConditionReady, true, p.Generation, "Active", "pods that match run on this profile")
}

// finalize deletes the profile's pods and lets the profile go when they are gone.
func (r *Reconciler) finalize(ctx context.Context, p *v1alpha1.FargateProfile) error {
	before := p.DeepCopy()
	p.Status.Status = v1alpha1.ProfileDeleting
	var pods corev1.PodList
	if err := r.Client.List(ctx, &pods, client.MatchingLabels{eks.LabelProfile: p.Name}); err != nil {
		return fmt.Errorf("list the pods of profile %s: %w", p.Name, err)
	}
	left := 0
	for i := range pods.Items {
		pod := &pods.Items[i]
		if pod.Spec.SchedulerName != eks.SchedulerName {
			continue
		}
		left++
		if pod.DeletionTimestamp == nil {
			if err := r.Client.Delete(ctx, pod); client.IgnoreNotFound(err) != nil {
				return fmt.Errorf("delete pod %s/%s of profile %s: %w", pod.Namespace, pod.Name, p.Name, err)
			}
		}
	}
	if left > 0 {
		conditions.Set(&p.Status.Conditions, v1alpha1.ConditionReady, false, p.Generation, "Deleting", fmt.Sprintf("waiting for %d pods to end", left))
		return r.patchStatus(ctx, before, p)
	}
	if controllerutil.RemoveFinalizer(p, Finalizer) {
		if err := r.Client.Update(ctx, p); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("let profile %s go: %w", p.Name, err)
		}
	}
	return nil
}

func (r *Reconciler) patchStatus(ctx context.Context, before, p *v1alpha1.FargateProfile) error {
	if reflect.DeepEqual(before.Status, p.Status) {
		return nil
	}
	if err := r.Client.Status().Patch(ctx, p, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("write the status of profile %s: %w", p.Name, err)
	}
	return nil
}
