package profile

import (
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/berth-run/berth/api/v1alpha1"
)

// ReasonDeleting is the reason of condition Ready of a profile whose pods are being removed.
const ReasonDeleting = "Deleting"

// UnderWay is what is being done to a profile: CREATING, DELETING, or "" for nothing. A profile that failed blocks nobody.
func UnderWay(p *v1alpha1.FargateProfile) v1alpha1.ProfileStatus {
	switch s := status(p); s {
	case v1alpha1.ProfileCreating:
		return s
	case v1alpha1.ProfileDeleting:
		if p.Status.Status != v1alpha1.ProfileDeleteFailed {
			return s
		}
	}
	return ""
}

// Ahead is the profile that has to be finished before p is created or deleted, or nil if it is p's turn: a cluster has one
// profile CREATING or DELETING at a time (facts 1.5, 1.6). A deletion that has begun comes first, then what was asked for
// first.
func Ahead(p *v1alpha1.FargateProfile, all []v1alpha1.FargateProfile) *v1alpha1.FargateProfile {
	return first(all, func(o *v1alpha1.FargateProfile) bool {
		return o.Name != p.Name && (UnderWay(p) == "" || goesBefore(o, p))
	})
}

// Busy is the profile that is being created or deleted, other than the one of that name, or nil if a request for that one
// could be carried out at once.
func Busy(name string, all []v1alpha1.FargateProfile) *v1alpha1.FargateProfile {
	return first(all, func(o *v1alpha1.FargateProfile) bool { return o.Name != name })
}

// first of those under way that count.
func first(all []v1alpha1.FargateProfile, counts func(*v1alpha1.FargateProfile) bool) *v1alpha1.FargateProfile {
	var found *v1alpha1.FargateProfile
	for i := range all {
		if o := &all[i]; UnderWay(o) != "" && counts(o) && (found == nil || goesBefore(o, found)) {
			found = o
		}
	}
	return found
}

func goesBefore(a, b *v1alpha1.FargateProfile) bool {
	if x, y := begun(a), begun(b); x != y {
		return x
	}
	if x, y := asked(a), asked(b); !x.Equal(y) {
		return x.Before(y)
	}
	return a.Name < b.Name
}

func begun(p *v1alpha1.FargateProfile) bool {
	ready := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
	return p.DeletionTimestamp != nil && ready != nil && ready.Reason == ReasonDeleting
}

// asked is when somebody asked for what is under way.
func asked(p *v1alpha1.FargateProfile) time.Time {
	if p.DeletionTimestamp != nil {
		return p.DeletionTimestamp.Time
	}
	return p.CreationTimestamp.Time
}

// MessageCannotCreate and MessageCannotDelete are EKS's words for a profile whose turn it is not (facts 1.6).
func MessageCannotCreate(name, cluster string, ahead *v1alpha1.FargateProfile) string {
	return fmt.Sprintf("Cannot create Fargate Profile %s because cluster %s currently has Fargate profile %s in status %s", name, cluster, ahead.Name, UnderWay(ahead))
}

// MessageCannotDelete has a capital D, as on EKS.
func MessageCannotDelete(name, cluster string, ahead *v1alpha1.FargateProfile) string {
	return fmt.Sprintf("Cannot Delete Fargate Profile %s because cluster %s currently has Fargate profile %s in status %s", name, cluster, ahead.Name, UnderWay(ahead))
}

// Exceeded says, in a sentence, that the cluster's quota has no room for p, which is not ACTIVE yet. Profiles that failed
// do not count, and of those that are being created the older ones come first. Empty: there is room.
func (q Quotas) Exceeded(p *v1alpha1.FargateProfile, cluster string, all []v1alpha1.FargateProfile) string {
	others := 0
	for i := range all {
		o := &all[i]
		switch status(o) {
		case v1alpha1.ProfileCreateFailed:
		case v1alpha1.ProfileCreating:
			if o.Name != p.Name && goesBefore(o, p) {
				others++
			}
		default:
			if o.Name != p.Name {
				others++
			}
		}
	}
	if status(p) == v1alpha1.ProfileActive || others < q.Profiles {
		return ""
	}
	return fmt.Sprintf("Cluster %s has %d Fargate profiles, which is its quota (%d): delete one, or raise --quota-profiles of berth-controller; this one is created then", cluster, others, q.Profiles)
}
