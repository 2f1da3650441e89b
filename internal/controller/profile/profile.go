// Package profile leads a FargateProfile through its life: CREATING, ACTIVE or CREATE_FAILED, DELETING.
package profile

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/builder"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/predicate"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/kit/conditions"
	rules "github.com/berth-run/berth/internal/profile"
)

// Finalizer keeps a profile until its pods are gone.
const Finalizer = "berth.run/profile"

// reasonWaiting is the reason of condition Ready while another profile is being created or deleted.
const reasonWaiting = "WaitingForTurn"

// Reconciler leads profiles, one at a time.
type Reconciler struct {
	Client client.Client
	Quotas rules.Quotas
	// Cluster is the cluster's name in messages.
	Cluster string
	// Isolation of profiles that name none; empty is auto.
	Isolation v1alpha1.Isolation
}

// Setup lets the manager run the reconciler; hosts, subnets, pods and other profiles lead back to profiles: one may wait for another.
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
	return ctrl.NewControllerManagedBy(mgr).Named("profile").
		Watches(&v1alpha1.FargateProfile{}, handler.EnqueueRequestsFromMapFunc(all)).
		Watches(&v1alpha1.Host{}, handler.EnqueueRequestsFromMapFunc(all), builder.WithPredicates(predicate.Funcs{UpdateFunc: hostChanged})).
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
	var profiles v1alpha1.FargateProfileList
	if err := r.Client.List(ctx, &profiles); err != nil {
		return reconcile.Result{}, fmt.Errorf("list profiles: %w", err)
	}
	if p.DeletionTimestamp != nil {
		return reconcile.Result{}, r.finalize(ctx, p, rules.Ahead(p, profiles.Items))
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
	var hosts v1alpha1.HostList
	if err := r.Client.List(ctx, &hosts); err != nil {
		return reconcile.Result{}, fmt.Errorf("list hosts: %w", err)
	}
	before := p.DeepCopy()
	r.judge(p, subnets.Items, profiles.Items)
	p.Status.Health.Issues = append(p.Status.Health.Issues, unreachable(p, subnets.Items, hosts.Items)...)
	return reconcile.Result{}, r.patchStatus(ctx, before, p)
}

// judge writes the profile's status from its spec, the subnets and the other profiles.
func (r *Reconciler) judge(p *v1alpha1.FargateProfile, subnets []v1alpha1.Subnet, profiles []v1alpha1.FargateProfile) {
	byName := map[string]v1alpha1.Subnet{}
	var private []string
	for _, s := range subnets {
		byName[s.Name] = s
		if s.Spec.Type != v1alpha1.SubnetPublic && s.DeletionTimestamp == nil && rules.Conflict(&s, subnets) == "" {
			private = append(private, s.Name)
		}
	}
	sort.Strings(private)
	wrong := r.Quotas.Validate(p.Name, p.Spec, byName)
	if len(wrong) == 0 && len(private) == 0 {
		wrong = []string{"the cluster has no private subnet; create one (kind Subnet, spec.type private)"}
	}
	p.Status.Health.Issues = nil
	if len(wrong) > 0 {
		p.Status.Health.Issues = []v1alpha1.ProfileIssue{{Code: v1alpha1.IssueInvalidParameter, Message: strings.Join(wrong, " ")}}
	}
	if exceeded := r.Quotas.Exceeded(p, r.Cluster, profiles); exceeded != "" {
		wrong = append(wrong, exceeded)
		p.Status.Health.Issues = append(p.Status.Health.Issues, v1alpha1.ProfileIssue{Code: v1alpha1.IssueResourceLimitExceeded, Message: exceeded})
	}
	p.Status.ObservedGeneration = p.Generation
	p.Status.Isolation = cmp.Or(p.Spec.Isolation, r.Isolation, v1alpha1.IsolationAuto)
	if len(wrong) > 0 {
		p.Status.Status, p.Status.Subnets = v1alpha1.ProfileCreateFailed, nil
		conditions.Set(&p.Status.Conditions, v1alpha1.ConditionReady, false, p.Generation, "Invalid", strings.Join(wrong, " "))
		return
	}
	if ahead := rules.Ahead(p, profiles); ahead != nil && p.Status.Status != v1alpha1.ProfileActive {
		p.Status.Status, p.Status.Subnets = v1alpha1.ProfileCreating, nil
		conditions.Set(&p.Status.Conditions, v1alpha1.ConditionReady, false, p.Generation, reasonWaiting,
			rules.MessageCannotCreate(p.Name, r.Cluster, ahead)+"; it is created after that")
		return
	}
	p.Status.Status, p.Status.Subnets = v1alpha1.ProfileActive, private
	if len(p.Spec.Subnets) > 0 {
		p.Status.Subnets = slices.Sorted(slices.Values(p.Spec.Subnets))
	}
	conditions.Set(&p.Status.Conditions, v1alpha1.ConditionReady, true, p.Generation, "Active", "pods that match run on this profile")
	addresses(p, byName)
}

