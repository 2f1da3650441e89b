package policy

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// Allow is one way in which a policy lets a connection pass: all that is set must hold.
type Allow struct {
	// PeerSet names the set of addresses that the other end must be in; empty: no such condition.
	PeerSet string
	// Block that the other end must be in, but not in Except (disjoint, sorted); invalid: no such condition.
	Block  netip.Prefix
	Except []netip.Prefix
	// Protocol, empty for all, those without ports included.
	Protocol corev1.Protocol
	// Ports of the destination, disjoint and sorted; none: no such condition.
	Ports []PortRange
	// PortSet names the set of (address, port) that the destination must be in; empty: no such condition.
	PortSet string
}

// PortRange includes both ends.
type PortRange struct{ First, Last uint16 }

// selection is the pods that a peer stands for; peers of all policies that say the same share one.
type selection struct {
	name string
	// namespace, or, if empty, those that the selector takes.
	namespace  string
	namespaces labels.Selector
	pods       labels.Selector
}

func (s *selection) matches(p *Pod, namespace map[string]string) bool {
	if s.namespaces == nil {
		return p.Namespace == s.namespace && s.pods.Matches(labels.Set(p.Labels))
	}
	return s.namespaces.Matches(labels.Set(namespace)) && s.pods.Matches(labels.Set(p.Labels))
}

// portName is a port's name with its protocol; the pods' ports of that name are a set.
type portName struct {
	name     string
	protocol corev1.Protocol
}

func (n portName) set() string { return "policy/ports/" + hash(string(n.protocol), n.name) }

// compiled is a policy made ready.
type compiled struct {
	key        types.NamespacedName
	target     labels.Selector
	isolates   [len(Directions)]bool
	allows     [len(Directions)][]Allow
	selections map[string]*selection
	portNames  map[string]portName
}

func (c *compiled) selects(p *Pod) bool {
	return p.Namespace == c.key.Namespace && c.target.Matches(labels.Set(p.Labels))
}

// compile fails only for what the API server does not let in.
func compile(np *networking.NetworkPolicy) (*compiled, error) {
	c := &compiled{key: types.NamespacedName{Namespace: np.Namespace, Name: np.Name},
		selections: map[string]*selection{}, portNames: map[string]portName{}}
	var err error
	if c.target, err = metav1.LabelSelectorAsSelector(&np.Spec.PodSelector); err != nil {
		return nil, fmt.Errorf("network policy %s: podSelector: %w", c.key, err)
	}
	for _, d := range Directions {
		if c.isolates[d] = isolates(&np.Spec, d); !c.isolates[d] {
			continue
		}
		for i, r := range rulesOf(&np.Spec, d) {
			allows, err := c.rule(r)
			if err != nil {
				return nil, fmt.Errorf("network policy %s: %s rule %d: %w", c.key, d, i+1, err)
			}
			c.allows[d] = append(c.allows[d], allows...)
		}
	}
	return c, nil
}

// rule is each of its peers with each of its ports.
func (c *compiled) rule(r rule) ([]Allow, error) {
	peers := []Allow{{}}
	if len(r.peers) > 0 {
		peers = nil
		for _, p := range r.peers {
			peer, err := c.peer(p)
			if err != nil {
				return nil, err
			}
			peers = append(peers, peer...)
		}
	}
	if len(peers) == 0 {
		return nil, nil
	}
	ports, err := c.ports(r.ports)
	if err != nil {
		return nil, err
	}
	var out []Allow
	for _, a := range peers {
		for _, p := range ports {
			a.Protocol, a.Ports, a.PortSet = p.Protocol, p.Ports, p.PortSet
			out = append(out, a)
		}
	}
	return out, nil
}

