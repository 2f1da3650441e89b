package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// TestIncremental checks that a change changes as little as it must.
func TestIncremental(t *testing.T) {
	namespaces, pods := world()
	table, f := NewTable(), newFilter(t)
	for name, labels := range namespaces {
		table.SetNamespace(name, labels)
	}
	for _, p := range pods {
		table.SetPod(p)
	}
	list := policies(t, `{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: serve-80-tcp}]}]}`,
		`{podSelector: {matchLabels: {pod: a}}, egress: [{to: [{podSelector: {matchLabels: {pod: b}}}]}]}`)
	for i := range list {
		if err := table.SetPolicy(&list[i]); err != nil {
			t.Fatal(err)
		}
	}
	f.apply(table.Take())
	check := func(what, want string) {
		t.Helper()
		d := table.Take()
		f.apply(d)
		elements := 0
		for _, e := range d.AddElements {
			elements += len(e)
		}
		for _, e := range d.RemoveElements {
			elements += len(e)
		}
		if got := fmt.Sprintf("sets %d/%d elements %d chains %d/%d groups %d/%d leads %d/%d", len(d.AddSets), len(d.RemoveSets), elements,
			len(d.Chains), len(d.RemoveChains), len(d.AddGroups), len(d.RemoveGroups), len(d.AddLeads), len(d.RemoveLeads)); got != want {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	check("nothing", "sets 0/0 elements 0 chains 0/0 groups 0/0 leads 0/0")
	again := list[0]
	again.ResourceVersion = "2"
	if err := table.SetPolicy(&again); err != nil {
		t.Fatal(err)
	}
	check("the same policy again", "sets 0/0 elements 0 chains 0/0 groups 0/0 leads 0/0")
	p := pods[1]
	p.Name, p.UID, p.Addr = "d", "d", netip.MustParseAddr("10.0.0.9")
	table.SetPod(p)
	check("a new pod", "sets 0/0 elements 4 chains 0/0 groups 0/0 leads 1/0") // peer, port, isolated, self
	p.Labels = map[string]string{"pod": "d"}
	table.SetPod(p)
	check("the pod is a peer no more", "sets 0/0 elements 1 chains 0/0 groups 0/0 leads 0/0")
	table.DeletePod(p.UID)
	check("the pod is gone", "sets 0/0 elements 3 chains 0/0 groups 0/0 leads 0/1")
	changed := policies(t, `{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}], ports: [{port: 81}]}]}`)[0]
	if err := table.SetPolicy(&changed); err != nil {
		t.Fatal(err)
	}
	check("a policy's port changes", "sets 0/1 elements 0 chains 1/0 groups 0/0 leads 0/0")
	table.DeletePolicy(types.NamespacedName{Namespace: "x", Name: "p2"})
	check("a policy goes that shares its peers", "sets 0/0 elements 0 chains 0/2 groups 0/2 leads 1/2")
	table.DeletePolicy(types.NamespacedName{Namespace: "x", Name: "p1"})
	check("the last policy goes", "sets 0/1 elements 6 chains 0/1 groups 0/1 leads 0/3")
}

// TestAnySequence changes policies, pods and namespaces at random and compares, after each change, the filter with the
// policies as they are written, for every connection.
func TestAnySequence(t *testing.T) {
	for seed := range uint64(60) {
		anySequence(t, rand.New(rand.NewPCG(seed, 0)), 40)
	}
}

func FuzzAnySequence(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) { anySequence(t, rand.New(rand.NewPCG(a, b)), 60) })
}

func anySequence(t *testing.T, r *rand.Rand, steps int) {
	s := &sequence{Rand: r, table: NewTable(), filter: newFilter(t), namespaces: map[string]map[string]string{},
		pods: map[types.NamespacedName]Pod{}, policies: map[types.NamespacedName]networking.NetworkPolicy{}}
	for step := range steps {
		for range 1 + r.IntN(3) {
			if err := s.change(); err != nil {
				t.Fatal(err)
			}
		}
		if r.IntN(20) == 0 {
			s.filter.apply(s.table.All())
		} else {
			s.filter.apply(s.table.Take())
		}
		s.compare(t, step)
	}
}

type sequence struct {
	*rand.Rand
	table      *Table
	filter     *filter
	namespaces map[string]map[string]string
	pods       map[types.NamespacedName]Pod
	policies   map[types.NamespacedName]networking.NetworkPolicy
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

func (s *sequence) labels() map[string]string {
	return pick(s.Rand, nil, map[string]string{"k": "a"}, map[string]string{"k": "b"}, map[string]string{"k": "a", "l": "c"})
}

func (s *sequence) selector() *metav1.LabelSelector {
	return pick(s.Rand, &metav1.LabelSelector{}, &metav1.LabelSelector{MatchLabels: map[string]string{"k": "a"}},
		&metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "l", Operator: metav1.LabelSelectorOpDoesNotExist}}})
}

