package controller_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	coordination "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/controller/berth"
	"github.com/berth-run/berth/internal/controller/scheduler"
	"github.com/berth-run/berth/internal/eks"
)

// boundPod makes a pod on a node and its Berth on the host.
func boundPod(t *testing.T, c client.Client, name, host, ip string) (*corev1.Pod, *v1alpha1.Berth) {
	t.Helper()
	pod := markedPod(namespace(t, c), name, "p")
	pod.Spec.NodeName = "fargate-" + name
	create(t, c, pod)
	return pod, newBerth(t, c, pod, scheduler.BerthName(pod), host, pod.Spec.NodeName, ip)
}

func berths(c client.Client, clock *time.Time) *berth.Reconciler {
	return &berth.Reconciler{Client: c, Live: c, Recorder: record.NewFakeRecorder(10), Now: at(clock)}
}

func dropFinalizer(t *testing.T, c client.Client, b *v1alpha1.Berth, finalizer string) {
	t.Helper()
	get(t, c, b)
	controllerutil.RemoveFinalizer(b, finalizer)
	if err := c.Update(t.Context(), b); err != nil {
		t.Fatal(err)
	}
}

func TestBerthGoesAfterItsPodAndTakesItsNodeAlong(t *testing.T) {
	c := admin(t)
	clock := time.Now()
	r := berths(c, &clock)
	newHost(t, c, "berth-host", region+"a")
	pod, b := boundPod(t, c, "leaves", "berth-host", "10.91.50.4")
	node := create(t, c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: b.Spec.NodeName}})
	lease := create(t, c, &coordination.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: b.Spec.NodeName}})

	reconcileOnce(t, r, b)
	if get(t, c, b); b.DeletionTimestamp != nil {
		t.Fatal("the berth of a living pod is deleted")
	}
	remove(t, pod)
	reconcileOnce(t, r, b)
	if get(t, c, b); b.DeletionTimestamp == nil {
		t.Fatal("the berth of a pod that is gone is not deleted")
	}
	reconcileOnce(t, r, b)
	if gone(t, c, node) {
		t.Fatal("the node goes before the host is clean")
	}
	dropFinalizer(t, c, b, v1alpha1.FinalizerHost) // as the host agent does
	reconcileOnce(t, r, b)
	for _, o := range []client.Object{b, node, lease} {
		if !gone(t, c, o) {
			t.Errorf("%T is still there", o)
		}
	}
}

func TestBerthOfAnEarlierPodOfTheSameNameGoes(t *testing.T) {
	c := admin(t)
	clock := time.Now()
	pod, b := boundPod(t, c, "again", "berth-host-2", "10.91.50.5")
	remove(t, pod)
	create(t, c, markedPod(pod.Namespace, "again", "p"))
	reconcileOnce(t, berths(c, &clock), b)
	if get(t, c, b); b.DeletionTimestamp == nil {
		t.Error("the berth stays for a pod of another UID")
	}
}

func TestBerthOnAHostThatIsGoneDoesNotWaitForIt(t *testing.T) {
	c := admin(t)
	clock := time.Now()
	pod, b := boundPod(t, c, "hostless", "no-such-host", "10.91.50.6")
	remove(t, pod)
	r := berths(c, &clock)
	reconcileOnce(t, r, b)
	reconcileOnce(t, r, b)
	if !gone(t, c, b) {
		t.Errorf("the berth waits for a host that does not exist: %v", b.Finalizers)
	}
}

func TestDeletedPodWhoseKubeletNeverCameIsRemoved(t *testing.T) {
	c := admin(t)
	for name, tc := range map[string]struct {
		accepted, registered bool
		after                time.Duration // from the deletion
		want                 bool
	}{
		"unaccepted":       {after: 5 * time.Second, want: true},
		"accepted-early":   {accepted: true, after: 35 * time.Second, want: false},
		"accepted-late":    {accepted: true, after: 41 * time.Second, want: true},
		"registered-early": {accepted: true, registered: true, after: time.Hour, want: false},
	} {
		t.Run(name, func(t *testing.T) {
			pod, b := boundPod(t, c, name, "h", "10.91.50.7")
			now := metav1.NowMicro()
			if tc.accepted {
				b.Status.Timeline.Accepted = &now
			}
			if tc.registered {
				create(t, c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: b.Spec.NodeName}})
				b.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionNodeRegistered, Status: metav1.ConditionTrue, Reason: "Registered", LastTransitionTime: metav1.Now()}}
			}
			if err := c.Status().Update(t.Context(), b); err != nil {
				t.Fatal(err)
			}
			if err := c.Delete(t.Context(), pod); err != nil { // grace period 30 s
				t.Fatal(err)
			}
			clock := get(t, c, pod).DeletionTimestamp.Add(tc.after - 30*time.Second)
			wait := reconcileOnce(t, berths(c, &clock), b).RequeueAfter
			if got := gone(t, c, pod); got != tc.want {
				t.Errorf("pod gone %s after its deletion: %t, want %t", tc.after, got, tc.want)
			}
			if !tc.want && !tc.registered && wait <= 0 {
				t.Error("nobody looks again")
			}
		})
	}
}

