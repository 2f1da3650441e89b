package controller_test

import (
	"encoding/json"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	policy "k8s.io/api/policy/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/controller/patch"
	"github.com/berth-run/berth/internal/controller/scheduler"
	"github.com/berth-run/berth/internal/eks"
)

// patchStage has a host whose nodes are of version v2 now, and a clock an hour later than the API server's.
type patchStage struct {
	c      client.Client
	r      *patch.Reconciler
	events *record.FakeRecorder
	clock  time.Time
	ns     string
}

func newPatchStage(t *testing.T, host string) *patchStage {
	t.Helper()
	c := admin(t)
	s := &patchStage{c: c, events: record.NewFakeRecorder(50), clock: time.Now().Add(time.Hour).Truncate(time.Second), ns: namespace(t, c)}
	h := newHost(t, c, host, region+"a", region+"b")
	h.Status.NodeVersion = "v2"
	if err := c.Status().Update(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	s.r = &patch.Reconciler{Client: c, Recorder: s.events, Now: at(&s.clock), Cluster: "test"}
	return s
}

// pod runs on a node of version v1 in the zone.
func (s *patchStage) pod(t *testing.T, host, name, zone string) *corev1.Pod {
	t.Helper()
	p := markedPod(s.ns, name, "p")
	p.Labels["app"] = name
	p.Spec.NodeName = "fargate-ip-" + name
	create(t, s.c, p)
	p.Status.Phase = corev1.PodRunning
	p.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}}
	if err := s.c.Status().Update(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	b := newBerth(t, s.c, p, scheduler.BerthName(p), host, p.Spec.NodeName, "10.91.99.9", func(b *v1alpha1.Berth) { b.Spec.Zone = zone })
	b.Status.NodeVersion = "v1"
	if err := s.c.Status().Update(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	return p
}

// budget keeps the pod from being evicted, as its controller would have noted.
func (s *patchStage) budget(t *testing.T, name, app string) *policy.PodDisruptionBudget {
	t.Helper()
	b := create(t, s.c, &policy.PodDisruptionBudget{ObjectMeta: metav1.ObjectMeta{Namespace: s.ns, Name: name}, Spec: policy.PodDisruptionBudgetSpec{
		MinAvailable: ptr.To(intstr.FromInt32(1)), Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": app}}}})
	b.Status = policy.PodDisruptionBudgetStatus{ObservedGeneration: b.Generation, CurrentHealthy: 1, DesiredHealthy: 1, ExpectedPods: 1}
	if err := s.c.Status().Update(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	return b
}

func (s *patchStage) said() []string {
	var out []string
	for len(s.events.Events) > 0 {
		out = append(out, <-s.events.Events)
	}
	return out
}

func (s *patchStage) leaving(t *testing.T, p *corev1.Pod) bool {
	t.Helper()
	return gone(t, s.c, p) || p.DeletionTimestamp != nil
}

func (s *patchStage) ended(t *testing.T, p *corev1.Pod) {
	t.Helper()
	now := int64(0)
	if err := s.c.Delete(t.Context(), p, &client.DeleteOptions{GracePeriodSeconds: &now}); client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
}

func TestPatchEvictsZoneByZone(t *testing.T) {
	s := newPatchStage(t, "patch-zones")
	a, b := s.pod(t, "patch-zones", "in-a", "a"), s.pod(t, "patch-zones", "in-b", "b")
	p := create(t, s.c, &v1alpha1.Patch{ObjectMeta: metav1.ObjectMeta{Name: "zones"}})
	if get(t, s.c, p); p.Spec.Pods != v1alpha1.PatchOutdated || p.Spec.TerminationDelay.Duration != 72*time.Hour {
		t.Errorf("defaults are %+v", p.Spec)
	}
	reconcileOnce(t, s.r, p)
	if !s.leaving(t, a) || s.leaving(t, b) {
		t.Error("the pods of zone a, and only they, are to be evicted first")
	}
	if get(t, s.c, p); p.Status.Phase != v1alpha1.PatchPatching || p.Status.Zone != "a" || p.Status.Remaining != 2 {
		t.Errorf("status is %+v", p.Status)
	}
	said := s.said()
	if len(said) != 2 || !strings.HasPrefix(said[0], "Normal PatchNotification Any pods created before ") || !strings.Contains(said[0], "the pod's node has version v1, its host makes v2 now") {
		t.Errorf("events %q, want one notice for each pod", said)
	}
	reconcileOnce(t, s.r, p)
	if s.leaving(t, b) || len(s.said()) > 0 {
		t.Error("zone b does not wait for zone a, or the notice is repeated")
	}
	s.ended(t, a)
	reconcileOnce(t, s.r, p)
	if !s.leaving(t, b) {
		t.Error("zone b's turn has come, and its pod is not evicted")
	}
	s.ended(t, b)
	reconcileOnce(t, s.r, p)
	if get(t, s.c, p); p.Status.Phase != v1alpha1.PatchComplete || p.Status.Remaining != 0 {
		t.Errorf("status is %+v, want Complete", p.Status)
	}
	later := s.pod(t, "patch-zones", "later", "a")
	reconcileOnce(t, s.r, p)
	if s.leaving(t, later) {
		t.Error("a patch that is complete goes on")
	}
	s.ended(t, later)
}

func TestPatchRespectsBudgetsUntilTheScheduledTermination(t *testing.T) {
	s := newPatchStage(t, "patch-budget")
	held, other := s.pod(t, "patch-budget", "held", "a"), s.pod(t, "patch-budget", "other", "b")
	s.budget(t, "held", "held")
	p := create(t, s.c, &v1alpha1.Patch{ObjectMeta: metav1.ObjectMeta{Name: "budget"}})
	if wait := reconcileOnce(t, s.r, p).RequeueAfter; wait != 5*time.Second || s.leaving(t, held) || s.leaving(t, other) {
		t.Errorf("a pod of the first zone cannot be evicted: that is tried again after %s, and the next zone waits", wait)
	}
	s.clock = s.clock.Add(time.Minute)
	reconcileOnce(t, s.r, p)
	when := eks.TerminationTime(s.clock.Add(72 * time.Hour))
	want := "Warning ScheduledTermination EKS Fargate Pod Scheduled Termination: Cannot evict pod as it would violate the pod's disruption budget. scheduledTerminationTime: " + when
	said := s.said()
	if len(said) != 3 || !strings.HasPrefix(said[2], want) {
		t.Fatalf("events %q, want two notices and %q", said, want)
	}
	if _, detail, found := strings.Cut(said[2], v1alpha1.AnnotationNotice+":"); !found || !json.Valid([]byte(strings.TrimSuffix(detail, "]"))) {
		t.Errorf("the event has no detail: %q", said[2])
	}
	reconcileOnce(t, s.r, p)
	if s.leaving(t, held) || !s.leaving(t, other) {
		t.Error("a blocked pod holds up the next zone, or was evicted")
	}
	s.ended(t, other)
	s.clock = s.clock.Add(71 * time.Hour)
	reconcileOnce(t, s.r, p)
	if get(t, s.c, p); s.leaving(t, held) || p.Status.Blocked != 1 || len(s.said()) > 0 {
		t.Errorf("before its time the pod is terminated, or spoken of again: %+v", p.Status)
	}
	s.clock = s.clock.Add(time.Hour)
	reconcileOnce(t, s.r, p)
	if !s.leaving(t, held) || len(s.said()) > 0 {
		t.Error("facts 6: at its time the pod is not terminated, or a new event is sent")
	}
	s.ended(t, held)
}

func TestPatchEvictsWhenTheBudgetAllowsIt(t *testing.T) {
	s := newPatchStage(t, "patch-later")
	held := s.pod(t, "patch-later", "freed", "a")
	budget := s.budget(t, "freed", "freed")
	p := create(t, s.c, &v1alpha1.Patch{ObjectMeta: metav1.ObjectMeta{Name: "later"}})
	reconcileOnce(t, s.r, p)
	s.clock = s.clock.Add(time.Minute)
	reconcileOnce(t, s.r, p)
	if wait := reconcileOnce(t, s.r, p).RequeueAfter; wait != time.Minute {
		t.Errorf("when its termination is announced the eviction is tried again after %s", wait)
	}
	remove(t, budget)
	reconcileOnce(t, s.r, p)
	if s.leaving(t, held) {
		t.Error("it is tried again at once")
	}
	s.clock = s.clock.Add(time.Minute)
	reconcileOnce(t, s.r, p)
	if !s.leaving(t, held) {
		t.Error("the budget allows it, and the pod is not evicted")
	}
	s.ended(t, held)
}

func TestPatchOfAPodWithTwoBudgets(t *testing.T) {
	s := newPatchStage(t, "patch-two")
	held := s.pod(t, "patch-two", "twice", "a")
	s.budget(t, "one", "twice")
	s.budget(t, "two", "twice")
	p := create(t, s.c, &v1alpha1.Patch{ObjectMeta: metav1.ObjectMeta{Name: "two"}})
	reconcileOnce(t, s.r, p)
	s.clock = s.clock.Add(time.Minute)
	reconcileOnce(t, s.r, p)
	const want = "This pod has multiple PodDisruptionBudget, which the eviction subresource does not support"
	if said := strings.Join(s.said(), "\n"); s.leaving(t, held) || !strings.Contains(said, want) {
		t.Errorf("events are %q, want one with %q (facts 6)", said, want)
	}
	s.ended(t, held)
}

func TestPatchWorksInItsWindow(t *testing.T) {
	s := newPatchStage(t, "patch-window")
	s.clock = time.Date(s.clock.Year()+1, 1, 4, 12, 0, 0, 0, time.UTC)
	first := s.pod(t, "patch-window", "first", "a")
	p := create(t, s.c, &v1alpha1.Patch{ObjectMeta: metav1.ObjectMeta{Name: "window"},
		Spec: v1alpha1.PatchSpec{Window: &v1alpha1.MaintenanceWindow{Start: "14:00", Duration: metav1.Duration{Duration: time.Hour}}}})
	if wait := reconcileOnce(t, s.r, p).RequeueAfter; wait != 2*time.Hour || s.leaving(t, first) {
		t.Errorf("the window opens after %s", wait)
	}
	if get(t, s.c, p); p.Status.Phase != v1alpha1.PatchWaiting || !strings.Contains(p.Status.Conditions[0].Message, "the window opens at ") {
		t.Errorf("status is %+v", p.Status)
	}
	s.clock = s.clock.Add(2 * time.Hour)
	if wait := reconcileOnce(t, s.r, p).RequeueAfter; !s.leaving(t, first) || wait != time.Hour {
		t.Errorf("the window is open, and the pod is not evicted, or it is not looked again when it closes, but after %s", wait)
	}
	s.ended(t, first)
	reconcileOnce(t, s.r, p)
	if get(t, s.c, p); p.Status.Phase != v1alpha1.PatchComplete {
		t.Errorf("status is %+v", p.Status)
	}
	next := s.pod(t, "patch-window", "next", "a")
	s.clock = s.clock.Add(24 * time.Hour)
	reconcileOnce(t, s.r, p)
	if !s.leaving(t, next) {
		t.Error("in the next window the pod is not evicted")
	}
	s.ended(t, next)
}
