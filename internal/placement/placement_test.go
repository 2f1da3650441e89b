package placement

import (
	"errors"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/api/v1alpha1"
)

func input(change func(*Input)) Input {
	in := Input{
		Pod:         &corev1.Pod{},
		Size:        v1alpha1.Size{CPU: resource.MustParse("250m"), Memory: resource.MustParse("512Mi"), EphemeralStorage: resource.MustParse("20Gi")},
		ProfileName: "web",
		Subnets:     []SubnetState{{"a", "za", 10, 11, 1}, {"b", "zb", 10, 11, 0}, {"c", "zc", 9, 11, 0}},
		Hosts: []HostState{{Name: "h1", Zones: []string{"za", "zb", "zc"}, Ready: true, Isolations: []v1alpha1.Isolation{v1alpha1.IsolationGVisor},
			Capacity: corev1.ResourceList{corev1.ResourceMemory: resource.MustParse("1Gi")}}},
	}
	change(&in)
	return in
}

func TestChoose(t *testing.T) {
	var selector *NodeSelectorError
	var capacity *NoCapacityError
	tests := map[string]struct {
		in   Input
		want Choice
		err  any
	}{
		"fewest pods, then most addresses": {input(func(*Input) {}), Choice{"b", "zb", "h1", "gvisor"}, nil},
		"facts 2.3: a zone selector is honoured": {input(func(in *Input) {
			in.Pod.Spec.NodeSelector = map[string]string{"topology.kubernetes.io/zone": "za"}
		}), Choice{"a", "za", "h1", "gvisor"}, nil},
		"facts 2.3: other selectors cannot be met": {input(func(in *Input) { in.Pod.Spec.NodeSelector = map[string]string{"disk": "ssd"} }), Choice{}, &selector},
		"full subnets are passed over":             {input(func(in *Input) { in.Subnets[1].FreeIPs = 0 }), Choice{"c", "zc", "h1", "gvisor"}, nil},
		"no room":                                  {input(func(in *Input) { in.Size.Memory = resource.MustParse("2Gi") }), Choice{}, &capacity},
		"no host":                                  {input(func(in *Input) { in.Hosts = nil }), Choice{}, &capacity},
		"auto takes a microVM where it is proved": {input(func(in *Input) {
			in.Isolation = v1alpha1.IsolationAuto
			in.Hosts[0] = proving(in.Hosts[0], v1alpha1.AcceleratorKVM, "")
		}), Choice{"b", "zb", "h1", "microvm"}, nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Choose(test.in, "r")
			if test.err != nil {
				if !errors.As(err, test.err) {
					t.Fatalf("got %v, want %T", err, test.err)
				}
				return
			}
			if err != nil || got != test.want {
				t.Fatalf("got %+v, %v, want %+v", got, err, test.want)
			}
		})
	}
}

// TestSnapshotOfCompleted: a completed pod's berth keeps its address and takes no room.
func TestSnapshotOfCompleted(t *testing.T) {
	berth := func(done bool) v1alpha1.Berth {
		b := v1alpha1.Berth{Spec: v1alpha1.BerthSpec{HostName: "h", Size: v1alpha1.Size{CPU: resource.MustParse("1"), Memory: resource.MustParse("2Gi")}}}
		if done {
			b.Status.Timeline.Completed = &metav1.MicroTime{}
		}
		return b
	}
	in := Snapshot(&v1alpha1.FargateProfile{}, nil, []v1alpha1.Host{{ObjectMeta: metav1.ObjectMeta{Name: "h"}}}, []v1alpha1.Berth{berth(false), berth(true)}, nil)
	if used := in.Hosts[0].Used; used.Memory().String() != "2Gi" || used.Cpu().String() != "1" || in.Hosts[0].Pods != 1 {
		t.Errorf("used is %v by %d pods, want what runs", used, in.Hosts[0].Pods)
	}
}
