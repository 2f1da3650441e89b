package controller_test

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/controller/profile"
	"github.com/berth-run/berth/internal/eks"
	rules "github.com/berth-run/berth/internal/profile"
)

// proves writes what the stage's host found out about microvm; an accelerator makes it usable.
func (s *stage) proves(t *testing.T, host string, accelerator v1alpha1.Accelerator, message string) {
	t.Helper()
	h := get(t, s.c, &v1alpha1.Host{ObjectMeta: metav1.ObjectMeta{Name: host}})
	h.Status.Isolations = []v1alpha1.Isolation{v1alpha1.IsolationGVisor}
	if accelerator != "" {
		h.Status.Isolations = append(h.Status.Isolations, v1alpha1.IsolationMicroVM)
	}
	h.Status.Probes = []v1alpha1.IsolationProbe{{Isolation: v1alpha1.IsolationMicroVM, Usable: accelerator != "", Accelerator: accelerator, Message: message, Time: metav1.Now()}}
	if err := s.c.Status().Update(t.Context(), h); err != nil {
		t.Fatal(err)
	}
}

func (s *stage) change(t *testing.T, change func(*v1alpha1.FargateProfileSpec)) {
	t.Helper()
	change(&s.profile.Spec)
	if err := s.c.Update(t.Context(), s.profile); err != nil {
		t.Fatal(err)
	}
}

// TestIsolationThatNoHostRuns: the pod waits, one event says which hosts cannot and why, and it runs when one can.
func TestIsolationThatNoHostRuns(t *testing.T) {
	s := newStage(t, "novm", cidr(84), cidr(85))
	s.change(t, func(p *v1alpha1.FargateProfileSpec) { p.Isolation = v1alpha1.IsolationMicroVM })
	s.proves(t, "novm", "", "command qemu-system-x86_64 is missing")
	pod := s.pod(t, "web", nil)
	for range 2 {
		reconcileOnce(t, s.r, pod)
	}
	const want = "No host can run isolation microvm, which profile novm asks for (host novm cannot run isolation microvm: command qemu-system-x86_64 is missing) (waits since "
	if said := s.said(); len(said) != 1 || !strings.HasPrefix(said[0], "Warning FailedScheduling "+want) || !strings.HasSuffix(said[0], " for a host that can run isolation microvm)") {
		t.Errorf("events %q, want one with %q", said, want)
	}
	if c := condition(get(t, s.c, pod)); c.Reason != corev1.PodReasonUnschedulable || !strings.HasPrefix(c.Message, want) {
		t.Errorf("condition %+v", c)
	}
	s.proves(t, "novm", v1alpha1.AcceleratorTCG, "no usable KVM: /dev/kvm is missing")
	reconcileOnce(t, s.r, pod)
	b := s.berth(t, pod)
	if b == nil || b.Spec.Isolation != v1alpha1.IsolationMicroVM || b.Spec.AllowPrivileged ||
		b.Spec.IsolationReason != "profile novm asks for it; host novm runs it under TCG" {
		t.Errorf("berth %+v, want a microvm and the reason", b)
	}
}

// TestDefaultIsolation: profiles that name none follow the cluster's default; auto is not overruled by it.
func TestDefaultIsolation(t *testing.T) {
	s := newStage(t, "default-isolation", cidr(86), cidr(87))
	s.proves(t, "default-isolation", v1alpha1.AcceleratorTCG, "no usable KVM")
	s.r.Isolation = v1alpha1.IsolationMicroVM
	for _, tc := range []struct {
		name          string
		own, want     v1alpha1.Isolation
		reason, state string
	}{
		{"by-default", "", v1alpha1.IsolationMicroVM, "the cluster's default asks for it; host", "microvm"},
		{"by-itself", v1alpha1.IsolationAuto, v1alpha1.IsolationGVisor, "profile default-isolation says auto, and host default-isolation has not proved microvm under KVM (its probes say why)", "auto"},
	} {
		s.change(t, func(p *v1alpha1.FargateProfileSpec) { p.Isolation = tc.own })
		pod := s.pod(t, tc.name, nil)
		reconcileOnce(t, s.r, pod)
		if b := s.berth(t, pod); b == nil || b.Spec.Isolation != tc.want || !strings.HasPrefix(b.Spec.IsolationReason, tc.reason) {
			t.Errorf("%s: berth %+v, want %s, %q", tc.name, b, tc.want, tc.reason)
		}
		reconcileOnce(t, &profile.Reconciler{Client: s.c, Quotas: rules.Quotas{Profiles: 1000, Selectors: 5, Labels: 5}, Isolation: v1alpha1.IsolationMicroVM}, s.profile)
		if get(t, s.c, s.profile); string(s.profile.Status.Isolation) != tc.state {
			t.Errorf("%s: the profile's status says %q, want %q", tc.name, s.profile.Status.Isolation, tc.state)
		}
	}
}

