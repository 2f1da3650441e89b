package profile

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
)

func TestGlob(t *testing.T) {
	tests := []struct {
		source, pattern, text string
		want                  bool
	}{
		{"facts 1.4: * is none", "prod*", "prod", true},
		{"facts 1.4: * is many", "prod*", "prod-metrics", true},
		{"facts 1.4: ? is one", "value?", "valuea", true},
		{"facts 1.4: ? is not none", "value?", "value", false},
		{"facts 1.4: ? is not two", "value?", "value-a", false},
		{"facts 1.4: in combination", "frontend*?", "frontend-x", true},
		{"back to the latest star", "*ab*ab", "abxabab", true},
		{"no regular expressions", "a.c", "abc", false},
	}
	for _, test := range tests {
		t.Run(test.source, func(t *testing.T) {
			if got := glob(test.pattern, test.text); got != test.want {
				t.Fatalf("glob(%q, %q) = %v", test.pattern, test.text, got)
			}
		})
	}
}

func FuzzGlob(f *testing.F) {
	f.Add("a*b?c", "axxbyc")
	f.Fuzz(func(t *testing.T, pattern, text string) {
		glob(pattern, text)
		if !strings.ContainsAny(text, "*?") && !glob(text, text) {
			t.Fatalf("%q does not match itself", text)
		}
	})
}

func active(name string, selectors ...v1alpha1.Selector) v1alpha1.FargateProfile {
	return v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.FargateProfileSpec{Selectors: selectors},
		Status: v1alpha1.FargateProfileStatus{Status: v1alpha1.ProfileActive}}
}

func TestSelect(t *testing.T) {
	web := v1alpha1.Selector{Namespace: "default", Labels: map[string]string{"app": "web"}}
	all := v1alpha1.Selector{Namespace: "*"}
	profiles := []v1alpha1.FargateProfile{active("prod", all), active("beta", web)}
	creating := active("alpha", all)
	creating.Status.Status = v1alpha1.ProfileCreating
	pod := func(change func(*corev1.Pod)) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "web"}, Annotations: map[string]string{}}}
		change(p)
		return p
	}
	tests := map[string]struct {
		pod  *corev1.Pod
		want string
	}{
		"facts 1.4: alphanumerically first":        {pod(func(*corev1.Pod) {}), "beta"},
		"facts 1.4: the label forces one":          {pod(func(p *corev1.Pod) { p.Labels[eks.LabelProfile] = "prod" }), "prod"},
		"facts 1.4: a forced one must match":       {pod(func(p *corev1.Pod) { p.Labels[eks.LabelProfile] = "none" }), ""},
		"facts 2.3: compute-type ec2 opts out":     {pod(func(p *corev1.Pod) { p.Annotations[eks.ComputeTypeKey] = "ec2" }), ""},
		"facts 2.3: DaemonSet pods are left alone": {pod(func(p *corev1.Pod) { p.OwnerReferences = []metav1.OwnerReference{{Kind: "DaemonSet"}} }), ""},
		"facts 2.3: nodeName is left alone":        {pod(func(p *corev1.Pod) { p.Spec.NodeName = "n" }), ""},
		"facts 2.3: another scheduler's pod":       {pod(func(p *corev1.Pod) { p.Spec.SchedulerName = "volcano" }), ""},
		"facts 1.4: all labels must be there":      {pod(func(p *corev1.Pod) { delete(p.Labels, "app") }), "prod"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			d := Select(append(profiles, creating), test.pod, "default")
			got := ""
			if d.Profile != nil {
				got = d.Profile.Name
			}
			if got != test.want || d.Reason == "" {
				t.Fatalf("got %q (%s), want %q", got, d.Reason, test.want)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	subnets := map[string]v1alpha1.Subnet{"pub": {Spec: v1alpha1.SubnetSpec{Type: v1alpha1.SubnetPublic}}, "priv": {}}
	one := []v1alpha1.Selector{{Namespace: "default"}}
	tests := map[string]struct {
		name string
		spec v1alpha1.FargateProfileSpec
		want string
	}{
		"valid":                      {"web", v1alpha1.FargateProfileSpec{Selectors: one, Subnets: []string{"priv"}}, ""},
		"facts 1.6: reserved prefix": {"eks-x", v1alpha1.FargateProfileSpec{Selectors: one}, "The fargate profile name starts with the reserved prefix: 'eks-'."},
		"facts 1.6: long name":       {strings.Repeat("x", 101), v1alpha1.FargateProfileSpec{Selectors: one}, "The Fargate profile name parameter should not be greater than 100 characters."},
		"facts 1.6: no selector":     {"web", v1alpha1.FargateProfileSpec{}, "Fargate Profile requires at least one selector."},
		"facts 1.6: public subnet":   {"web", v1alpha1.FargateProfileSpec{Selectors: one, Subnets: []string{"pub"}}, "Subnet pub provided in Fargate Profile is not a private subnet"},
		"unknown subnet":             {"web", v1alpha1.FargateProfileSpec{Selectors: one, Subnets: []string{"no"}}, "spec.subnets: subnet no does not exist; `kubectl get subnets` lists those that do"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := strings.Join(Validate(test.name, test.spec, subnets), "\n"); got != test.want {
				t.Fatalf("got %q, want %q", got, test.want)
			}
		})
	}
}
