package controller_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/controller/scheduler"
	"github.com/berth-run/berth/internal/controller/subnet"
	"github.com/berth-run/berth/internal/ipam"
)

// TestTwoControllersNeverGiveAnAddressTwice lets two schedulers that know nothing of each other empty a subnet together.
func TestTwoControllersNeverGiveAnAddressTwice(t *testing.T) {
	s := newStage(t, "both", "10.91.90.0/28", "10.91.90.16/28")
	other := scheduler.New(s.c, record.NewFakeRecorder(100), scheduler.NewAddresses(), region)
	other.Now = at(&s.clock)
	var pods []*corev1.Pod
	for i := range 22 {
		pods = append(pods, s.pod(t, fmt.Sprintf("p%d", i), nil))
	}
	var g sync.WaitGroup
	for half, r := range []*scheduler.Reconciler{s.r, other} {
		g.Go(func() {
			for i := half; i < len(pods); i += 2 {
				if _, err := r.Reconcile(t.Context(), request(pods[i])); err != nil {
					t.Error(err)
				}
			}
		})
	}
	g.Wait()
	ips := map[string]string{}
	for _, pod := range pods {
		b := s.berth(t, pod)
		if b == nil {
			t.Fatalf("pod %s has no berth, though there are 22 addresses", pod.Name)
		}
		if ips[b.Spec.IP] != "" {
			t.Errorf("%s was given to %s and to %s", b.Spec.IP, ips[b.Spec.IP], pod.Name)
		}
		ips[b.Spec.IP] = pod.Name
	}
}

// TestAddressRestsAcrossARestart: a controller that starts anew does not know when a berth went, so it waits the whole pause.
func TestAddressRestsAcrossARestart(t *testing.T) {
	s := newStage(t, "restart", "10.91.91.0/28", "10.91.91.16/28")
	pod := s.pod(t, "first", nil)
	reconcileOnce(t, s.r, pod)
	first := s.berth(t, pod)
	remove(t, first)
	addresses := scheduler.NewAddresses() // the old ones are forgotten
	r := scheduler.New(s.c, s.events, addresses, region)
	r.Now = at(&s.clock)
	for i := range 21 {
		pod := s.pod(t, fmt.Sprintf("next%d", i), nil)
		reconcileOnce(t, r, pod)
		if b := s.berth(t, pod); b == nil || b.Spec.IP == first.Spec.IP {
			t.Fatalf("pod %d has berth %+v; %s rests", i, b, first.Spec.IP)
		}
		s.said()
	}
	last := s.pod(t, "last", nil)
	reconcileOnce(t, r, last)
	if s.berth(t, last) != nil {
		t.Error("an address that rests was given")
	}
	s.clock = s.clock.Add(ipam.ReusePause)
	keeper := &subnet.Reconciler{Client: s.c, Usage: addresses, Now: at(&s.clock)}
	of := &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: first.Spec.SubnetName}}
	reconcileOnce(t, keeper, of)
	reconcileOnce(t, r, last)
	if b := s.berth(t, last); b == nil || b.Spec.IP != first.Spec.IP {
		t.Errorf("after the pause the berth is %+v, want one with %s", b, first.Spec.IP)
	}
}

func subnetReady(t *testing.T, s *v1alpha1.Subnet) metav1.Condition {
	t.Helper()
	c := meta.FindStatusCondition(get(t, admin(t), s).Status.Conditions, v1alpha1.ConditionReady)
	if c == nil {
		return metav1.Condition{}
	}
	return *c
}

