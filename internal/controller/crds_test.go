package controller_test

import (
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
)

func TestBadObjectsAreRefusedWithAReason(t *testing.T) {
	c := admin(t)
	named := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name} }
	profile := func(name string, change func(*v1alpha1.FargateProfileSpec)) client.Object {
		p := &v1alpha1.FargateProfile{ObjectMeta: named(name), Spec: profileSpec("default")}
		if change != nil {
			change(&p.Spec)
		}
		return p
	}
	subnet := func(cidr, zone string, kind v1alpha1.SubnetType) client.Object {
		return &v1alpha1.Subnet{ObjectMeta: named("bad"), Spec: v1alpha1.SubnetSpec{CIDR: cidr, Zone: zone, Type: kind}}
	}
	const badCIDR = "cidr must be an IPv4 network address with a prefix of /16 to /28"
	for name, tc := range map[string]struct {
		object client.Object
		want   string
	}{
		"facts 1.6: reserved prefix": {profile("eks-web", nil), "The fargate profile name starts with the reserved prefix: 'eks-'."},
		"facts 1.6: name too long":   {profile(strings.Repeat("a", 101), nil), "The Fargate profile name parameter should not be greater than 100 characters."},
		"facts 1.6: no selector":     {profile("bad", func(s *v1alpha1.FargateProfileSpec) { s.Selectors = []v1alpha1.Selector{} }), "Fargate Profile requires at least one selector."},
		"facts 1.6: empty namespace": {profile("bad", func(s *v1alpha1.FargateProfileSpec) { s.Selectors[0].Namespace = "" }),
			"spec.selectors[0].namespace: Required value: Fargate Profile must have at least one selector with at least one namespace value."},
		"malformed selector": {profile("bad", func(s *v1alpha1.FargateProfileSpec) { s.Selectors[0].Namespace = "Prod_[a-z]" }), "spec.selectors[0].namespace"},
		"facts 1.2: empty label value": {profile("bad", func(s *v1alpha1.FargateProfileSpec) { s.Selectors[0].Labels = map[string]string{"app": ""} }),
			"a selector label needs a key of 1 to 127 and a value of 1 to 255 characters"},
		"facts 1.2: label key too long": {profile("bad", func(s *v1alpha1.FargateProfileSpec) {
			s.Selectors[0].Labels = map[string]string{strings.Repeat("k", 128): "v"}
		}), "a selector label needs a key of 1 to 127"},
		"no values": {profile("bad", func(s *v1alpha1.FargateProfileSpec) {
			s.Selectors[0].MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "app", Operator: metav1.LabelSelectorOpNotIn}}
		}), "operator In or NotIn needs values"},
		"unknown operator": {profile("bad", func(s *v1alpha1.FargateProfileSpec) {
			s.Selectors[0].MatchExpressions = []metav1.LabelSelectorRequirement{{Key: "app", Operator: "Like"}}
		}), "operator In or NotIn needs values"},
		"unknown sizing": {profile("bad", func(s *v1alpha1.FargateProfileSpec) { s.Sizing = "huge" }), `supported values: "table", "exact"`},
		"facts 1.2: tag key too long": {profile("bad", func(s *v1alpha1.FargateProfileSpec) { s.Tags = map[string]string{strings.Repeat("k", 128): "v"} }),
			"a tag needs a key of 1 to 127"},
		"facts 1.6: role is no ARN": {profile("bad", func(s *v1alpha1.FargateProfileSpec) { s.PodExecutionRoleArn = "my-role" }), "Invalid Role Arn: 'my-role'"},
		"unknown isolation":         {profile("bad", func(s *v1alpha1.FargateProfileSpec) { s.Isolation = "firecracker" }), `supported values: "auto", "microvm", "gvisor"`},
		"unknown isolation allowed": {profile("bad", func(s *v1alpha1.FargateProfileSpec) { s.AllowedIsolations = []v1alpha1.Isolation{"runc"} }),
			`supported values: "auto", "microvm", "gvisor"`},
		"privileged without a machine of its own": {profile("bad", func(s *v1alpha1.FargateProfileSpec) { s.AllowPrivileged, s.Isolation = true, v1alpha1.IsolationGVisor }),
			"spec.allowPrivileged: Invalid value: allowPrivileged needs isolation microvm"},
		"privileged by default": {profile("bad", func(s *v1alpha1.FargateProfileSpec) { s.AllowPrivileged = true }), "allowPrivileged needs isolation microvm"},
		"subnet named twice":    {profile("bad", func(s *v1alpha1.FargateProfileSpec) { s.Subnets = []string{"a", "a"} }), "spec.subnets[1]: Duplicate value"},
		"patch: no such day": {&v1alpha1.Patch{ObjectMeta: named("bad"), Spec: v1alpha1.PatchSpec{Window: &v1alpha1.MaintenanceWindow{
			Days: []string{"Sunday"}, Start: "03:00", Duration: metav1.Duration{Duration: time.Hour}}}}, `supported values: "Sun"`},
		"patch: no time": {&v1alpha1.Patch{ObjectMeta: named("bad"), Spec: v1alpha1.PatchSpec{Window: &v1alpha1.MaintenanceWindow{
			Start: "24:00", Duration: metav1.Duration{Duration: time.Hour}}}}, "spec.window.start"},
		"patch: a window of two days": {&v1alpha1.Patch{ObjectMeta: named("bad"), Spec: v1alpha1.PatchSpec{Window: &v1alpha1.MaintenanceWindow{
			Start: "03:00", Duration: metav1.Duration{Duration: 48 * time.Hour}}}}, "a window lasts up to 24h"},
		"no network address": {subnet("10.0.0.1/24", "a", ""), badCIDR},
		"prefix too short":   {subnet("10.0.0.0/15", "a", ""), badCIDR},
		"prefix too long":    {subnet("10.0.0.0/29", "a", ""), badCIDR},
		"IPv6":               {subnet("fd00::/24", "a", ""), badCIDR},
		"no CIDR at all":     {subnet("ten", "a", ""), badCIDR},
		"no zone":            {subnet("10.0.0.0/24", "", ""), "spec.zone"},
		"unknown type":       {subnet("10.0.0.0/24", "a", "isolated"), `supported values: "private", "public"`},
		"host without zone":  {&v1alpha1.Host{ObjectMeta: named("bad"), Spec: v1alpha1.HostSpec{Zones: []string{}}}, "spec.zones"},
		"berth with bad IP": {&v1alpha1.Berth{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "bad"}, Spec: v1alpha1.BerthSpec{
			IP: "10.0.0.300", Isolation: v1alpha1.IsolationGVisor}}, "spec.ip"},
	} {
		t.Run(name, func(t *testing.T) {
			err := c.Create(t.Context(), tc.object, client.DryRunAll)
			if err == nil || !strings.Contains(err.Error(), tc.want) {
				t.Errorf("got %v\nwant an error with %q", err, tc.want)
			}
		})
	}
}

