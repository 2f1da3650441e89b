package profile

import (
	"fmt"
	"testing"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"k8s.io/utils/ptr"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/podcheck"
)

func TestIsolationFor(t *testing.T) {
	const auto, microvm, gvisor = v1alpha1.IsolationAuto, v1alpha1.IsolationMicroVM, v1alpha1.IsolationGVisor
	const byProfile, byCluster, byPod, byClass = "profile web", "the cluster's default", "annotation berth.run/isolation of the pod", "runtimeClassName strong of the pod"
	const annotation, class = "metadata.annotations[berth.run/isolation]", "spec.runtimeClassName"
	for name, test := range map[string]struct {
		profile, fallback v1alpha1.Isolation
		allowed           []v1alpha1.Isolation
		annotation        string
		handler           string // of RuntimeClass strong, which the pod names; "none": there is no such class
		want              IsolationRequest
		refused           string
		field, waitsFor   string
		atNode            bool
	}{
		"nobody says anything":                   {want: IsolationRequest{auto, byCluster}},
		"the cluster's default":                  {fallback: microvm, want: IsolationRequest{microvm, byCluster}},
		"the profile before the default":         {profile: gvisor, fallback: microvm, want: IsolationRequest{gvisor, byProfile}},
		"auto on the profile is not the default": {profile: auto, fallback: microvm, want: IsolationRequest{auto, byProfile}},
		"the pod, where it may":                  {profile: gvisor, allowed: []v1alpha1.Isolation{microvm}, annotation: "microvm", want: IsolationRequest{microvm, byPod}},
		"what it has anyway":                     {profile: gvisor, annotation: "gvisor", want: IsolationRequest{gvisor, byProfile}},
		"the pod may not choose": {profile: gvisor, annotation: "microvm", want: IsolationRequest{gvisor, byProfile}, field: annotation,
			refused:  "annotation berth.run/isolation: profile web does not let pods choose their isolation",
			waitsFor: "the profile to allow that isolation, or the annotation to change"},
		"the pod may choose another": {allowed: []v1alpha1.Isolation{auto, gvisor}, annotation: "microvm", want: IsolationRequest{auto, byCluster}, field: annotation,
			refused:  "annotation berth.run/isolation: profile web lets pods choose auto or gvisor only, not microvm",
			waitsFor: "the profile to allow that isolation, or the annotation to change"},
		"no such isolation": {allowed: []v1alpha1.Isolation{gvisor}, annotation: "runc", want: IsolationRequest{auto, byCluster}, field: annotation,
			refused: `annotation berth.run/isolation: "runc" is not an isolation: use auto, microvm or gvisor`, waitsFor: "the annotation to change"},
		"a blank annotation": {profile: microvm, want: IsolationRequest{microvm, byProfile}, annotation: " ", field: annotation,
			refused: `annotation berth.run/isolation: " " is not an isolation: use auto, microvm or gvisor`, waitsFor: "the annotation to change"},

		"a RuntimeClass, where it may":            {profile: gvisor, allowed: []v1alpha1.Isolation{microvm}, handler: "microvm", want: IsolationRequest{microvm, byClass}},
		"a RuntimeClass of what it has anyway":    {profile: gvisor, handler: "gvisor", want: IsolationRequest{gvisor, byProfile}},
		"the ordinary RuntimeClass asks for none": {profile: microvm, handler: "runc", want: IsolationRequest{microvm, byProfile}},
		"a RuntimeClass and the annotation agree": {profile: gvisor, allowed: []v1alpha1.Isolation{microvm}, annotation: "microvm", handler: "microvm", want: IsolationRequest{microvm, byClass}},
		"a RuntimeClass is no way round a profile": {profile: microvm, handler: "gvisor", want: IsolationRequest{microvm, byProfile}, field: class,
			refused: "runtimeClassName strong: profile web does not let pods choose their isolation", waitsFor: "the profile to allow that isolation"},
		"a RuntimeClass and the annotation differ": {allowed: []v1alpha1.Isolation{gvisor, microvm}, annotation: "gvisor", handler: "microvm", want: IsolationRequest{auto, byCluster}, field: class,
			refused: "runtimeClassName strong: it asks for microvm, and annotation berth.run/isolation for gvisor"},
		"a RuntimeClass of something else": {handler: "kata", want: IsolationRequest{auto, byCluster}, field: class,
			refused: `runtimeClassName strong: no runtime for "kata" is configured`, atNode: true},
		"a RuntimeClass that went": {handler: "none", want: IsolationRequest{auto, byCluster}, field: class,
			refused: `runtimeClassName strong: runtimeclass "strong" not found`, waitsFor: "RuntimeClass strong"},
	} {
		t.Run(name, func(t *testing.T) {
			p := &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: v1alpha1.FargateProfileSpec{Isolation: test.profile, AllowedIsolations: test.allowed}}
			pod := &corev1.Pod{}
			if test.annotation != "" {
				pod.Annotations = map[string]string{v1alpha1.AnnotationIsolation: test.annotation}
			}
			if test.handler != "" {
				pod.Spec.RuntimeClassName = ptr.To("strong")
			}
			got, refused := IsolationFor(p, pod, func(name string) (*nodev1.RuntimeClass, error) {
				if test.handler == "none" {
					return nil, fmt.Errorf("runtimeclass %q not found", name)
				}
				return &nodev1.RuntimeClass{Handler: test.handler}, nil
			}, test.fallback)
			if refused == nil {
				refused = &podcheck.Refusal{}
			}
			if got != test.want || refused.Problem != test.refused || refused.Field != test.field || refused.WaitsFor != test.waitsFor || refused.AtNode != test.atNode {
				t.Errorf("got %+v, %+v\nwant %+v, %q in %s, which waits for %q", got, refused, test.want, test.refused, test.field, test.waitsFor)
			}
		})
	}
}

// TestAllowsPrivileged: the right goes with the virtual machine, not with the profile alone.
func TestAllowsPrivileged(t *testing.T) {
	p := &v1alpha1.FargateProfile{Spec: v1alpha1.FargateProfileSpec{AllowPrivileged: true}}
	for isolation, want := range map[v1alpha1.Isolation]bool{v1alpha1.IsolationMicroVM: true, v1alpha1.IsolationGVisor: false, v1alpha1.IsolationAuto: false} {
		if AllowsPrivileged(p, isolation) != want {
			t.Errorf("%s: want %t", isolation, want)
		}
	}
	p.Spec.AllowPrivileged = false
	if AllowsPrivileged(p, v1alpha1.IsolationMicroVM) {
		t.Error("a profile that does not allow it allows it")
	}
}
