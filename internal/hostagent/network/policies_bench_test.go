package network

import (
	"fmt"
	"net/netip"
	"runtime"
	"testing"

	"github.com/vishvananda/netns"
	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/berth-run/berth/internal/policy"
)

const (
	benchPods     = 1000
	benchPolicies = 100
	benchTiers    = 20
)

// BenchmarkPolicies measures changes at 1,000 pods of one namespace and 100 policies, from the change in the table to its being
// in force in the kernel. Each policy selects one of 20 tiers, or, one in ten, all pods, and allows two peers and a block.
func BenchmarkPolicies(b *testing.B) {
	runtime.LockOSThread() // never unlocked: the thread is in another namespace and ends with the benchmark
	ns, err := netns.New()
	if err != nil {
		b.Fatalf("make a network namespace (this benchmark needs root): %v", err)
	}
	defer ns.Close()
	p, err := NewPolicies()
	if err != nil {
		b.Fatal(err)
	}
	table := policy.NewTable()
	for i := range benchPods {
		table.SetPod(benchPod(i, i%benchTiers))
	}
	for i := range benchPolicies {
		if err := table.SetPolicy(benchPolicy(i, 80)); err != nil {
			b.Fatal(err)
		}
	}
	apply := func(b *testing.B, d policy.Delta) {
		b.Helper()
		if err := p.Apply(b.Context(), d); err != nil {
			b.Fatal(err)
		}
	}
	apply(b, table.All())
	run := func(name string, f func(*testing.B)) { // on a thread of its own
		b.Run(name, func(b *testing.B) {
			runtime.LockOSThread()
			if err := netns.Set(ns); err != nil {
				b.Fatal(err)
			}
			f(b)
		})
	}
	extra := benchPod(benchPods, 3)
	everyone := benchPolicy(10*benchPolicies, 80)
	for _, c := range []struct {
		name   string
		change func(i int) error
	}{
		{"PodComesOrGoes", func(i int) error {
			if i%2 == 0 {
				table.SetPod(extra)
			} else {
				table.DeletePod(extra.UID)
			}
			return nil
		}},
		{"PodChangesLabels", func(i int) error { table.SetPod(benchPod(7, 8+i%2)); return nil }},
		{"PolicyChangesPort", func(i int) error { return table.SetPolicy(benchPolicy(7, 81+i%2)) }},
		{"PolicyOfAllPodsComesOrGoes", func(i int) error {
			if i%2 == 0 {
				return table.SetPolicy(everyone)
			}
			table.DeletePolicy(types.NamespacedName{Namespace: everyone.Namespace, Name: everyone.Name})
			return nil
		}},
	} {
		run(c.name, func(b *testing.B) {
			for i := 0; b.Loop(); i++ {
				if err := c.change(i); err != nil {
					b.Fatal(err)
				}
				apply(b, table.Take())
			}
		})
	}
	run("AgentStarts", func(b *testing.B) {
		for b.Loop() {
			apply(b, table.All())
		}
	})
}

func benchPod(i, tier int) policy.Pod {
	return policy.Pod{NamespacedName: types.NamespacedName{Namespace: "x", Name: fmt.Sprint("pod-", i)}, UID: types.UID(fmt.Sprint(i)), Local: true,
		Labels: map[string]string{"tier": fmt.Sprint(tier)}, Addr: netip.AddrFrom4([4]byte{10, 90, byte(i >> 8), byte(i)}),
		Ports: []policy.NamedPort{{Name: "web", Protocol: corev1.ProtocolTCP, Port: 80}}}
}

func benchPolicy(i, port int) *networking.NetworkPolicy {
	tier := func(n int) *metav1.LabelSelector {
		return &metav1.LabelSelector{MatchLabels: map[string]string{"tier": fmt.Sprint(n % benchTiers)}}
	}
	number, name := intstr.FromInt(port), intstr.FromString("web")
	np := &networking.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: fmt.Sprint("policy-", i)}, Spec: networking.NetworkPolicySpec{
		PodSelector: *tier(i), PolicyTypes: []networking.PolicyType{networking.PolicyTypeIngress, networking.PolicyTypeEgress},
		Ingress: []networking.NetworkPolicyIngressRule{{From: []networking.NetworkPolicyPeer{{PodSelector: tier(i + 1)}, {PodSelector: tier(i + 2)}},
			Ports: []networking.NetworkPolicyPort{{Port: &number}, {Port: &name}}}},
		Egress: []networking.NetworkPolicyEgressRule{{To: []networking.NetworkPolicyPeer{{PodSelector: tier(i + 3)},
			{IPBlock: &networking.IPBlock{CIDR: "192.0.2.0/24", Except: []string{"192.0.2.128/25"}}}}}},
	}}
	if i%10 == 0 {
		np.Spec.PodSelector = metav1.LabelSelector{}
		np.Spec.Ingress[0].From = []networking.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{}}}
	}
	return np
}
