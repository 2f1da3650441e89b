package profile

import (
	"fmt"
	"strings"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
)

// Limits of a profile (facts 1.3, 1.6); those that EKS can raise are in Quotas.
const (
	maxNameLength = 100
	// maxLabelValue is Kubernetes' limit.
	maxLabelValue = 63
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
		if s.Namespace == "" {
			add("invalid Fargate profile %q: invalid profile selector at index #%d: empty namespace", name, i)
		}
		if len(s.Labels) > q.Labels {
			add("Request contains Selector with more than %d Label pairs", q.Labels)
		}
	}
	for _, n := range spec.Subnets {
		subnet, known := subnets[n]
		switch {
		case !known:
			add("spec.subnets: subnet %s does not exist; `kubectl get subnets` lists those that do", n)
		case subnet.Spec.Type == v1alpha1.SubnetPublic:
			add("Subnet %s provided in Fargate Profile is not a private subnet", n)
		}
	}
	return wrong
}
