package profile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/berth-run/berth/api/v1alpha1"
)

// IsolationRequest is the isolation that a pod is to have, and who asks for it: "profile web", for example.
type IsolationRequest struct {
	Isolation v1alpha1.Isolation
	By        string
}

// IsolationFor is what a pod with the annotations is to run in on the profile; fallback is the cluster's default, for profiles
// that name none. refused says, in a sentence, why the pod may not have what it asks for by annotation; then the request is the
// profile's.
func IsolationFor(p *v1alpha1.FargateProfile, annotations map[string]string, fallback v1alpha1.Isolation) (request IsolationRequest, refused string) {
	request = IsolationRequest{p.Spec.Isolation, "profile " + p.Name}
	if p.Spec.Isolation == "" {
		request = IsolationRequest{cmp.Or(fallback, v1alpha1.IsolationAuto), "the cluster's default"}
	}
	text, asked := annotations[v1alpha1.AnnotationIsolation]
	if !asked {
		return request, ""
	}
	wish := v1alpha1.Isolation(text)
	if err := wish.Validate(); err != nil {
		return request, fmt.Sprintf("annotation %s: %v", v1alpha1.AnnotationIsolation, err)
	}
	switch {
	case wish == "": // as if it were not there
		return request, ""
	case slices.Contains(p.Spec.AllowedIsolations, wish):
		return IsolationRequest{wish, "annotation " + v1alpha1.AnnotationIsolation + " of the pod"}, ""
	case len(p.Spec.AllowedIsolations) == 0:
		return request, fmt.Sprintf("annotation %s: profile %s does not let pods choose their isolation", v1alpha1.AnnotationIsolation, p.Name)
	}
	var allowed []string
	for _, a := range p.Spec.AllowedIsolations {
		allowed = append(allowed, string(a))
	}
	return request, fmt.Sprintf("annotation %s: profile %s lets pods choose %s only, not %s", v1alpha1.AnnotationIsolation, p.Name, strings.Join(allowed, " or "), text)
}

// AllowsPrivileged tells whether containers of a pod that asks for the isolation may have all rights inside its sandbox.
func AllowsPrivileged(p *v1alpha1.FargateProfile, isolation v1alpha1.Isolation) bool {
	return p.Spec.AllowPrivileged && isolation == v1alpha1.IsolationMicroVM
}
