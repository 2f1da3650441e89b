package controller_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/controller/profile"
	"github.com/berth-run/berth/internal/eks"
)

func TestProfileFailsThenBecomesActiveWhenASubnetAppears(t *testing.T) {
	c := admin(t)
	r := &profile.Reconciler{Client: c}
	p := create(t, c, &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: "life"}, Spec: profileSpec("default")})
	reconcileOnce(t, r, p)
	if get(t, c, p); p.Status.Status != v1alpha1.ProfileCreateFailed {
		t.Errorf("without a private subnet the status is %q, want CREATE_FAILED", p.Status.Status)
	}
	ready := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
	if ready == nil || ready.Status != metav1.ConditionFalse || !strings.Contains(ready.Message, "private subnet") {
		t.Errorf("condition Ready is %+v, want False with the reason", ready)
	}
	newSubnet(t, c, "life-b", cidr(11), region+"b")
	newSubnet(t, c, "life-a", cidr(10), region+"a")
	create(t, c, &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "life-public"}, Spec: v1alpha1.SubnetSpec{CIDR: cidr(12), Zone: "a", Type: v1alpha1.SubnetPublic}})
	reconcileOnce(t, r, p)
	get(t, c, p)
	if p.Status.Status != v1alpha1.ProfileActive || !meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.ConditionReady) {
		t.Errorf("status is %+v, want ACTIVE and Ready", p.Status)
	}
	if diff := cmp.Diff([]string{"life-a", "life-b"}, p.Status.Subnets); diff != "" {
		t.Errorf("all private subnets are the profile's (-want +got):\n%s", diff)
	}
	if p.Status.ObservedGeneration != p.Generation {
		t.Errorf("observedGeneration is %d, want %d", p.Status.ObservedGeneration, p.Generation)
	}
	version := p.ResourceVersion
	reconcileOnce(t, r, p)
	if get(t, c, p); p.ResourceVersion != version {
		t.Error("a second look at the same state writes something")
	}
}

func TestProfileWithPublicOrUnknownSubnetFails(t *testing.T) {
	c := admin(t)
	create(t, c, &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "open"}, Spec: v1alpha1.SubnetSpec{CIDR: cidr(20), Zone: "a", Type: v1alpha1.SubnetPublic}})
	for subnet, want := range map[string]string{
		"open":  "Subnet open provided in Fargate Profile is not a private subnet",
		"ghost": "ghost does not exist",
	} {
		p := create(t, c, &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: "wrong-" + subnet}, Spec: profileSpec("default", subnet)})
		reconcileOnce(t, &profile.Reconciler{Client: c}, p)
		get(t, c, p)
		ready := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady)
		if p.Status.Status != v1alpha1.ProfileCreateFailed || ready == nil || !strings.Contains(ready.Message, want) {
			t.Errorf("status is %+v, want CREATE_FAILED with %q", p.Status, want)
		}
	}
}

func TestDeletedProfileEndsWithItsPods(t *testing.T) {
	c := admin(t)
	ns := namespace(t, c)
	newSubnet(t, c, "ending", cidr(30), region+"a")
	r := &profile.Reconciler{Client: c}
	p := create(t, c, &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: "ending"}, Spec: profileSpec(ns)})
	reconcileOnce(t, r, p)
	running := markedPod(ns, "running", "ending")
	running.Spec.NodeName = "fargate-ip-1"
	pods := []*corev1.Pod{create(t, c, markedPod(ns, "pending", "ending")), create(t, c, running)}
	other := create(t, c, markedPod(ns, "other", "another"))
	labelled := plainPod(ns, "labelled")
	labelled.Labels = map[string]string{eks.LabelProfile: "ending"}
	create(t, c, labelled)

	if err := c.Delete(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	reconcileOnce(t, r, p)
	if get(t, c, p); p.Status.Status != v1alpha1.ProfileDeleting {
		t.Errorf("status is %q, want DELETING", p.Status.Status)
	}
	if !gone(t, c, pods[0]) {
		t.Error("the pending pod is still there")
	}
	if get(t, c, pods[1]); pods[1].DeletionTimestamp == nil {
		t.Error("the running pod is not being deleted")
	}
	if get(t, c, other); other.DeletionTimestamp != nil {
		t.Error("a pod of another profile is deleted")
	}
	if get(t, c, labelled); labelled.DeletionTimestamp != nil {
		t.Error("a pod of the default scheduler is deleted because of a label")
	}
	remove(t, pods[1]) // as its kubelet does
	reconcileOnce(t, r, p)
	if !gone(t, c, p) {
		t.Errorf("the profile is still there: %+v", p.Status)
	}
}
