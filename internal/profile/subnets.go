package profile

import (
	"fmt"
	"net/netip"

	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/layout"
)

// reserved ranges are used by every host for itself.
var reserved = map[string]string{
	layout.KubeletRange:      "the addresses of the hosts' kubelets",
	layout.GatewayIP + "/32": "the pods' gateway",
	layout.ServiceCIDR:       "the addresses of Services",
}

// ReasonCollision is the reason of a Subnet's condition Ready while Collision says something.
const ReasonCollision = "HostNetwork"

// Collision says, in a sentence, which host is by itself in a network that the subnet overlaps: it could not tell pods from
// its neighbours there.
func Collision(s *v1alpha1.Subnet, hosts []v1alpha1.Host) string {
	mine, err := netip.ParsePrefix(s.Spec.CIDR)
	if err != nil {
		return ""
	}
	for i := range hosts {
		for _, text := range hosts[i].Status.Networks {
			if other, err := netip.ParsePrefix(text); err == nil && other.Overlaps(mine) {
				return fmt.Sprintf("spec.cidr %s overlaps %s, a network that host %s is in; delete the subnet and take another range", s.Spec.CIDR, text, hosts[i].Name)
			}
		}
	}
	return ""
}

// Conflict says, in a sentence, why a subnet cannot be used beside the others: an address of it could be given twice. Of
// two that overlap the older one is good. What a host collides with, its condition says. Empty: it can be used.
func Conflict(s *v1alpha1.Subnet, all []v1alpha1.Subnet) string {
	mine, err := netip.ParsePrefix(s.Spec.CIDR)
	if err != nil {
		return fmt.Sprintf("spec.cidr %q is not a network address", s.Spec.CIDR)
	}
	if ready := meta.FindStatusCondition(s.Status.Conditions, v1alpha1.ConditionReady); ready != nil && ready.Reason == ReasonCollision {
		return ready.Message
	}
	for cidr, what := range reserved {
		if other, err := netip.ParsePrefix(cidr); err == nil && other.Overlaps(mine) {
			return fmt.Sprintf("spec.cidr %s overlaps %s, %s; delete the subnet and take another range", s.Spec.CIDR, cidr, what)
		}
	}
	for i := range all {
		o := &all[i]
		if other, err := netip.ParsePrefix(o.Spec.CIDR); err == nil && o.Name != s.Name && older(o, s) && other.Overlaps(mine) {
			return fmt.Sprintf("spec.cidr %s overlaps %s of subnet %s; delete the subnet and take another range", s.Spec.CIDR, o.Spec.CIDR, o.Name)
		}
	}
	return ""
}

func older(a, b *v1alpha1.Subnet) bool {
	if !a.CreationTimestamp.Equal(&b.CreationTimestamp) {
		return a.CreationTimestamp.Before(&b.CreationTimestamp)
	}
	return a.Name < b.Name
}
