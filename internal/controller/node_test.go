package controller_test

import (
	"testing"

	coordination "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/controller/node"
)

// TestNodeWithoutBerthGoes: a Node that a host of Berth's registered goes unless a Berth names it; all others are left alone.
func TestNodeWithoutBerthGoes(t *testing.T) {
	c := admin(t)
	r := &node.Reconciler{Client: c, Live: c}
	_, kept := boundPod(t, c, "kept", "sweeping-host", "10.91.50.40")
	ours := map[string]string{v1alpha1.LabelHost: "sweeping-host"}
	for name, tt := range map[string]struct {
		labels map[string]string
		goes   bool
	}{
		kept.Spec.NodeName:  {ours, false},
		"fargate-left":      {ours, true},
		"fargate-of-others": {map[string]string{"eks.amazonaws.com/compute-type": "fargate"}, false},
	} {
		n := create(t, c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: tt.labels}})
		lease := create(t, c, &coordination.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: corev1.NamespaceNodeLease, Name: name}})
		reconcileOnce(t, r, n)
		if gone(t, c, n) != tt.goes || gone(t, c, lease) != tt.goes {
			t.Errorf("%s: node gone %t, lease gone %t, want %t", name, gone(t, c, n), gone(t, c, lease), tt.goes)
		}
	}
	remove(t, kept)
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: kept.Spec.NodeName}}
	if reconcileOnce(t, r, n); !gone(t, c, n) {
		t.Error("the node stays when its berth is gone")
	}
}
