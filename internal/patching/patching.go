package patching

import (
	"cmp"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-run/berth/api/v1alpha1"
)

// Subject is a pod that is to be recycled.
type Subject struct {
	Pod   *corev1.Pod
	Berth *v1alpha1.Berth
	// Current is what its host makes nodes of now.
	Current string
}

// Subjects are the running pods that are to be recycled, of those created before the round began, sorted by zone and name.
// A pod whose machine, or whose host, does not tell its version is not outdated.
func Subjects(which v1alpha1.PatchPods, pods []corev1.Pod, berths []v1alpha1.Berth, hosts []v1alpha1.Host, began time.Time) []Subject {
	current := map[string]string{}
	for i := range hosts {
		current[hosts[i].Name] = hosts[i].Status.NodeVersion
	}
	byPod := map[string]*v1alpha1.Berth{}
	for i := range berths {
		byPod[string(berths[i].Spec.Pod.UID)] = &berths[i]
	}
	var out []Subject
	for i := range pods {
		p := &pods[i]
		b := byPod[string(p.UID)]
		if b == nil || b.Status.Timeline.Completed != nil || p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed ||
			!p.CreationTimestamp.Time.Before(began) {
			continue
		}
		now := current[b.Spec.HostName]
		if which == v1alpha1.PatchAll || b.Status.NodeVersion != "" && now != "" && b.Status.NodeVersion != now {
			out = append(out, Subject{p, b, now})
		}
	}
	slices.SortFunc(out, func(a, b Subject) int {
		return cmp.Or(cmp.Compare(a.Berth.Spec.Zone, b.Berth.Spec.Zone), cmp.Compare(a.Pod.Namespace, b.Pod.Namespace), cmp.Compare(a.Pod.Name, b.Pod.Name))
	})
	return out
}

// Termination of a pod that could not be evicted; zero if none is scheduled.
func (s Subject) Termination() time.Time {
	at, err := time.Parse(time.RFC3339Nano, s.Berth.Annotations[v1alpha1.AnnotationScheduledTermination])
	if err != nil {
		return time.Time{}
	}
	return at
}

// Zone is the first that has a pod which is neither gone nor blocked: zones are patched one after another (facts 6). Empty:
// all that is left waits for its scheduled termination.
func Zone(subjects []Subject) string {
	for _, s := range subjects {
		if s.Termination().IsZero() || s.Pod.DeletionTimestamp != nil {
			return s.Berth.Spec.Zone
		}
	}
	return ""
}

// Blocked counts the pods that wait for their scheduled termination.
func Blocked(subjects []Subject) int {
	n := 0
	for _, s := range subjects {
		if !s.Termination().IsZero() && s.Pod.DeletionTimestamp == nil {
			n++
		}
	}
	return n
}
