// Package policy says what NetworkPolicies allow. A Table turns policies, pods and namespaces into sets of addresses and
// lists of rules that a packet filter can hold, and tells only what changed; Cluster answers for one connection, with the
// policies that decide it. Both follow k8s.io/api/networking/v1. Pure.
package policy

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Direction of a connection as the pod sees it that a policy selects.
type Direction int

// The directions.
const (
	Ingress Direction = iota
	Egress
)

// Directions in the order in which they are counted.
var Directions = [...]Direction{Ingress, Egress}

func (d Direction) String() string {
	if d == Egress {
		return "egress"
	}
	return "ingress"
}

// Pod is what policies see of a pod.
type Pod struct {
	types.NamespacedName
	// UID tells the pod from those before and after it of the same name.
	UID    types.UID
	Labels map[string]string
	// Addr is invalid while the pod has no address.
	Addr netip.Addr
	// Ports with a name; those without do not matter.
	Ports []NamedPort
	// Local pods are those whose policies this host enforces; the others are only peers.
	Local bool
}

// NamedPort is a container's port that policies may call by its name.
type NamedPort struct {
	Name     string
	Protocol corev1.Protocol
	Port     uint16
}

// PodOf takes from a pod what policies see, with the address that is known from elsewhere. Containers that ended for good
// (Ended) have no address any more, whatever their status says.
func PodOf(p *corev1.Pod, addr netip.Addr, local bool) Pod {
	out := Pod{NamespacedName: types.NamespacedName{Namespace: p.Namespace, Name: p.Name}, UID: p.UID, Labels: p.Labels, Addr: addr, Local: local}
	if Ended(p) {
		out.Addr = netip.Addr{}
	}
	add := func(c *corev1.Container) {
		for _, port := range c.Ports {
			named := NamedPort{port.Name, protocolOf(&port.Protocol), uint16(port.ContainerPort)}
			if _, taken := (Endpoint{Pod: &out}).Named(named.Name, named.Protocol); named.Name != "" && !taken {
				out.Ports = append(out.Ports, named) // the first of a name counts, as for a Service
			}
		}
	}
	for i := range p.Spec.Containers {
		add(&p.Spec.Containers[i])
	}
	for i := range p.Spec.InitContainers {
		if c := &p.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			add(c) // a sidecar serves as long as the pod does
		}
	}
	return out
}

// Ended tells whether no container of the pod runs or will run; its address may be another pod's by now.
func Ended(p *corev1.Pod) bool {
	return p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
}

func protocolOf(p *corev1.Protocol) corev1.Protocol {
	if p == nil || *p == "" {
		return corev1.ProtocolTCP
	}
	return *p
}

// isolates tells whether the policy is for the direction: as policyTypes say; without any, ingress always, and egress if
// there are egress rules.
func isolates(spec *networking.NetworkPolicySpec, d Direction) bool {
	if len(spec.PolicyTypes) == 0 {
		return d == Ingress || len(spec.Egress) > 0
	}
	for _, t := range spec.PolicyTypes {
		if t == networking.PolicyTypeIngress && d == Ingress || t == networking.PolicyTypeEgress && d == Egress {
			return true
		}
	}
	return false
}

// rule is an ingress or an egress rule.
type rule struct {
	peers []networking.NetworkPolicyPeer
	ports []networking.NetworkPolicyPort
}

func rulesOf(spec *networking.NetworkPolicySpec, d Direction) []rule {
	var out []rule
	if d == Ingress {
		for _, r := range spec.Ingress {
			out = append(out, rule{r.From, r.Ports})
		}
		return out
	}
	for _, r := range spec.Egress {
		out = append(out, rule{r.To, r.Ports})
	}
	return out
}
