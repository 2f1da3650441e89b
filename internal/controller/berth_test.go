package controller_test

import (
	"testing"
	"time"

	coordination "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/controller/berth"
	"github.com/berth-run/berth/internal/controller/scheduler"
)

// boundPod makes a pod on a node and its Berth on the host.
func boundPod(t *testing.T, c client.Client, name, host, ip string) (*corev1.Pod, *v1alpha1.Berth) {
	t.Helper()
	pod := markedPod(namespace(t, c), name, "p")
	pod.Spec.NodeName = "fargate-" + name
	create(t, c, pod)
	return pod, newBerth(t, c, pod, scheduler.BerthName(pod), host, pod.Spec.NodeName, ip)
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
	r := &berth.Reconciler{Client: c, Live: c, Now: at(&clock)}
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
	reconcileOnce(t, &berth.Reconciler{Client: c, Live: c, Now: at(&clock)}, b)
	if get(t, c, b); b.DeletionTimestamp == nil {
		t.Error("the berth stays for a pod of another UID")
	}
}

func TestBerthOnAHostThatIsGoneDoesNotWaitForIt(t *testing.T) {
	c := admin(t)
	clock := time.Now()
	pod, b := boundPod(t, c, "hostless", "no-such-host", "10.91.50.6")
	remove(t, pod)
	r := &berth.Reconciler{Client: c, Live: c, Now: at(&clock)}
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
				b.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionNodeRegistered, Status: metav1.ConditionTrue, Reason: "Registered", LastTransitionTime: metav1.Now()}}
			}
			if err := c.Status().Update(t.Context(), b); err != nil {
				t.Fatal(err)
			}
			if err := c.Delete(t.Context(), pod); err != nil { // grace period 30 s
				t.Fatal(err)
			}
			clock := get(t, c, pod).DeletionTimestamp.Add(tc.after - 30*time.Second)
			wait := reconcileOnce(t, &berth.Reconciler{Client: c, Live: c, Now: at(&clock)}, b).RequeueAfter
			if got := gone(t, c, pod); got != tc.want {
				t.Errorf("pod gone %s after its deletion: %t, want %t", tc.after, got, tc.want)
			}
			if !tc.want && !tc.registered && wait <= 0 {
				t.Error("nobody looks again")
			}
		})
	}
}