// TestPodChoosesItsIsolation, where the profile lets it.
func TestPodChoosesItsIsolation(t *testing.T) {
	s := newStage(t, "choice", cidr(88), cidr(89))
	s.proves(t, "choice", v1alpha1.AcceleratorKVM, "")
	asks := func(p *corev1.Pod) {
		p.Annotations = map[string]string{v1alpha1.AnnotationIsolation: "gvisor"}
	}
	pod := s.pod(t, "web", asks)
	reconcileOnce(t, s.r, pod)
	const want = "Pod not supported on Fargate: annotation berth.run/isolation: profile choice does not let pods choose their isolation"
	if said := s.said(); len(said) != 1 || !strings.Contains(said[0], want) || !strings.Contains(said[0], "for the profile to allow that isolation") {
		t.Errorf("events %q, want %q", said, want)
	}
	if c := condition(get(t, s.c, pod)); c.Reason != eks.ReasonUnsupported {
		t.Errorf("condition %+v", c)
	}
	s.change(t, func(p *v1alpha1.FargateProfileSpec) {
		p.Isolation, p.AllowPrivileged, p.AllowedIsolations = v1alpha1.IsolationMicroVM, true, []v1alpha1.Isolation{v1alpha1.IsolationGVisor}
	})
	reconcileOnce(t, s.r, pod)
	if b := s.berth(t, pod); b == nil || b.Spec.Isolation != v1alpha1.IsolationGVisor || b.Spec.AllowPrivileged || b.Spec.IsolationReason != "annotation berth.run/isolation of the pod asks for it" {
		t.Errorf("berth %+v, want gvisor without more rights", b)
	}
	s.said()
	privileged := func(p *corev1.Pod) {
		p.Spec.Containers[0].SecurityContext = &corev1.SecurityContext{Privileged: ptr.To(true)}
	}
	inVM := s.pod(t, "privileged", privileged)
	reconcileOnce(t, s.r, inVM)
	if b := s.berth(t, inVM); b == nil || b.Spec.Isolation != v1alpha1.IsolationMicroVM || !b.Spec.AllowPrivileged {
		t.Errorf("berth %+v, want a microvm with all rights", b)
	}
	s.said()
	elsewhere := s.pod(t, "privileged-elsewhere", func(p *corev1.Pod) { asks(p); privileged(p) })
	reconcileOnce(t, s.r, elsewhere)
	if said := s.said(); len(said) != 1 || !strings.Contains(said[0], "invalid SecurityContext fields: Privileged") || s.berth(t, elsewhere) != nil {
		t.Errorf("a privileged pod in gVisor: events %q, berth %+v", said, s.berth(t, elsewhere))
	}
}

// TestRuntimeClassChoosesIsolation where the profile lets it, and is no way round the profile. The API server's admission has seen
// to it that the class exists.
func TestRuntimeClassChoosesIsolation(t *testing.T) {
	s := newStage(t, "class", cidr(94), cidr(95))
	s.proves(t, "class", v1alpha1.AcceleratorTCG, "no usable KVM")
	create(t, s.c, &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "weaker"}, Handler: "gvisor"})
	s.change(t, func(p *v1alpha1.FargateProfileSpec) { p.Isolation = v1alpha1.IsolationMicroVM })
	pod := s.pod(t, "web", func(p *corev1.Pod) { p.Spec.RuntimeClassName = ptr.To("weaker") })
	reconcileOnce(t, s.r, pod)
	const want = "Pod not supported on Fargate: runtimeClassName weaker: profile class does not let pods choose their isolation"
	if said := s.said(); len(said) != 1 || !strings.Contains(said[0], want) || s.berth(t, pod) != nil {
		t.Errorf("events %q, want %q", said, want)
	}
	s.change(t, func(p *v1alpha1.FargateProfileSpec) {
		p.AllowedIsolations = []v1alpha1.Isolation{v1alpha1.IsolationGVisor}
	})
	reconcileOnce(t, s.r, pod)
	if b := s.berth(t, pod); b == nil || b.Spec.Isolation != v1alpha1.IsolationGVisor || b.Spec.IsolationReason != "runtimeClassName weaker of the pod asks for it" {
		t.Errorf("berth %+v, want gvisor, and why", b)
	}

	create(t, s.c, &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "kata"}, Handler: "kata"})
	other := s.pod(t, "kata", func(p *corev1.Pod) { p.Spec.RuntimeClassName = ptr.To("kata") })
	reconcileOnce(t, s.r, other)
	if b := s.berth(t, other); b == nil || b.Spec.Isolation != v1alpha1.IsolationMicroVM {
		t.Errorf("a pod of another handler, which its node refuses as Kubernetes has it: berth %+v", b)
	}
}