func TestSubnetsThatCannotBeUsedSaySo(t *testing.T) {
	c := admin(t)
	clock := time.Now()
	r := &subnet.Reconciler{Client: c, Usage: scheduler.NewAddresses(), Now: at(&clock)}
	h := newHost(t, c, "lan", region+"a")
	h.Status.Networks = []string{"192.168.7.0/24"}
	if err := c.Status().Update(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	newSubnet(t, c, "conflict-old", "10.91.92.0/24", region+"a")
	for name, tc := range map[string]struct{ cidr, reason, message string }{
		"overlap": {"10.91.92.128/25", "Conflict", "spec.cidr 10.91.92.128/25 overlaps 10.91.92.0/24 of subnet conflict-old; delete the subnet and take another range"},
		"lan":     {"192.168.0.0/20", "HostNetwork", "spec.cidr 192.168.0.0/20 overlaps 192.168.7.0/24, a network that host lan is in; delete the subnet and take another range"},
		"service": {"10.96.4.0/24", "Conflict", "spec.cidr 10.96.4.0/24 overlaps 10.96.0.0/16, the addresses of Services; delete the subnet and take another range"},
		"good":    {"10.91.93.0/28", "Available", "addresses can be taken"},
	} {
		s := newSubnet(t, c, "conflict-"+name, tc.cidr, region+"a")
		reconcileOnce(t, r, s)
		if got := subnetReady(t, s); got.Reason != tc.reason || got.Message != tc.message {
			t.Errorf("%s: %s, %q", name, got.Reason, got.Message)
		}
		if tc.reason == "Available" {
			continue
		}
		p := create(t, c, &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: "on-" + s.Name}, Spec: profileSpec("default", s.Name)})
		reconcileOnce(t, profiles(c), p)
		if get(t, c, p); p.Status.Status != v1alpha1.ProfileCreateFailed || !strings.Contains(p.Status.Conditions[0].Message, tc.message) {
			t.Errorf("a profile with it is %s: %+v", p.Status.Status, p.Status.Conditions)
		}
	}
	for cidr, want := range map[string]string{
		"10.91.94.0/29": "prefix of /16 to /28", "10.0.0.0/8": "prefix of /16 to /28", "10.91.94.1/24": "IPv4 network address",
		"fd00::/64": "IPv4 network address", "10.91.94.0": "isCIDR",
	} {
		err := c.Create(t.Context(), &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "wrong"}, Spec: v1alpha1.SubnetSpec{CIDR: cidr, Zone: "a"}})
		if err == nil || !strings.Contains(err.Error(), want) && !strings.Contains(err.Error(), "cidr must be an IPv4 network address") {
			t.Errorf("cidr %s: %v, want %q", cidr, err, want)
		}
	}
}

// TestFullSubnetsAreToldOnTheProfile follows a profile from free addresses to none.
func TestFullSubnetsAreToldOnTheProfile(t *testing.T) {
	c := admin(t)
	a, b := newSubnet(t, c, "full-a", "10.91.95.0/28", region+"a"), newSubnet(t, c, "full-b", "10.91.95.16/28", region+"b")
	p := create(t, c, &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: "full"}, Spec: profileSpec("default", a.Name, b.Name)})
	expect := func(status metav1.ConditionStatus, message string) {
		t.Helper()
		reconcileOnce(t, profiles(c), p)
		got := meta.FindStatusCondition(get(t, c, p).Status.Conditions, v1alpha1.ConditionAddressesAvailable)
		if got == nil || got.Status != status || !strings.HasPrefix(got.Message, message) {
			t.Errorf("%+v, want %s, %q", got, status, message)
		}
	}
	fill := func(s *v1alpha1.Subnet) {
		t.Helper()
		s.Status.AvailableIPs, s.Status.UsedIPs = 0, 11
		if err := c.Status().Update(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	expect(metav1.ConditionTrue, "every subnet has free addresses")
	fill(a)
	expect(metav1.ConditionTrue, "subnet full-a has 0 of 11 addresses free;")
	fill(b)
	expect(metav1.ConditionFalse, "subnet full-a has 0 of 11 addresses free, subnet full-b has 0 of 11 addresses free; delete pods, or add a private Subnet")
}

// TestSubnetInUseIsNotDeleted installs the policy that refuses it, for the rest of this package's tests as well.
func TestSubnetInUseIsNotDeleted(t *testing.T) {
	c := admin(t)
	if err := env.Create(t.Context(), "charts/berth/templates/subnet-in-use.yaml"); err != nil {
		t.Fatal(err)
	}
	s := newSubnet(t, c, "in-use", "10.91.96.0/28", region+"a")
	s.Status.UsedIPs = 2
	if err := c.Status().Update(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the API server to refuse", func() bool { // it takes a moment until it knows of the policy
		err := c.Delete(t.Context(), s, client.DryRunAll)
		return err != nil && strings.Contains(err.Error(), "subnet in-use is in use: 2 of its addresses are held, or were less than a minute ago; delete its pods or load balancers first")
	})
	s.Status.UsedIPs = 0
	if err := c.Status().Update(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if err := c.Delete(t.Context(), s); err != nil {
		t.Errorf("a subnet that nobody uses: %v", err)
	}
}
