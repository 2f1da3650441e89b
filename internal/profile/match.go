// Package profile decides which FargateProfile a pod belongs to, and whether a profile is valid. Pure: no client, no
// clock, no I/O. Rules: Amazon EKS user guide, fargate-profile (facts 1.4, 2.2, 2.3).
package profile

import (
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
)

// Decision is the outcome of Select. Profile is nil if the pod is left alone; Reason says why, in a sentence.
type Decision struct {
	Profile  *v1alpha1.FargateProfile
	Reason   string
	Rejected []Rejection
	// LeftAlone: the pod opted out, so no profile was looked at.
	LeftAlone bool
}

// Rejection says why a profile does not take the pod.
type Rejection struct{ Profile, Why string }

// Namespace that a pod is in.
type Namespace struct {
	Name   string
	Labels map[string]string
}

// Matches reports whether the selector takes a pod of the namespace with the labels: the namespace and every label of
// the selector match; `*` stands for any number of characters, `?` for exactly one (facts 1.4). Berth's own
// matchExpressions and namespaceSelector must match too; one that is malformed matches nothing.
func Matches(sel v1alpha1.Selector, ns Namespace, podLabels map[string]string) bool {
	return mismatch(sel, ns, podLabels) == ""
}

// mismatch says which pods the selector takes instead; empty: it takes this one.
func mismatch(sel v1alpha1.Selector, ns Namespace, podLabels map[string]string) string {
	switch {
	case sel.Namespace == "" && sel.NamespaceSelector == nil:
		return "no pods, for want of a namespace"
	case sel.Namespace != "" && !glob(sel.Namespace, ns.Name):
		return "pods of namespace " + sel.Namespace
	case sel.NamespaceSelector != nil && !meets(sel.NamespaceSelector, ns.Labels):
		return "pods of namespaces with " + metav1.FormatLabelSelector(sel.NamespaceSelector)
	}
	for _, key := range slices.Sorted(maps.Keys(sel.Labels)) {
		if !anyLabel(podLabels, key, sel.Labels[key]) {
			return "pods with label " + key + "=" + sel.Labels[key]
		}
	}
	expressions := &metav1.LabelSelector{MatchExpressions: sel.MatchExpressions}
	if len(sel.MatchExpressions) > 0 && !meets(expressions, podLabels) {
		return "pods with " + metav1.FormatLabelSelector(expressions)
	}
	return ""
}

func meets(selector *metav1.LabelSelector, set map[string]string) bool {
	s, err := metav1.LabelSelectorAsSelector(selector)
	return err == nil && s.Matches(labels.Set(set))
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
// matches, or the one that the pod's label names, if that matches. If none of those that are ACTIVE does, one that is about
// to be takes the pod, and the pod waits for it: on EKS a pod that is created together with its profile is lost to Fargate.
func Select(profiles []v1alpha1.FargateProfile, pod *corev1.Pod, namespace Namespace) Decision {
	if why := leftAlone(pod); why != "" {
		return Decision{Reason: why, LeftAlone: true}
	}
	sorted := append([]v1alpha1.FargateProfile(nil), profiles...)
	sort.SliceStable(sorted, func(i, j int) bool {
		if a, b := status(&sorted[i]) == v1alpha1.ProfileActive, status(&sorted[j]) == v1alpha1.ProfileActive; a != b {
			return a
		}
		return sorted[i].Name < sorted[j].Name
	})
	forced := pod.Labels[eks.LabelProfile]
	var d Decision
	for i := range sorted {
		p := &sorted[i]
		why := rejects(p, pod, namespace, forced)
		switch {
		case why != "":
			d.Rejected = append(d.Rejected, Rejection{p.Name, why})
		case d.Profile != nil && status(p) != status(d.Profile):
			d.Rejected = append(d.Rejected, Rejection{p.Name, fmt.Sprintf("it matches, but it is %s and %s is ACTIVE", status(p), d.Profile.Name)})
		case d.Profile != nil:
			d.Rejected = append(d.Rejected, Rejection{p.Name, fmt.Sprintf("it matches, but %s comes first in alphanumeric order", d.Profile.Name)})
		default:
			d.Profile = p
			d.Reason = fmt.Sprintf("profile %s matches", p.Name)
		}
	}
	sort.Slice(d.Rejected, func(i, j int) bool { return d.Rejected[i].Profile < d.Rejected[j].Profile })
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

func rejects(p *v1alpha1.FargateProfile, pod *corev1.Pod, namespace Namespace, forced string) string {
	switch {
	case forced != "" && forced != p.Name:
		return fmt.Sprintf("label %s names %s", eks.LabelProfile, forced)
	case status(p) != v1alpha1.ProfileActive && status(p) != v1alpha1.ProfileCreating:
		return fmt.Sprintf("it is %s, not ACTIVE", status(p))
	}
	var takes []string
	for _, s := range p.Spec.Selectors {
		other := mismatch(s, namespace, pod.Labels)
		if other == "" {
			return ""
		}
		if !slices.Contains(takes, other) {
			takes = append(takes, other)
		}
	}
	return "it takes " + strings.Join(takes, ", and ")
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
