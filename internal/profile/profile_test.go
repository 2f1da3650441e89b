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
		matches := glob(pattern, text)
		if matches && pattern == "" && text != "" {
			t.Fatalf("nothing matches %q", text)
		}
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
			d := Select(append(profiles, creating), test.pod, Namespace{Name: "default"})
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

// TestSelectCreating: a pod that comes with its profile waits for it, if no other takes it now.
func TestSelectCreating(t *testing.T) {
	all := v1alpha1.Selector{Namespace: "*"}
	with := func(name string, status v1alpha1.ProfileStatus) v1alpha1.FargateProfile {
		p := active(name, all)
		p.Status.Status = status
		return p
	}
	deleting := active("a", all)
	deleting.DeletionTimestamp = &metav1.Time{}
	for name, test := range map[string]struct {
		profiles []v1alpha1.FargateProfile
		want     string
	}{
		"no status yet":           {[]v1alpha1.FargateProfile{with("a", "")}, "a"},
		"CREATING":                {[]v1alpha1.FargateProfile{with("a", v1alpha1.ProfileCreating)}, "a"},
		"an ACTIVE one is better": {[]v1alpha1.FargateProfile{with("a", v1alpha1.ProfileCreating), active("b", all)}, "b"},
		"CREATE_FAILED":           {[]v1alpha1.FargateProfile{with("a", v1alpha1.ProfileCreateFailed)}, ""},
		"DELETING":                {[]v1alpha1.FargateProfile{deleting}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			d := Select(test.profiles, &corev1.Pod{}, Namespace{Name: "default"})
			if d.Profile == nil && test.want != "" || d.Profile != nil && d.Profile.Name != test.want {
				t.Fatalf("got %+v, want %q", d, test.want)
			}
		})
	}
}

func TestValidate(t *testing.T) {
	subnet := func(name, cidr string) v1alpha1.Subnet {
		return v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.SubnetSpec{CIDR: cidr}}
	}
	subnets := map[string]v1alpha1.Subnet{"pub": {Spec: v1alpha1.SubnetSpec{Type: v1alpha1.SubnetPublic}}, "priv": subnet("priv", "10.90.0.0/19"),
		"twice": subnet("twice", "10.90.16.0/24"), "kubelets": subnet("kubelets", "10.90.240.0/24")}
	labels := func(key, value string) []v1alpha1.Selector {
		return []v1alpha1.Selector{{Namespace: "default", Labels: map[string]string{key: value}}}
	}
	one := []v1alpha1.Selector{{Namespace: "default"}}
	exists := func(keys ...string) (out []metav1.LabelSelectorRequirement) {
		for _, key := range keys {
			out = append(out, metav1.LabelSelectorRequirement{Key: key, Operator: metav1.LabelSelectorOpExists})
		}
		return out
	}
	tests := map[string]struct {
		name string
		spec v1alpha1.FargateProfileSpec
		want string
	}{
		"valid":                         {"web", v1alpha1.FargateProfileSpec{Selectors: one, Subnets: []string{"priv"}}, ""},
		"facts 1.6: reserved prefix":    {"eks-x", v1alpha1.FargateProfileSpec{Selectors: one}, "The fargate profile name starts with the reserved prefix: 'eks-'."},
		"facts 1.6: long name":          {strings.Repeat("x", 101), v1alpha1.FargateProfileSpec{Selectors: one}, "The Fargate profile name parameter should not be greater than 100 characters."},
		"facts 1.6: no selector":        {"web", v1alpha1.FargateProfileSpec{}, "Fargate Profile requires at least one selector."},
		"facts 1.6: public subnet":      {"web", v1alpha1.FargateProfileSpec{Selectors: one, Subnets: []string{"pub"}}, "Subnet pub provided in Fargate Profile is not a private subnet"},
		"an overlapping subnet":         {"web", v1alpha1.FargateProfileSpec{Selectors: one, Subnets: []string{"twice"}}, "spec.subnets: subnet twice cannot be used: spec.cidr 10.90.16.0/24 overlaps 10.90.0.0/19 of subnet priv; delete the subnet and take another range"},
		"a reserved range":              {"web", v1alpha1.FargateProfileSpec{Selectors: one, Subnets: []string{"kubelets"}}, "spec.subnets: subnet kubelets cannot be used: spec.cidr 10.90.240.0/24 overlaps 10.90.240.0/21, the addresses of the hosts' kubelets; delete the subnet and take another range"},
		"a malformed label key":         {"web", v1alpha1.FargateProfileSpec{Selectors: labels("bad key!", "x")}, `spec.selectors[0].labels: no label can have key "bad key!"; * and ? are the wildcards`},
		"a malformed label value":       {"web", v1alpha1.FargateProfileSpec{Selectors: labels("app", "a b")}, `spec.selectors[0].labels[app]: no label can have value "a b"; * and ? are the wildcards`},
		"label wildcards":               {"web", v1alpha1.FargateProfileSpec{Selectors: labels("*.example.com/te?m", "*")}, ""},
		"facts 1.6: too many labels":    {"web", v1alpha1.FargateProfileSpec{Selectors: []v1alpha1.Selector{{Namespace: "a", Labels: map[string]string{"a": "", "b": "", "c": "", "d": "", "e": "", "f": ""}}}}, "Request contains Selector with more than 5 Label pairs"},
		"facts 1.3: too many selectors": {"web", v1alpha1.FargateProfileSpec{Selectors: []v1alpha1.Selector{one[0], one[0], one[0], one[0], one[0], one[0]}}, "Fargate profile supports up to 5 selectors: spec.selectors has 6; put the others into another profile"},
		"facts 1.6: empty namespace":    {"web", v1alpha1.FargateProfileSpec{Selectors: []v1alpha1.Selector{{}}}, `invalid Fargate profile "web": invalid profile selector at index #0: empty namespace`},
		"expressions count as labels":   {"web", v1alpha1.FargateProfileSpec{Selectors: []v1alpha1.Selector{{Namespace: "a", Labels: map[string]string{"a": "", "b": "", "c": ""}, MatchExpressions: exists("d", "e", "f")}}}, "Request contains Selector with more than 5 Label pairs"},
		"five of both":                  {"web", v1alpha1.FargateProfileSpec{Selectors: []v1alpha1.Selector{{Namespace: "a", Labels: map[string]string{"a": "", "b": "", "c": ""}, MatchExpressions: exists("d", "e")}}}, ""},
		"a malformed expression":        {"web", v1alpha1.FargateProfileSpec{Selectors: []v1alpha1.Selector{{Namespace: "a", MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Like"}}}}}, `spec.selectors[0].matchExpressions: "Like" is not a valid label selector operator; wildcards are for labels only`},
		"a malformed namespaceSelector": {"web", v1alpha1.FargateProfileSpec{Selectors: []v1alpha1.Selector{{NamespaceSelector: &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Like"}}}}}}, `spec.selectors[0].namespaceSelector: "Like" is not a valid label selector operator; wildcards are for namespace only`},
		"namespaceSelector alone":       {"web", v1alpha1.FargateProfileSpec{Selectors: []v1alpha1.Selector{{NamespaceSelector: &metav1.LabelSelector{}}}}, ""},
		"unknown subnet":                {"web", v1alpha1.FargateProfileSpec{Selectors: one, Subnets: []string{"no"}}, "spec.subnets: subnet no does not exist; `kubectl get subnets` lists those that do"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := strings.Join(Validate(test.name, test.spec, subnets), "\n"); got != test.want {
				t.Fatalf("got %q, want %q", got, test.want)
			}
		})
	}
}