// addresses tells whether the profile's subnets have addresses left. Counts are said of full subnets only: others change
// with each pod.
func addresses(p *v1alpha1.FargateProfile, subnets map[string]v1alpha1.Subnet) {
	var full []string
	for _, name := range p.Status.Subnets {
		if s := subnets[name]; s.Status.AvailableIPs == 0 && s.Status.UsedIPs > 0 {
			full = append(full, fmt.Sprintf("subnet %s has 0 of %d addresses free", name, s.Status.UsedIPs))
		}
	}
	const set, more = v1alpha1.ConditionAddressesAvailable, "; delete pods, or add a private Subnet"
	switch {
	case len(full) == 0:
		conditions.Set(&p.Status.Conditions, set, true, p.Generation, "Available", "every subnet has free addresses")
	case len(full) < len(p.Status.Subnets):
		conditions.Set(&p.Status.Conditions, set, true, p.Generation, "SomeExhausted", strings.Join(full, ", ")+more)
	default:
		conditions.Set(&p.Status.Conditions, set, false, p.Generation, "Exhausted", strings.Join(full, ", ")+more)
	}
}

// finalize deletes the profile's pods, when its turn has come, and lets the profile go when they are gone.
func (r *Reconciler) finalize(ctx context.Context, p, ahead *v1alpha1.FargateProfile) error {
	before := p.DeepCopy()
	pods, err := r.podsOf(ctx, p)
	if err != nil {
		return err
	}
	if len(pods) == 0 {
		if controllerutil.RemoveFinalizer(p, Finalizer) {
			if err := r.Client.Update(ctx, p); client.IgnoreNotFound(err) != nil {
				return fmt.Errorf("let profile %s go: %w", p.Name, err)
			}
		}
		return nil
	}
	p.Status.Status, p.Status.Health.Issues = v1alpha1.ProfileDeleting, nil
	if ahead != nil {
		conditions.Set(&p.Status.Conditions, v1alpha1.ConditionReady, false, p.Generation, reasonWaiting,
			rules.MessageCannotDelete(p.Name, r.Cluster, ahead)+"; it is deleted after that, and its pods run until then")
		return r.patchStatus(ctx, before, p)
	}
	conditions.Set(&p.Status.Conditions, v1alpha1.ConditionReady, false, p.Generation, rules.ReasonDeleting, fmt.Sprintf("waiting for %d pods to end", len(pods)))
	issues, failed := r.deletePods(ctx, p, pods)
	if failed != nil {
		p.Status.Status, p.Status.Health.Issues = v1alpha1.ProfileDeleteFailed, issues
		conditions.Set(&p.Status.Conditions, v1alpha1.ConditionReady, false, p.Generation, "DeleteFailed", failed.Error()+"; it is tried again")
	}
	return errors.Join(failed, r.patchStatus(ctx, before, p))
}

// podsOf lists the pods that run on the profile, or wait for it.
func (r *Reconciler) podsOf(ctx context.Context, p *v1alpha1.FargateProfile) ([]corev1.Pod, error) {
	var pods corev1.PodList
	if err := r.Client.List(ctx, &pods, client.MatchingLabels{eks.LabelProfile: p.Name}); err != nil {
		return nil, fmt.Errorf("list the pods of profile %s: %w", p.Name, err)
	}
	return slices.DeleteFunc(pods.Items, func(pod corev1.Pod) bool { return pod.Spec.SchedulerName != eks.SchedulerName }), nil
}

// deletePods says, by kind of failure, which pods could not be deleted.
func (r *Reconciler) deletePods(ctx context.Context, p *v1alpha1.FargateProfile, pods []corev1.Pod) ([]v1alpha1.ProfileIssue, error) {
	var failed []error
	var issues []v1alpha1.ProfileIssue
	for i := range pods {
		pod := &pods[i]
		if pod.DeletionTimestamp != nil {
			continue
		}
		if err := r.Client.Delete(ctx, pod); client.IgnoreNotFound(err) != nil {
			err = fmt.Errorf("delete pod %s/%s of profile %s: %w", pod.Namespace, pod.Name, p.Name, err)
			failed, issues = append(failed, err), addIssue(issues, err, pod)
		}
	}
	return issues, errors.Join(failed...)
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
