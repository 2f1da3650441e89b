package cli

import (
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/cli-runtime/pkg/printers"

	"github.com/berth-run/berth/api/v1alpha1"
)

// eksctlProfile is a profile as `eksctl get fargateprofile -o json` prints it; what is wrong with it, as the EKS API has it.
type eksctlProfile struct {
	Name                string              `json:"name"`
	PodExecutionRoleARN string              `json:"podExecutionRoleARN,omitempty"`
	Selectors           []v1alpha1.Selector `json:"selectors"`
	Subnets             []string            `json:"subnets,omitempty"`
	Tags                map[string]string   `json:"tags,omitempty"`
	Status              string              `json:"status"`
	// Health is there if something is wrong.
	Health v1alpha1.ProfileHealth `json:"health,omitzero"`
}

func eksctlProfiles(profiles []v1alpha1.FargateProfile) []eksctlProfile {
	out := []eksctlProfile{}
	for _, p := range profiles {
		out = append(out, eksctlProfile{p.Name, p.Spec.PodExecutionRoleArn, p.Spec.Selectors, p.Status.Subnets, p.Spec.Tags, string(p.Status.Status), p.Status.Health})
	}
	return out
}

// printProfiles prints eksctl's columns, a line for each selector.
func printProfiles(out io.Writer, profiles []v1alpha1.FargateProfile) error {
	w := printers.GetNewTabWriter(out)
	fmt.Fprintln(w, "NAME\tSELECTOR_NAMESPACE\tSELECTOR_LABELS\tPOD_EXECUTION_ROLE_ARN\tSUBNETS\tTAGS\tSTATUS")
	for _, p := range profiles {
		for _, s := range p.Spec.Selectors {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n", p.Name, namespaces(s), conditions(s), none(p.Spec.PodExecutionRoleArn),
				none(strings.Join(p.Status.Subnets, ",")), pairs(p.Spec.Tags), p.Status.Status)
		}
	}
	return w.Flush()
}

// namespaces are a selector's namespace and, in kubectl's words, its namespaceSelector.
func namespaces(s v1alpha1.Selector) string {
	if s.NamespaceSelector == nil {
		return s.Namespace
	}
	return strings.Join(slices.DeleteFunc([]string{s.Namespace, "(" + metav1.FormatLabelSelector(s.NamespaceSelector) + ")"}, func(x string) bool { return x == "" }), " ")
}

// conditions are a selector's labels and, in kubectl's words, its matchExpressions.
func conditions(s v1alpha1.Selector) string {
	if len(s.MatchExpressions) == 0 {
		return pairs(s.Labels)
	}
	more := metav1.FormatLabelSelector(&metav1.LabelSelector{MatchExpressions: s.MatchExpressions})
	if len(s.Labels) == 0 {
		return more
	}
	return pairs(s.Labels) + "," + more
}

func pairs(m map[string]string) string {
	var out []string
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	sort.Strings(out)
	return none(strings.Join(out, ","))
}

func none(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}
