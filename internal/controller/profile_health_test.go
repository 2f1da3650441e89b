package controller_test

import (
	"context"
	"errors"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/berth-run/berth/api/v1alpha1"
	rules "github.com/berth-run/berth/internal/profile"
)

// TestProfileHealth: status.health.issues in the words of the EKS API (facts 1.1).
func TestProfileHealth(t *testing.T) {
	c := admin(t)
	ns, r := namespace(t, c), profiles(c)
	profile := func(name string, subnets ...string) *v1alpha1.FargateProfile {
		return create(t, c, &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: profileSpec(ns, subnets...)})
	}
	has := func(p *v1alpha1.FargateProfile, want ...v1alpha1.ProfileIssue) {
		t.Helper()
		if diff := cmp.Diff(want, get(t, c, p).Status.Health.Issues); diff != "" {
			t.Errorf("issues of %s (-want +got):\n%s", p.Name, diff)
		}
	}
	newSubnet(t, c, "health-a", cidr(50), "health-a")
	newSubnet(t, c, "health-b", cidr(51), "health-b")
	newHost(t, c, "health-elsewhere", "elsewhere")

	p := profile("health", "health-b", "health-a")
	reconcileOnce(t, r, p)
	unreachable := v1alpha1.ProfileIssue{Code: v1alpha1.IssueClusterUnreachable, Message: "no host of zone health-a, health-b is ready, and pods wait for one; `kubectl describe hosts` says why"}
	has(p, unreachable)
	if p.Status.Status != v1alpha1.ProfileActive {
		t.Errorf("status is %s, want ACTIVE: its pods wait for a host", p.Status.Status)
	}
	host := newHost(t, c, "health", "health-b")
	reconcileOnce(t, r, p)
	has(p)
	host.Status.Conditions[0].Status = metav1.ConditionFalse
	if err := c.Status().Update(t.Context(), host); err != nil {
		t.Fatal(err)
	}
	reconcileOnce(t, r, p)
	unreachable.ResourceIDs = []string{"health"}
	has(p, unreachable)

	wrong := profile("health-wrong", "nowhere")
	limited := profiles(c)
	limited.Quotas = rules.Quotas{Profiles: 0, Selectors: 5, Labels: 5}
	reconcileOnce(t, limited, wrong)
	get(t, c, wrong)
	if issues := wrong.Status.Health.Issues; len(issues) != 2 || issues[0].Code != v1alpha1.IssueInvalidParameter || issues[1].Code != v1alpha1.IssueResourceLimitExceeded ||
		issues[0].Message+" "+issues[1].Message != ready(wrong).Message {
		t.Errorf("issues are %+v, and condition Ready says %q", issues, ready(wrong).Message)
	}

	for _, name := range []string{"one", "two", "three"} {
		create(t, c, markedPod(ns, name, "health"))
	}
	if err := c.Delete(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	refused := profiles(interceptor.NewClient(clientFor(t, env.Config).(client.WithWatch), interceptor.Funcs{
		Delete: func(_ context.Context, _ client.WithWatch, o client.Object, _ ...client.DeleteOption) error {
			if o.GetName() == "two" {
				return errors.New("no answer")
			}
			return apierrors.NewForbidden(corev1.Resource("pods"), o.GetName(), errors.New("not yours"))
		},
	}))
	if _, err := refused.Reconcile(t.Context(), request(p)); err == nil {
		t.Error("no error: it is not tried again")
	}
	has(p, v1alpha1.ProfileIssue{Code: v1alpha1.IssueAccessDenied, ResourceIDs: []string{ns + "/one", ns + "/three"},
		Message: "delete pod " + ns + `/one of profile health: pods "one" is forbidden: not yours; it is tried again`},
		v1alpha1.ProfileIssue{Code: v1alpha1.IssueInternalFailure, ResourceIDs: []string{ns + "/two"},
			Message: "delete pod " + ns + "/two of profile health: no answer; it is tried again"})
	if p.Status.Status != v1alpha1.ProfileDeleteFailed {
		t.Errorf("status is %s, want DELETE_FAILED", p.Status.Status)
	}
	reconcileOnce(t, r, p)
	reconcileOnce(t, r, p)
	if !gone(t, c, p) {
		t.Errorf("the profile is still there: %+v", p.Status)
	}
}