// peer is nothing if it can match no address: one of another family, or one that excepts itself.
func (c *compiled) peer(p networking.NetworkPolicyPeer) ([]Allow, error) {
	if p.IPBlock != nil {
		return block(p.IPBlock)
	}
	if p.PodSelector == nil && p.NamespaceSelector == nil {
		return nil, nil
	}
	s := &selection{pods: labels.Everything()}
	var err error
	if p.PodSelector != nil {
		if s.pods, err = metav1.LabelSelectorAsSelector(p.PodSelector); err != nil {
			return nil, fmt.Errorf("podSelector: %w", err)
		}
	}
	namespaces := ""
	if p.NamespaceSelector == nil {
		s.namespace = c.key.Namespace
	} else {
		if s.namespaces, err = metav1.LabelSelectorAsSelector(p.NamespaceSelector); err != nil {
			return nil, fmt.Errorf("namespaceSelector: %w", err)
		}
		namespaces = s.namespaces.String()
	}
	s.name = "policy/pods/" + hash(s.namespace, namespaces, s.pods.String())
	c.selections[s.name] = s
	return []Allow{{PeerSet: s.name}}, nil
}

func block(b *networking.IPBlock) ([]Allow, error) {
	cidr, err := netip.ParsePrefix(b.CIDR)
	if err != nil {
		return nil, fmt.Errorf("ipBlock: %w", err)
	}
	cidr = cidr.Masked()
	if !cidr.Addr().Is4() {
		return nil, nil
	}
	var except []netip.Prefix
	for _, e := range b.Except {
		p, err := netip.ParsePrefix(e)
		if err != nil {
			return nil, fmt.Errorf("ipBlock: except: %w", err)
		}
		p = p.Masked()
		if p.Overlaps(cidr) && p.Bits() <= cidr.Bits() {
			return nil, nil
		}
		except = append(except, p)
	}
	return []Allow{{Block: cidr, Except: disjoint(except)}}, nil
}

// disjoint sorts the prefixes and leaves those out that lie in another.
func disjoint(prefixes []netip.Prefix) []netip.Prefix {
	slices.SortFunc(prefixes, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	var out []netip.Prefix
	for _, p := range prefixes {
		if n := len(out); n == 0 || !out[n-1].Overlaps(p) {
			out = append(out, p)
		}
	}
	return out
}

// ports are conditions on the destination's port, one per protocol and per name; all ports are one condition without content.
func (c *compiled) ports(ports []networking.NetworkPolicyPort) ([]Allow, error) {
	if len(ports) == 0 {
		return []Allow{{}}, nil
	}
	whole := map[corev1.Protocol]bool{}
	ranges := map[corev1.Protocol][]PortRange{}
	var out []Allow
	for _, p := range ports {
		protocol := protocolOf(p.Protocol)
		switch {
		case protocol != corev1.ProtocolTCP && protocol != corev1.ProtocolUDP && protocol != corev1.ProtocolSCTP:
			return nil, fmt.Errorf("protocol %q has no ports", protocol)
		case p.Port == nil:
			whole[protocol] = true
		case p.Port.StrVal != "":
			n := portName{p.Port.StrVal, protocol}
			c.portNames[n.set()] = n
			out = append(out, Allow{Protocol: protocol, PortSet: n.set()})
		default:
			first, last := p.Port.IntVal, p.Port.IntVal
			if p.EndPort != nil {
				last = *p.EndPort
			}
			if first < 1 || last < first || last > 65535 {
				return nil, fmt.Errorf("ports %d to %d are no range of ports", first, last)
			}
			ranges[protocol] = append(ranges[protocol], PortRange{uint16(first), uint16(last)})
		}
	}
	for _, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP} {
		if whole[protocol] {
			out = append(out, Allow{Protocol: protocol})
		} else if len(ranges[protocol]) > 0 {
			out = append(out, Allow{Protocol: protocol, Ports: merge(ranges[protocol])})
		}
	}
	return out, nil
}

// merge sorts ranges and joins those that overlap or touch.
func merge(ranges []PortRange) []PortRange {
	slices.SortFunc(ranges, func(a, b PortRange) int { return cmp.Compare(a.First, b.First) })
	out := ranges[:1:1]
	for _, r := range ranges[1:] {
		if last := &out[len(out)-1]; int(r.First) <= int(last.Last)+1 {
			last.Last = max(last.Last, r.Last)
		} else {
			out = append(out, r)
		}
	}
	return out
}

// hash makes a name that says the same whenever the parts do; 64 bits of it, as a cluster has few of them.
func hash(parts ...string) string {
	h := sha256.New()
	for _, p := range parts {
		fmt.Fprintf(h, "%d:%s,", len(p), p)
	}
	return hex.EncodeToString(h.Sum(nil)[:8])
}
