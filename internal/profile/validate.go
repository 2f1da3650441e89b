package profile

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
)

// Limits of a profile (facts 1.3, 1.6); those that EKS can raise are in Quotas.
const (
	maxNameLength = 100
	// maxLabelValue and maxLabelKey (a domain, a slash, a name) are Kubernetes' limits.
	maxLabelValue = 63
	maxLabelKey   = 253 + 1 + 63
)

// What a label's key and value are made of, and wildcards.
var (
	labelKey   = regexp.MustCompile(`^([-a-z0-9.*?]+/)?[-A-Za-z0-9_.*?]+$`)
	labelValue = regexp.MustCompile(`^[-A-Za-z0-9_.*?]*$`)
)

// Quotas of a cluster, adjustable as on EKS (facts 1.3).
type Quotas struct{ Profiles, Selectors, Labels int }

// DefaultQuotas are those of EKS.
var DefaultQuotas = Quotas{Profiles: 10, Selectors: 5, Labels: 5}

// Validate lists everything that is wrong with a profile, each as a sentence that names the field and what to do; the
// words are those of EKS where it has some (facts 1.6). subnets are those of the cluster, by name.
func Validate(name string, spec v1alpha1.FargateProfileSpec, subnets map[string]v1alpha1.Subnet) []string {
	return DefaultQuotas.Validate(name, spec, subnets)
}

// Validate is like the function of that name, with these quotas.
func (q Quotas) Validate(name string, spec v1alpha1.FargateProfileSpec, subnets map[string]v1alpha1.Subnet) []string {
	var wrong []string
	add := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	switch {
	case name == "":
		add("invalid Fargate profile: empty name")
	case strings.HasPrefix(name, eks.ReservedProfilePrefix):
		add("The fargate profile name starts with the reserved prefix: '%s'.", eks.ReservedProfilePrefix)
	case len(name) > maxNameLength:
		add("The Fargate profile name parameter should not be greater than %d characters.", maxNameLength)
	case len(name) > maxLabelValue:
		add("metadata.name: pods carry the profile's name as a label, so it has at most %d characters; choose a shorter one", maxLabelValue)
	}
	if len(spec.Selectors) == 0 {
		add("Fargate Profile requires at least one selector.")
	}
	if len(spec.Selectors) > q.Selectors {
		add("Fargate profile supports up to %d selectors: spec.selectors has %d; put the others into another profile", q.Selectors, len(spec.Selectors))
	}
	for i, s := range spec.Selectors {
		wrong = append(wrong, q.selector(name, i, s)...)
	}
	for _, n := range spec.Subnets {
		subnet, known := subnets[n]
		switch {
		case !known:
			add("spec.subnets: subnet %s does not exist; `kubectl get subnets` lists those that do", n)
		case subnet.Spec.Type == v1alpha1.SubnetPublic:
			add("Subnet %s provided in Fargate Profile is not a private subnet", n)
		default:
			if why := Conflict(&subnet, slices.Collect(maps.Values(subnets))); why != "" {
				add("spec.subnets: subnet %s cannot be used: %s", n, why)
			}
		}
	}
	return wrong
}

// selector lists what is wrong with the i-th selector of profile name.
func (q Quotas) selector(name string, i int, s v1alpha1.Selector) []string {
	var wrong []string
	add := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if s.Namespace == "" && s.NamespaceSelector == nil {
		add("invalid Fargate profile %q: invalid profile selector at index #%d: empty namespace", name, i)
	}
	if len(s.Labels)+len(s.MatchExpressions) > q.Labels {
		add("Request contains Selector with more than %d Label pairs", q.Labels)
	}
	for _, key := range slices.Sorted(maps.Keys(s.Labels)) {
		if !labelKey.MatchString(key) || len(key) > maxLabelKey {
			add("spec.selectors[%d].labels: no label can have key %q; * and ? are the wildcards", i, key)
		}
		if value := s.Labels[key]; !labelValue.MatchString(value) || len(value) > maxLabelValue {
			add("spec.selectors[%d].labels[%s]: no label can have value %q; * and ? are the wildcards", i, key, value)
		}
	}
	if _, err := metav1.LabelSelectorAsSelector(&metav1.LabelSelector{MatchExpressions: s.MatchExpressions}); err != nil {
		add("spec.selectors[%d].matchExpressions: %v; wildcards are for labels only", i, err)
	}
	if _, err := metav1.LabelSelectorAsSelector(s.NamespaceSelector); err != nil {
		add("spec.selectors[%d].namespaceSelector: %v; wildcards are for namespace only", i, err)
	}
	return wrong
}