// TestPodEndsWithItsMachine: who deletes a Berth or a Node ends the pod, with the pod's grace period; the machine stays as
// long as the pod.
func TestPodEndsWithItsMachine(t *testing.T) {
	c := admin(t)
	for name, tc := range map[string]struct {
		take func(*v1alpha1.Berth, *corev1.Node) client.Object
		want string
	}{
		"berth": {func(b *v1alpha1.Berth, _ *corev1.Node) client.Object { return b }, "Warning BerthDeleted Berth "},
		"node":  {func(_ *v1alpha1.Berth, n *corev1.Node) client.Object { return n }, "Warning NodeDeleted Node fargate-taken-node was deleted, and the pod ends with it"},
	} {
		t.Run(name, func(t *testing.T) {
			clock := time.Now()
			r, events := berths(c, &clock), record.NewFakeRecorder(10)
			r.Recorder = events
			newHost(t, c, "taken-"+name, region+"a")
			pod, b := boundPod(t, c, "taken-"+name, "taken-"+name, "10.91.50.8")
			node := create(t, c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: b.Spec.NodeName}})
			now := metav1.NowMicro()
			b.Status.Timeline.Accepted = &now
			b.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionNodeRegistered, Status: metav1.ConditionTrue, Reason: "Registered", LastTransitionTime: metav1.Now()}}
			if err := c.Status().Update(t.Context(), b); err != nil {
				t.Fatal(err)
			}
			reconcileOnce(t, r, b)
			if get(t, c, pod).DeletionTimestamp != nil {
				t.Fatal("the pod is deleted though nothing was taken away")
			}
			if err := c.Delete(t.Context(), tc.take(b, node)); err != nil {
				t.Fatal(err)
			}
			reconcileOnce(t, r, b)
			if get(t, c, pod); pod.DeletionTimestamp == nil || *pod.DeletionGracePeriodSeconds != 30 {
				t.Fatalf("the pod is not being deleted with its grace period: %+v", pod.ObjectMeta)
			}
			if said := <-events.Events; !strings.HasPrefix(said, tc.want) {
				t.Errorf("event %q, want %q", said, tc.want)
			}
			if get(t, c, b); !slices.Contains(b.Finalizers, v1alpha1.FinalizerPod) {
				t.Error("the machine is given up while the pod ends")
			}
			clock = pod.DeletionTimestamp.Add(9 * time.Second)
			if wait := reconcileOnce(t, r, b).RequeueAfter; wait <= 0 || gone(t, c, pod) {
				t.Errorf("a kubelet may take its time: pod gone, or nobody looks again (%s)", wait)
			}
			clock = pod.DeletionTimestamp.Add(11 * time.Second)
			for range 3 { // the pod goes, then what is left of it is given up
				reconcileOnce(t, r, b)
			}
			if get(t, c, b); !gone(t, c, pod) || slices.Contains(b.Finalizers, v1alpha1.FinalizerPod) || b.DeletionTimestamp == nil {
				t.Errorf("pod and berth are not given up: %+v", b.ObjectMeta)
			}
			dropFinalizer(t, c, b, v1alpha1.FinalizerHost)
			reconcileOnce(t, r, b)
			if !gone(t, c, b) || !gone(t, c, node) {
				t.Error("berth or node is still there")
			}
		})
	}
}

// TestStrayPodEnds: a pod that was placed and has no Berth runs nowhere; a pod that a user bound by hand is left alone.
func TestStrayPodEnds(t *testing.T) {
	c := admin(t)
	for name, placed := range map[string]bool{"stray": true, "byhand": false} {
		clock := time.Now()
		pod, b := boundPod(t, c, name, "stray-host", "10.91.50.9")
		if placed {
			before := pod.DeepCopy()
			pod.Annotations = map[string]string{eks.AnnotationCapacityProvisioned: "0.25vCPU 0.5GB"}
			if err := c.Patch(t.Context(), pod, client.MergeFrom(before)); err != nil {
				t.Fatal(err)
			}
		}
		node := create(t, c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: b.Spec.NodeName}})
		remove(t, b)
		r := berths(c, &clock)
		reconcileOnce(t, r, b)
		if deleted := get(t, c, pod).DeletionTimestamp != nil; deleted != placed {
			t.Errorf("%s: deleted %t", name, deleted)
		}
		if gone(t, c, node) != placed { // the pod could be gone by now, and nobody would know its Node
			t.Errorf("%s: node gone %t at once", name, !placed)
		}
		clock = clock.Add(time.Minute)
		reconcileOnce(t, r, b)
		if gone(t, c, pod) != placed || gone(t, c, node) != placed {
			t.Errorf("%s: pod gone %t, node gone %t", name, gone(t, c, pod), gone(t, c, node))
		}
	}
}

// TestCompletionIsNotedOnce: the agent learns when the last container ended.
func TestCompletionIsNotedOnce(t *testing.T) {
	c := admin(t)
	clock := time.Now()
	pod, b := boundPod(t, c, "completes", "h", "10.91.50.10")
	r := berths(c, &clock)
	reconcileOnce(t, r, b)
	if get(t, c, b).Annotations[v1alpha1.AnnotationCompleted] != "" {
		t.Error("a pod that has not ended is noted as completed")
	}
	ended := func(second int64) corev1.ContainerStatus {
		return corev1.ContainerStatus{Name: "c", State: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{FinishedAt: metav1.NewTime(time.Unix(second, 0))}}}
	}
	pod.Status.Phase = corev1.PodSucceeded
	pod.Status.InitContainerStatuses = []corev1.ContainerStatus{ended(1760000000)}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{ended(1760000010), ended(1760000005)}
	if err := c.Status().Update(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	reconcileOnce(t, r, b)
	if got := get(t, c, b).Annotations[v1alpha1.AnnotationCompleted]; got != "2025-10-09T08:53:30Z" {
		t.Errorf("completed at %q", got)
	}
	version := b.ResourceVersion
	reconcileOnce(t, r, b)
	if get(t, c, b).ResourceVersion != version {
		t.Error("a second look at the same state writes something")
	}
}
