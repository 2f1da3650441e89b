package scheduler

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
	match "github.com/berth-run/berth/internal/profile"
)

// profileOf is the profile that the pod's label names, if it is ACTIVE and matches, whoever wrote the label. A pod that
// asked for this scheduler by itself has no label: it gets the profile that matches now.
func (r *Reconciler) profileOf(ctx context.Context, pod *corev1.Pod) (*v1alpha1.FargateProfile, *refusal, error) {
	var ns corev1.Namespace
	if err := r.Client.Get(ctx, client.ObjectKey{Name: pod.Namespace}, &ns); err != nil {
		return nil, nil, fmt.Errorf("get namespace %s: %w", pod.Namespace, err)
	}
	namespace := match.Namespace{Name: ns.Name, Labels: ns.Labels}
	name := pod.Labels[eks.LabelProfile]
	if name == "" {
		return r.matching(ctx, pod, namespace)
	}
	profile := &v1alpha1.FargateProfile{}
	err := r.Client.Get(ctx, client.ObjectKey{Name: name}, profile)
	if err != nil && !apierrors.IsNotFound(err) {
		return nil, nil, fmt.Errorf("get profile %s: %w", name, err)
	}
	if err != nil || !ready(profile) {
		return nil, misconfigured(name), nil //nolint:nilerr // not found is an answer
	}
	for _, s := range profile.Spec.Selectors {
		if match.Matches(s, namespace, pod.Labels) {
			return profile, nil, nil
		}
	}
	return nil, unschedulable(eks.MessageNotAuthorized(fmt.Sprintf("no selector of fargate profile %s matches the pod's namespace and labels", name)),
		"the selectors of profile "+name+", or the pod's labels, to change"), nil
}

func (r *Reconciler) matching(ctx context.Context, pod *corev1.Pod, namespace match.Namespace) (*v1alpha1.FargateProfile, *refusal, error) {
	var profiles v1alpha1.FargateProfileList
	if err := r.Client.List(ctx, &profiles); err != nil {
		return nil, nil, fmt.Errorf("list profiles: %w", err)
	}
	d := match.Select(profiles.Items, pod, namespace)
	switch {
	case d.LeftAlone:
		return nil, unschedulable(eks.MessageNotAuthorized(
			fmt.Sprintf("it asks for scheduler %s, but %s. Remove spec.schedulerName, or that", eks.SchedulerName, d.Reason)), ""), nil
	case d.Profile == nil:
		return nil, unschedulable(eks.MessageNotAuthorized(
			fmt.Sprintf("it asks for scheduler %s, but %s", eks.SchedulerName, d.Reason)), "a profile that matches"), nil
	case !ready(d.Profile):
		return nil, misconfigured(d.Profile.Name), nil
	}
	return d.Profile, nil, nil
}

func ready(p *v1alpha1.FargateProfile) bool {
	return p.DeletionTimestamp == nil && p.Status.Status == v1alpha1.ProfileActive
}

func misconfigured(profile string) *refusal {
	return unschedulable(eks.MessageMisconfigured(profile), "profile "+profile+" to be ACTIVE")
}
