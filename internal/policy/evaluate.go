package policy

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
)

// Cluster is what the answer for a connection depends on.
type Cluster struct {
	Policies []networking.NetworkPolicy
	// Namespaces by name, with their labels.
	Namespaces map[string]map[string]string
}

// Endpoint is an end of a connection: a pod, or an address that no pod has.
type Endpoint struct {
	Pod  *Pod
	Addr netip.Addr
}

func (e Endpoint) String() string {
	if e.Pod != nil {
		return e.Pod.String()
	}
	return e.Addr.String()
}

func (e Endpoint) addr() netip.Addr {
	if e.Pod != nil {
		return e.Pod.Addr
	}
	return e.Addr
}

// Port is a destination port.
type Port struct {
	Protocol corev1.Protocol
	Number   uint16
}

func (p Port) String() string { return fmt.Sprintf("%d/%s", p.Number, p.Protocol) }

// Explanation says whether a connection is allowed, and by what.
type Explanation struct {
	From string `json:"from"`
	To   string `json:"to"`
	Port string `json:"port"`
	// Allowed is the answer. Both sides must allow.
	Allowed bool `json:"allowed"`
	// Summary in one sentence.
	Summary string `json:"summary"`
	Egress  Side   `json:"egress"`
	Ingress Side   `json:"ingress"`
}

// Side is what one end's policies say: the source's egress or the destination's ingress.
type Side struct {
	Allowed bool `json:"allowed"`
	// Isolated says that some policy is for this pod and direction: what none of them allows is denied.
	Isolated bool `json:"isolated"`
	// Policies (namespace/name) that isolate.
	Policies []string `json:"policies,omitempty"`
	// AllowedBy are the rules that let the connection pass.
	AllowedBy []RuleReference `json:"allowedBy,omitempty"`
}

// RuleReference names a rule of a policy.
type RuleReference struct {
	// Policy as namespace/name.
	Policy string `json:"policy"`
	// Rule counts the policy's rules of the direction from 1.
	Rule int `json:"rule"`
}

// Explain judges one connection by the policies as they are written. A pod always reaches itself.
func (c Cluster) Explain(from, to Endpoint, port Port) Explanation {
	e := Explanation{From: from.String(), To: to.String(), Port: port.String()}
	e.Egress = c.side(Egress, from, to, to, port)
	e.Ingress = c.side(Ingress, to, from, to, port)
	e.Allowed = e.Egress.Allowed && e.Ingress.Allowed
	self := from.addr().IsValid() && from.addr() == to.addr()
	verb := "allowed: "
	switch {
	case self:
		e.Allowed, e.Summary = true, verb+"a pod always reaches itself"
		return e
	case !e.Allowed:
		verb = "denied: "
	}
	var reasons []string
	for _, s := range []struct {
		side Side
		d    Direction
		end  Endpoint
	}{{e.Egress, Egress, from}, {e.Ingress, Ingress, to}} {
		if s.side.Isolated && (!s.side.Allowed || e.Allowed) {
			reasons = append(reasons, s.side.reason(s.d, s.end))
		}
	}
	if len(reasons) == 0 {
		reasons = []string{"no policy is for either end"}
	}
	e.Summary = verb + strings.Join(reasons, "; ")
	return e
}

func (s Side) reason(d Direction, end Endpoint) string {
	if !s.Allowed {
		return fmt.Sprintf("%s of %s is isolated by %s, and no rule allows it", d, end, strings.Join(s.Policies, ", "))
	}
	var by []string
	for _, r := range s.AllowedBy {
		by = append(by, fmt.Sprintf("%s (%s rule %d)", r.Policy, d, r.Rule))
	}
	return fmt.Sprintf("%s of %s is allowed by %s", d, end, strings.Join(by, ", "))
}

