// Package profile decides which FargateProfile a pod belongs to, and whether a profile is valid. Pure: no client, no
// clock, no I/O. Rules: Amazon EKS user guide, fargate-profile (facts 1.4, 2.2, 2.3).
package profile

import (
	"fmt"
	"sort"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
)

// Decision is the outcome of Select. Profile is nil if the pod is left alone; Reason says why, in a sentence.
type Decision struct {
	Profile  *v1alpha1.FargateProfile
	Reason   string
	Rejected []Rejection
}

// Rejection says why a profile does not take the pod.
type Rejection struct{ Profile, Why string }

// Matches reports whether the selector takes a pod of the namespace with the labels: the namespace and every label of
// the selector match; `*` stands for any number of characters, `?` for exactly one (facts 1.4).
func Matches(sel v1alpha1.Selector, namespace string, labels map[string]string) bool {
	if sel.Namespace == "" || !glob(sel.Namespace, namespace) {
		return false
	}
	for key, value := range sel.Labels {
		if !anyLabel(labels, key, value) {
			return false
		}
	}
	return true
}

func anyLabel(labels map[string]string, key, value string) bool {
	for k, v := range labels {
		if glob(key, k) && glob(value, v) {
			return true
		}
	}
	return false
}

// glob matches in linear time in practice (at most pattern x text): on a mismatch it goes back to the latest star only.
func glob(pattern, text string) bool {
	p, t, star, mark := 0, 0, -1, 0
	for t < len(text) {
		switch {
		case p < len(pattern) && pattern[p] == '*':
			star, mark = p, t
			p++
		case p < len(pattern) && (pattern[p] == '?' || pattern[p] == text[t]):
			p++
			t++
		case star >= 0:
			mark++
			p, t = star+1, mark
		default:
			return false
		}
	}
	for p < len(pattern) && pattern[p] == '*' {
		p++
	}
	return p == len(pattern)
}

// Select finds the profile of a pod that is being created in the namespace: the alphanumerically first ACTIVE one that
// matches, or the one that the pod's label names, if that matches.
func Select(profiles []v1alpha1.FargateProfile, pod *corev1.Pod, namespace string) Decision {
	if why := leftAlone(pod); why != "" {
		return Decision{Reason: why}
	}
	sorted := append([]v1alpha1.FargateProfile(nil), profiles...)
	sort.Slice(sorted, func(i, j int) bool { return sorted[i].Name < sorted[j].Name })
	forced := pod.Labels[eks.LabelProfile]
	var d Decision
	for i := range sorted {
		p := &sorted[i]
		why := rejects(p, pod, namespace, forced)
		switch {
		case why != "":
			d.Rejected = append(d.Rejected, Rejection{p.Name, why})
		case d.Profile != nil:
			d.Rejected = append(d.Rejected, Rejection{p.Name, fmt.Sprintf("it matches, but %s comes first in alphanumeric order", d.Profile.Name)})
		default:
			d.Profile = p
			d.Reason = fmt.Sprintf("profile %s matches", p.Name)
		}
	}
	if d.Profile == nil {
		d.Reason = "no profile matches"
		if forced != "" {
			d.Reason = fmt.Sprintf("label %s names profile %s, which does not match or does not exist", eks.LabelProfile, forced)
		}
	}
	return d
}

func leftAlone(pod *corev1.Pod) string {
	for _, owner := range pod.OwnerReferences {
		if owner.Kind == "DaemonSet" {
			return "a DaemonSet owns the pod"
		}
	}
	if pod.Annotations[eks.ComputeTypeKey] == eks.ComputeTypeEC2 {
		return fmt.Sprintf("annotation %s: %s opts the pod out", eks.ComputeTypeKey, eks.ComputeTypeEC2)
	}
	if pod.Spec.NodeName != "" {
		return "spec.nodeName is set"
	}
	switch pod.Spec.SchedulerName {
	case "", corev1.DefaultSchedulerName, eks.SchedulerName:
		return ""
	}
	return fmt.Sprintf("spec.schedulerName is %s", pod.Spec.SchedulerName)
}

func rejects(p *v1alpha1.FargateProfile, pod *corev1.Pod, namespace, forced string) string {
	switch {
	case forced != "" && forced != p.Name:
		return fmt.Sprintf("label %s names %s", eks.LabelProfile, forced)
	case p.Status.Status != v1alpha1.ProfileActive || p.DeletionTimestamp != nil:
		return fmt.Sprintf("it is %s, not ACTIVE", status(p))
	}
	for _, s := range p.Spec.Selectors {
		if Matches(s, namespace, pod.Labels) {
			return ""
		}
	}
	return "no selector matches the pod's namespace and labels"
}

func status(p *v1alpha1.FargateProfile) v1alpha1.ProfileStatus {
	switch {
	case p.DeletionTimestamp != nil:
		return v1alpha1.ProfileDeleting
	case p.Status.Status == "":
		return v1alpha1.ProfileCreating
	}
	return p.Status.Status
}
