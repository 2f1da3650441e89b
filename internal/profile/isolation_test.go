package profile

import (
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/api/v1alpha1"
)

func TestIsolationFor(t *testing.T) {
	const auto, microvm, gvisor = v1alpha1.IsolationAuto, v1alpha1.IsolationMicroVM, v1alpha1.IsolationGVisor
	const byProfile, byCluster, byPod = "profile web", "the cluster's default", "annotation berth.run/isolation of the pod"
	for name, test := range map[string]struct {
		profile, fallback v1alpha1.Isolation
		allowed           []v1alpha1.Isolation
		annotation        string
		want              IsolationRequest
		refused           string
	}{
		"nobody says anything":                   {want: IsolationRequest{auto, byCluster}},
		"the cluster's default":                  {fallback: microvm, want: IsolationRequest{microvm, byCluster}},
		"the profile before the default":         {profile: gvisor, fallback: microvm, want: IsolationRequest{gvisor, byProfile}},
		"auto on the profile is not the default": {profile: auto, fallback: microvm, want: IsolationRequest{auto, byProfile}},
		"the pod, where it may":                  {profile: gvisor, allowed: []v1alpha1.Isolation{microvm}, annotation: "microvm", want: IsolationRequest{microvm, byPod}},
		"the pod may not choose": {profile: gvisor, annotation: "microvm", want: IsolationRequest{gvisor, byProfile},
			refused: "annotation berth.run/isolation: profile web does not let pods choose their isolation"},
		"nor ask for what is there already": {profile: gvisor, annotation: "gvisor", want: IsolationRequest{gvisor, byProfile},
			refused: "annotation berth.run/isolation: profile web does not let pods choose their isolation"},
		"the pod may choose another": {allowed: []v1alpha1.Isolation{auto, gvisor}, annotation: "microvm", want: IsolationRequest{auto, byCluster},
			refused: "annotation berth.run/isolation: profile web lets pods choose auto or gvisor only, not microvm"},
		"no such isolation": {allowed: []v1alpha1.Isolation{gvisor}, annotation: "runc", want: IsolationRequest{auto, byCluster},
			refused: `annotation berth.run/isolation: "runc" is not an isolation: use auto, microvm or gvisor`},
		"a blank annotation": {profile: microvm, want: IsolationRequest{microvm, byProfile}, annotation: " ",
			refused: `annotation berth.run/isolation: " " is not an isolation: use auto, microvm or gvisor`},
	} {
		t.Run(name, func(t *testing.T) {
			p := &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: "web"}, Spec: v1alpha1.FargateProfileSpec{Isolation: test.profile, AllowedIsolations: test.allowed}}
			var annotations map[string]string
			if test.annotation != "" {
				annotations = map[string]string{v1alpha1.AnnotationIsolation: test.annotation}
			}
			got, refused := IsolationFor(p, annotations, test.fallback)
			if got != test.want || refused != test.refused {
				t.Errorf("got %+v, %q\nwant %+v, %q", got, refused, test.want, test.refused)
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