// side judges by the policies of subject; peer is the other end.
func (c Cluster) side(d Direction, subject, peer, destination Endpoint, port Port) Side {
	var s Side
	for i := range c.Policies {
		np := &c.Policies[i]
		if subject.Pod == nil || subject.Pod.Namespace != np.Namespace || !isolates(&np.Spec, d) || !selected(&np.Spec.PodSelector, subject.Pod.Labels) {
			continue
		}
		name := np.Namespace + "/" + np.Name
		s.Isolated, s.Policies = true, append(s.Policies, name)
		for n, r := range rulesOf(&np.Spec, d) {
			if c.anyPeer(r.peers, np.Namespace, peer) && anyPort(r.ports, destination, port) {
				s.AllowedBy = append(s.AllowedBy, RuleReference{name, n + 1})
			}
		}
	}
	s.Allowed = !s.Isolated || len(s.AllowedBy) > 0
	return s
}

func selected(s *metav1.LabelSelector, set map[string]string) bool {
	selector, err := metav1.LabelSelectorAsSelector(s)
	return err == nil && selector.Matches(labels.Set(set))
}

func (c Cluster) anyPeer(peers []networking.NetworkPolicyPeer, namespace string, e Endpoint) bool {
	for _, p := range peers {
		if c.isPeer(p, namespace, e) {
			return true
		}
	}
	return len(peers) == 0
}

func (c Cluster) isPeer(p networking.NetworkPolicyPeer, namespace string, e Endpoint) bool {
	if p.IPBlock != nil {
		for _, except := range p.IPBlock.Except {
			if contains(except, e.addr()) {
				return false
			}
		}
		return contains(p.IPBlock.CIDR, e.addr())
	}
	if e.Pod == nil || p.PodSelector == nil && p.NamespaceSelector == nil {
		return false
	}
	if p.NamespaceSelector == nil && e.Pod.Namespace != namespace {
		return false
	}
	if p.NamespaceSelector != nil && !selected(p.NamespaceSelector, c.Namespaces[e.Pod.Namespace]) {
		return false
	}
	return p.PodSelector == nil || selected(p.PodSelector, e.Pod.Labels)
}

func contains(cidr string, addr netip.Addr) bool {
	p, err := netip.ParsePrefix(cidr)
	return err == nil && p.Contains(addr)
}

func anyPort(ports []networking.NetworkPolicyPort, destination Endpoint, port Port) bool {
	for _, p := range ports {
		if protocolOf(p.Protocol) == port.Protocol && isPort(p, destination, port) {
			return true
		}
	}
	return len(ports) == 0
}

func isPort(p networking.NetworkPolicyPort, destination Endpoint, port Port) bool {
	switch {
	case p.Port == nil:
		return true
	case p.Port.StrVal != "":
		number, ok := destination.Named(p.Port.StrVal, port.Protocol)
		return ok && number == port.Number
	case p.EndPort != nil:
		return p.Port.IntVal <= int32(port.Number) && int32(port.Number) <= *p.EndPort
	}
	return p.Port.IntVal == int32(port.Number)
}

// Named is the number of the endpoint's port of that name and protocol.
func (e Endpoint) Named(name string, protocol corev1.Protocol) (uint16, bool) {
	if e.Pod == nil {
		return 0, false
	}
	for _, p := range e.Pod.Ports {
		if p.Name == name && p.Protocol == protocol {
			return p.Port, true
		}
	}
	return 0, false
}

// Print writes the explanation for people.
func (e Explanation) Print(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s -> %s %s: %s\n", e.From, e.To, e.Port, e.Summary)
	for _, s := range []struct {
		name string
		side Side
	}{{"egress", e.Egress}, {"ingress", e.Ingress}} {
		word := "not isolated"
		if s.side.Isolated {
			word = map[bool]string{true: "allowed", false: "denied"}[s.side.Allowed] + ", isolated by " + strings.Join(s.side.Policies, ", ")
		}
		fmt.Fprintf(&b, "  %-8s  %s\n", s.name, word)
		for _, r := range s.side.AllowedBy {
			fmt.Fprintf(&b, "  %-8s  rule %d of %s allows it\n", "", r.Rule, r.Policy)
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// ComparePolicies sorts policies by namespace and name.
func ComparePolicies(a, b networking.NetworkPolicy) int {
	return cmp.Or(strings.Compare(a.Namespace, b.Namespace), strings.Compare(a.Name, b.Name))
}
