package topology

import (
	"slices"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-run/berth/api/v1alpha1"
)

// wish is the weight of a required term that can be a preference only: the most there is.
const wish = 100

// asking is the pod that the plugins judge: what is meant, and only among nodes that its profile has.
func asking(pod *corev1.Pod) *corev1.Pod {
	out := meant(pod)
	if out == pod {
		out = pod.DeepCopy()
	}
	if out.Spec.NodeSelector == nil {
		out.Spec.NodeSelector = map[string]string{}
	}
	out.Spec.NodeSelector[labelOffered] = "true"
	return out
}

// meant is the pod with its rules over kubernetes.io/hostname as preferences over hosts. A pod that has none is returned as it is.
func meant(pod *corev1.Pod) *corev1.Pod {
	if !overHostname(pod) {
		return pod
	}
	out := pod.DeepCopy()
	for i := range out.Spec.TopologySpreadConstraints {
		if c := &out.Spec.TopologySpreadConstraints[i]; c.TopologyKey == corev1.LabelHostname {
			c.TopologyKey, c.WhenUnsatisfiable, c.MinDomains = v1alpha1.LabelHost, corev1.ScheduleAnyway, nil
		}
	}
	if a := out.Spec.Affinity; a != nil {
		if p := a.PodAffinity; p != nil {
			p.RequiredDuringSchedulingIgnoredDuringExecution, p.PreferredDuringSchedulingIgnoredDuringExecution =
				preferred(p.RequiredDuringSchedulingIgnoredDuringExecution, p.PreferredDuringSchedulingIgnoredDuringExecution)
		}
		if p := a.PodAntiAffinity; p != nil {
			p.RequiredDuringSchedulingIgnoredDuringExecution, p.PreferredDuringSchedulingIgnoredDuringExecution =
				preferred(p.RequiredDuringSchedulingIgnoredDuringExecution, p.PreferredDuringSchedulingIgnoredDuringExecution)
		}
	}
	return out
}

// preferred moves what is required of hostnames to what is preferred of hosts.
func preferred(required []corev1.PodAffinityTerm, weighted []corev1.WeightedPodAffinityTerm) ([]corev1.PodAffinityTerm, []corev1.WeightedPodAffinityTerm) {
	for i := range weighted {
		if t := &weighted[i].PodAffinityTerm; t.TopologyKey == corev1.LabelHostname {
			t.TopologyKey = v1alpha1.LabelHost
		}
	}
	for _, t := range required {
		if t.TopologyKey == corev1.LabelHostname {
			t.TopologyKey = v1alpha1.LabelHost
			weighted = append(weighted, corev1.WeightedPodAffinityTerm{Weight: wish, PodAffinityTerm: t})
		}
	}
	return slices.DeleteFunc(required, func(t corev1.PodAffinityTerm) bool { return t.TopologyKey == corev1.LabelHostname }), weighted
}

func overHostname(pod *corev1.Pod) bool {
	for _, c := range pod.Spec.TopologySpreadConstraints {
		if c.TopologyKey == corev1.LabelHostname {
			return true
		}
	}
	var terms []corev1.PodAffinityTerm
	add := func(required []corev1.PodAffinityTerm, weighted []corev1.WeightedPodAffinityTerm) {
		terms = append(terms, required...)
		for _, w := range weighted {
			terms = append(terms, w.PodAffinityTerm)
		}
	}
	if a := pod.Spec.Affinity; a != nil {
		if p := a.PodAffinity; p != nil {
			add(p.RequiredDuringSchedulingIgnoredDuringExecution, p.PreferredDuringSchedulingIgnoredDuringExecution)
		}
		if p := a.PodAntiAffinity; p != nil {
			add(p.RequiredDuringSchedulingIgnoredDuringExecution, p.PreferredDuringSchedulingIgnoredDuringExecution)
		}
	}
	return slices.ContainsFunc(terms, func(t corev1.PodAffinityTerm) bool { return t.TopologyKey == corev1.LabelHostname })
}
