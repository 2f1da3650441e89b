package profile

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/event"

	"github.com/berth-run/berth/api/v1alpha1"
)

// unreachable is an issue if no host that serves a zone of the profile's subnets is ready.
func unreachable(p *v1alpha1.FargateProfile, subnets []v1alpha1.Subnet, hosts []v1alpha1.Host) []v1alpha1.ProfileIssue {
	var zones, names []string
	for _, s := range subnets {
		if slices.Contains(p.Status.Subnets, s.Name) && !slices.Contains(zones, s.Spec.Zone) {
			zones = append(zones, s.Spec.Zone)
		}
	}
	for i := range hosts {
		h := &hosts[i]
		if !slices.ContainsFunc(h.Spec.Zones, func(zone string) bool { return slices.Contains(zones, zone) }) {
			continue
		}
		if ready(h) {
			return nil
		}
		names = append(names, h.Name)
	}
	if len(zones) == 0 {
		return nil
	}
	slices.Sort(zones)
	slices.Sort(names)
	return []v1alpha1.ProfileIssue{{Code: v1alpha1.IssueClusterUnreachable, ResourceIDs: names,
		Message: fmt.Sprintf("no host of zone %s is ready, and pods wait for one; `kubectl describe hosts` says why", strings.Join(zones, ", "))}}
}

func ready(h *v1alpha1.Host) bool {
	return meta.IsStatusConditionTrue(h.Status.Conditions, v1alpha1.ConditionReady) && h.DeletionTimestamp == nil
}

// hostChanged lets through what changes the judgement of profiles, not each heartbeat.
func hostChanged(e event.UpdateEvent) bool {
	before, isHost := e.ObjectOld.(*v1alpha1.Host)
	now, isHostNow := e.ObjectNew.(*v1alpha1.Host)
	return isHost && isHostNow && (ready(before) != ready(now) || !slices.Equal(before.Spec.Zones, now.Spec.Zones))
}

// addIssue adds a pod that could not be deleted to the issue of its kind, which tells the first one's error.
func addIssue(issues []v1alpha1.ProfileIssue, err error, pod *corev1.Pod) []v1alpha1.ProfileIssue {
	code, name := v1alpha1.IssueInternalFailure, pod.Namespace+"/"+pod.Name
	if apierrors.IsForbidden(err) || apierrors.IsUnauthorized(err) {
		code = v1alpha1.IssueAccessDenied
	}
	for i := range issues {
		if issues[i].Code == code {
			issues[i].ResourceIDs = append(issues[i].ResourceIDs, name)
			return issues
		}
	}
	return append(issues, v1alpha1.ProfileIssue{Code: code, Message: err.Error() + "; it is tried again", ResourceIDs: []string{name}})
}
