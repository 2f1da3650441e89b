package controller_test

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/controller"
	"github.com/berth-run/berth/internal/controller/profile"
	"github.com/berth-run/berth/internal/eks"
	rules "github.com/berth-run/berth/internal/profile"
)

func profiles(c client.Client) *profile.Reconciler {
	return &profile.Reconciler{Client: c, Quotas: rules.DefaultQuotas, Cluster: "test"}
}

func TestProfileFailsThenBecomesActiveWhenASubnetAppears(t *testing.T) {
	c := admin(t)
	r := profiles(c)
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
		reconcileOnce(t, profiles(c), p)
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
	r := profiles(c)
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

// TestProfileWhosePodsCannotBeDeleted is DELETE_FAILED, says of which pod and why, blocks nobody, and is deleted when it can be.
func TestProfileWhosePodsCannotBeDeleted(t *testing.T) {
	c := admin(t)
	ns := namespace(t, c)
	newSubnet(t, c, "stuck", cidr(33), region+"a")
	p := create(t, c, &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: "stuck"}, Spec: profileSpec(ns)})
	reconcileOnce(t, profiles(c), p)
	create(t, c, markedPod(ns, "kept", "stuck"))
	if err := c.Delete(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	watching, err := client.NewWithWatch(env.Config, client.Options{Scheme: controller.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	refused := profiles(interceptor.NewClient(watching, interceptor.Funcs{
		Delete: func(context.Context, client.WithWatch, client.Object, ...client.DeleteOption) error {
			return errors.New("admission webhook \"keep\" denied the request")
		},
	}))
	if _, err := refused.Reconcile(t.Context(), request(p)); err == nil {
		t.Error("no error: it is not tried again")
	}
	get(t, c, p)
	want := "delete pod " + ns + "/kept of profile stuck: admission webhook \"keep\" denied the request; it is tried again"
	if c := ready(p); p.Status.Status != v1alpha1.ProfileDeleteFailed || c.Reason != "DeleteFailed" || c.Message != want {
		t.Errorf("status %s, condition %+v, want DELETE_FAILED, %q", p.Status.Status, c, want)
	}
	issue := v1alpha1.ProfileIssue{Code: v1alpha1.IssueInternalFailure, Message: want, ResourceIDs: []string{ns + "/kept"}}
	if issues := p.Status.Health.Issues; !cmp.Equal(issues, []v1alpha1.ProfileIssue{issue}) {
		t.Errorf("issues %+v, want %+v", issues, issue)
	}
	next := create(t, c, &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: "after-stuck"}, Spec: profileSpec(ns)})
	reconcileOnce(t, profiles(c), next)
	if get(t, c, next).Status.Status != v1alpha1.ProfileActive {
		t.Errorf("the next profile is %+v, want ACTIVE", next.Status)
	}
	reconcileOnce(t, profiles(c), p)
	reconcileOnce(t, profiles(c), p)
	if !gone(t, c, p) {
		t.Errorf("the profile is still there: %+v", p.Status)
	}
}

// TestActiveProfileThatBecameWrong is CREATE_FAILED, which is all that EKS has for it: its pods run on, it takes no new ones, and it is
// ACTIVE again when it is mended.
func TestActiveProfileThatBecameWrong(t *testing.T) {
	c := admin(t)
	ns, r := namespace(t, c), profiles(c)
	subnet := newSubnet(t, c, "leaving", cidr(34), region+"a")
	p := create(t, c, &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: "leaving"}, Spec: profileSpec(ns, "leaving")})
	reconcileOnce(t, r, p)
	running := create(t, c, markedPod(ns, "running", "leaving"))
	remove(t, subnet)
	reconcileOnce(t, r, p)
	if c := ready(get(t, c, p)); p.Status.Status != v1alpha1.ProfileCreateFailed || c.Reason != "Invalid" || !strings.Contains(c.Message, "leaving does not exist") {
		t.Errorf("status %s, condition %+v, want CREATE_FAILED, because the subnet is gone", p.Status.Status, c)
	}
	if get(t, c, running).DeletionTimestamp != nil {
		t.Error("the profile's pod is being deleted")
	}
	newSubnet(t, c, "leaving", cidr(34), region+"a")
	reconcileOnce(t, r, p)
	if get(t, c, p).Status.Status != v1alpha1.ProfileActive {
		t.Errorf("status is %+v, want ACTIVE", p.Status)
	}
}