func (s *sequence) change() error {
	ns := pick(s.Rand, "x", "y")
	switch s.IntN(6) {
	case 0:
		if s.IntN(4) == 0 {
			delete(s.namespaces, ns)
			s.table.DeleteNamespace(ns)
			return nil
		}
		s.namespaces[ns] = s.labels()
		s.table.SetNamespace(ns, s.namespaces[ns])
	case 1, 2:
		s.changePod(types.NamespacedName{Namespace: ns, Name: pick(s.Rand, "a", "b", "c")})
	default:
		key := types.NamespacedName{Namespace: ns, Name: pick(s.Rand, "p", "q", "r")}
		if s.IntN(3) == 0 {
			delete(s.policies, key)
			s.table.DeletePolicy(key)
			return nil
		}
		np := networking.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: key.Name}, Spec: s.spec()}
		s.policies[key] = np
		return s.table.SetPolicy(&np)
	}
	return nil
}

func (s *sequence) changePod(key types.NamespacedName) {
	if s.IntN(4) == 0 {
		delete(s.pods, key)
		s.table.DeletePod(types.UID(key.String()))
		return
	}
	p := Pod{NamespacedName: key, UID: types.UID(key.String()), Labels: s.labels(), Local: s.IntN(4) > 0}
	if s.IntN(6) > 0 { // each pod has two addresses of its own to choose from
		p.Addr = netip.AddrFrom4([4]byte{10, key.Namespace[0], key.Name[0], byte(s.IntN(2))})
	}
	if s.IntN(2) == 0 {
		p.Ports = []NamedPort{{"http", pick(s.Rand, corev1.ProtocolTCP, corev1.ProtocolUDP), pick[uint16](s.Rand, 80, 81)}}
	}
	s.pods[key] = p
	s.table.SetPod(p)
}

func (s *sequence) spec() networking.NetworkPolicySpec {
	spec := networking.NetworkPolicySpec{PodSelector: *s.selector(), PolicyTypes: pick(s.Rand, nil,
		[]networking.PolicyType{networking.PolicyTypeIngress}, []networking.PolicyType{networking.PolicyTypeEgress},
		[]networking.PolicyType{networking.PolicyTypeIngress, networking.PolicyTypeEgress})}
	for range s.IntN(3) {
		spec.Ingress = append(spec.Ingress, networking.NetworkPolicyIngressRule{From: s.peers(), Ports: s.ports()})
	}
	for range s.IntN(3) {
		spec.Egress = append(spec.Egress, networking.NetworkPolicyEgressRule{To: s.peers(), Ports: s.ports()})
	}
	return spec
}

func (s *sequence) peers() []networking.NetworkPolicyPeer {
	var out []networking.NetworkPolicyPeer
	for range s.IntN(3) {
		out = append(out, pick(s.Rand, networking.NetworkPolicyPeer{PodSelector: s.selector()}, networking.NetworkPolicyPeer{NamespaceSelector: s.selector()},
			networking.NetworkPolicyPeer{NamespaceSelector: s.selector(), PodSelector: s.selector()},
			networking.NetworkPolicyPeer{IPBlock: pick(s.Rand, &networking.IPBlock{CIDR: "0.0.0.0/0"}, &networking.IPBlock{CIDR: "10.120.0.0/16"},
				&networking.IPBlock{CIDR: "10.0.0.0/8", Except: []string{"10.120.97.1/32", "10.120.0.0/16", "10.121.98.0/24"}}, &networking.IPBlock{CIDR: "fd00::/8"})}))
	}
	return out
}

func (s *sequence) ports() []networking.NetworkPolicyPort {
	var out []networking.NetworkPolicyPort
	for range s.IntN(3) {
		p := networking.NetworkPolicyPort{}
		if protocol := pick(s.Rand, corev1.ProtocolTCP, corev1.ProtocolUDP); s.IntN(2) == 0 {
			p.Protocol = &protocol
		}
		if port := pick(s.Rand, intstr.FromInt32(80), intstr.FromInt32(79), intstr.FromString("http")); s.IntN(4) > 0 {
			p.Port = &port
			if end := int32(80 + s.IntN(2)); port.StrVal == "" && s.IntN(2) == 0 {
				p.EndPort = &end
			}
		}
		out = append(out, p)
	}
	return out
}

func (s *sequence) compare(t *testing.T, step int) {
	t.Helper()
	c := Cluster{Namespaces: s.namespaces}
	for _, np := range s.policies {
		c.Policies = append(c.Policies, np)
	}
	ends := []Endpoint{outside}
	for _, p := range s.pods {
		if p.Addr.IsValid() {
			ends = append(ends, Endpoint{Pod: &p})
		}
	}
	for _, from := range ends {
		for _, to := range ends {
			for _, port := range []Port{{corev1.ProtocolTCP, 80}, {corev1.ProtocolTCP, 81}, {corev1.ProtocolUDP, 80}, {corev1.ProtocolSCTP, 9}} {
				e := c.Explain(from, to, port)
				want := e.Allowed || (from.Pod == nil || !from.Pod.Local || e.Egress.Allowed) && (to.Pod == nil || !to.Pod.Local || e.Ingress.Allowed)
				if got := s.filter.allows(from.addr(), to.addr(), port); got != want {
					t.Fatalf("step %d: %s -> %s %s: the filter says %v, the policies %v: %s", step, from, to, port, got, want, e.Summary)
				}
			}
		}
	}
}