func TestDefaultsAndImmutableFields(t *testing.T) {
	c := admin(t)
	s := newSubnet(t, c, "defaults", "10.91.200.0/24", region+"a")
	if s.Spec.Type != v1alpha1.SubnetPrivate || s.Spec.NATGateway == nil || !*s.Spec.NATGateway {
		t.Errorf("a subnet is private with a NAT gateway unless it says otherwise, got %+v", s.Spec)
	}
	p := create(t, c, &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: "defaults"}, Spec: profileSpec("default")})
	if p.Spec.Isolation != "" {
		t.Errorf("isolation is %q, want none: the cluster's default applies", p.Spec.Isolation)
	}
	b := newBerth(t, c, &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "x", UID: "u"}}, "defaults", "h", "n", "10.0.0.4")
	for want, change := range map[string]func() client.Object{
		"cidr cannot be changed: create another subnet": func() client.Object { s := s.DeepCopy(); s.Spec.CIDR = "10.91.201.0/24"; return s },
		"zone cannot be changed: create another subnet": func() client.Object { s := s.DeepCopy(); s.Spec.Zone = "b"; return s },
		"a berth cannot be changed: delete its pod":     func() client.Object { b := b.DeepCopy(); b.Spec.HostName = "other"; return b },
	} {
		if err := c.Update(t.Context(), change()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want an error with %q", err, want)
		}
	}
	p.Spec.Tags = map[string]string{"team": "web"}
	if err := c.Update(t.Context(), p); err != nil {
		t.Errorf("a profile's tags can be changed: %v", err)
	}
}