func ready(p *v1alpha1.FargateProfile) metav1.Condition {
	if c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.ConditionReady); c != nil {
		return *c
	}
	return metav1.Condition{}
}

// TestProfilesTakeTurns: while one is DELETING, others wait for it in the words of EKS (facts 1.5, 1.6) and then go on by themselves.
func TestProfilesTakeTurns(t *testing.T) {
	c := admin(t)
	ns, r := namespace(t, c), profiles(c)
	newSubnet(t, c, "turns", cidr(31), region+"a")
	make := func(name string) *v1alpha1.FargateProfile {
		p := create(t, c, &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: profileSpec(ns)})
		reconcileOnce(t, r, p)
		return get(t, c, p)
	}
	first, second := make("turn-first"), make("turn-second")
	pod := func(profile string) *corev1.Pod {
		p := markedPod(ns, "of-"+profile, profile)
		p.Spec.NodeName = "fargate-" + profile
		return create(t, c, p)
	}
	podOfFirst, podOfSecond := pod(first.Name), pod(second.Name)
	remove := func(p *v1alpha1.FargateProfile) {
		if err := c.Delete(t.Context(), p); err != nil {
			t.Fatal(err)
		}
		reconcileOnce(t, r, p)
		get(t, c, p)
	}
	remove(first)
	remove(second)
	if want := "Cannot Delete Fargate Profile turn-second because cluster test currently has Fargate profile turn-first in status DELETING"; !strings.HasPrefix(ready(second).Message, want) {
		t.Errorf("the second profile says %q, want %q", ready(second).Message, want)
	}
	if get(t, c, podOfFirst).DeletionTimestamp == nil || get(t, c, podOfSecond).DeletionTimestamp != nil {
		t.Error("the pods of the first profile, and no others, are to end")
	}
	third := make("turn-third")
	if want := "Cannot create Fargate Profile turn-third because cluster test currently has Fargate profile turn-first in status DELETING"; third.Status.Status != v1alpha1.ProfileCreating || !strings.HasPrefix(ready(third).Message, want) {
		t.Errorf("the third profile is %s and says %q, want CREATING and %q", third.Status.Status, ready(third).Message, want)
	}
	version := third.ResourceVersion
	reconcileOnce(t, r, third)
	if get(t, c, third).ResourceVersion != version {
		t.Error("a second look at the same state writes something")
	}
	end := func(pod *corev1.Pod) {
		now := int64(0)
		if err := c.Delete(t.Context(), pod, &client.DeleteOptions{GracePeriodSeconds: &now}); err != nil {
			t.Fatal(err)
		}
		for _, p := range []*v1alpha1.FargateProfile{first, second, third} {
			reconcileOnce(t, r, p)
		}
	}
	end(podOfFirst)
	if !gone(t, c, first) || get(t, c, podOfSecond).DeletionTimestamp == nil || get(t, c, third).Status.Status != v1alpha1.ProfileCreating {
		t.Errorf("after the first it is the second's turn, not yet the third's, which is %s", third.Status.Status)
	}
	end(podOfSecond)
	if !gone(t, c, second) || get(t, c, third).Status.Status != v1alpha1.ProfileActive {
		t.Errorf("after all others the third is %s, want ACTIVE", third.Status.Status)
	}
}

func TestProfileOverTheQuotaIsCreatedWhenThereIsRoom(t *testing.T) {
	c := admin(t)
	ns, r := namespace(t, c), profiles(c)
	r.Quotas.Profiles = 1
	newSubnet(t, c, "quota", cidr(32), region+"a")
	one := create(t, c, &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: "quota-one"}, Spec: profileSpec(ns)})
	two := create(t, c, &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: "quota-two"}, Spec: profileSpec(ns)})
	reconcileOnce(t, r, one)
	reconcileOnce(t, r, two)
	if get(t, c, two); two.Status.Status != v1alpha1.ProfileCreateFailed || !strings.Contains(ready(two).Message, "Cluster test has 1 Fargate profiles, which is its quota (1)") {
		t.Errorf("status is %+v, want CREATE_FAILED because of the quota", two.Status)
	}
	if err := c.Delete(t.Context(), one); err != nil {
		t.Fatal(err)
	}
	reconcileOnce(t, r, one)
	reconcileOnce(t, r, two)
	if get(t, c, two); two.Status.Status != v1alpha1.ProfileActive {
		t.Errorf("status is %+v, want ACTIVE", two.Status)
	}
}
