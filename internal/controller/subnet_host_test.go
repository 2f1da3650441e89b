package controller_test

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/controller/host"
	"github.com/berth-run/berth/internal/controller/scheduler"
	"github.com/berth-run/berth/internal/controller/subnet"
	"github.com/berth-run/berth/internal/ipam"
)

func TestSubnetCountsItsAddressesAndIsHeldByItsPods(t *testing.T) {
	c := admin(t)
	ns := namespace(t, c)
	clock := time.Now()
	r := &subnet.Reconciler{Client: c, Usage: scheduler.NewAddresses(), Now: at(&clock)}
	s := newSubnet(t, c, "s", "10.91.40.0/28", region+"a")
	b := newBerth(t, c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "x", UID: "subnet-x"}}, "b", "h", "n", "10.91.40.4")
	expect := func(available, used int32) {
		t.Helper()
		reconcileOnce(t, r, s)
		if get(t, c, s); s.Status.AvailableIPs != available || s.Status.UsedIPs != used {
			t.Errorf("available %d, used %d, want %d, %d", s.Status.AvailableIPs, s.Status.UsedIPs, available, used)
		}
	}
	expect(10, 1) // a /28 has 16 addresses, five of them reserved
	if !meta.IsStatusConditionTrue(s.Status.Conditions, v1alpha1.ConditionReady) {
		t.Errorf("not Ready: %+v", s.Status.Conditions)
	}
	if err := c.Delete(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	expect(10, 1)
	ready := meta.FindStatusCondition(s.Status.Conditions, v1alpha1.ConditionReady)
	if ready == nil || ready.Reason != "InUse" || !strings.Contains(ready.Message, "pods still hold addresses") {
		t.Errorf("condition Ready is %+v, want the reason why the subnet stays", ready)
	}
	remove(t, b)
	reconcileOnce(t, r, s)
	if !gone(t, c, s) {
		t.Error("the subnet is still there, though no pod holds an address")
	}
}

func TestReleasedAddressRestsBeforeItIsFreeAgain(t *testing.T) {
	c := admin(t)
	clock := time.Now()
	r := &subnet.Reconciler{Client: c, Usage: scheduler.NewAddresses(), Now: at(&clock)}
	s := newSubnet(t, c, "s", "10.91.41.0/28", region+"a")
	b := newBerth(t, c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace(t, c), Name: "x", UID: "subnet-y"}}, "b", "h", "n", "10.91.41.4")
	reconcileOnce(t, r, s)
	remove(t, b)
	if again := reconcileOnce(t, r, s).RequeueAfter; again <= 0 || again > ipam.ReusePause {
		t.Errorf("looks again after %s, want within %s", again, ipam.ReusePause)
	}
	if get(t, c, s); s.Status.AvailableIPs != 10 || s.Status.UsedIPs != 1 {
		t.Errorf("an address that rests counts as used, got available %d, used %d", s.Status.AvailableIPs, s.Status.UsedIPs)
	}
	clock = clock.Add(ipam.ReusePause)
	reconcileOnce(t, r, s)
	if get(t, c, s); s.Status.AvailableIPs != 11 || s.Status.UsedIPs != 0 {
		t.Errorf("after the pause available %d, used %d, want 11, 0", s.Status.AvailableIPs, s.Status.UsedIPs)
	}
}

func TestSilentHostIsNotReady(t *testing.T) {
	c := admin(t)
	h := newHost(t, c, "silent", region+"a")
	clock := h.Status.HeartbeatTime.Time
	r := &host.Reconciler{Client: c, Now: at(&clock)}
	clock = clock.Add(15 * time.Second)
	if wait := reconcileOnce(t, r, h).RequeueAfter; wait != 25*time.Second {
		t.Errorf("looks again after %s, want 25s: 40 s after the heartbeat", wait)
	}
	if get(t, c, h); !meta.IsStatusConditionTrue(h.Status.Conditions, v1alpha1.ConditionReady) {
		t.Error("not Ready, though its agent reported 15 s ago")
	}
	clock = clock.Add(25 * time.Second)
	reconcileOnce(t, r, h)
	get(t, c, h)
	ready := meta.FindStatusCondition(h.Status.Conditions, v1alpha1.ConditionReady)
	if ready == nil || ready.Status != metav1.ConditionFalse || !strings.Contains(ready.Message, "has not reported since") {
		t.Errorf("condition Ready is %+v, want False and since when", ready)
	}
}
