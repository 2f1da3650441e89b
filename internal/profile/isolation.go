package profile

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/podcheck"
)

// IsolationRequest is the isolation that a pod is to have, and who asks for it: "profile web", for example.
type IsolationRequest struct {
	Isolation v1alpha1.Isolation
	By        string
}

// HandlerKnown tells whether a node runs a pod whose RuntimeClass has the handler: ordinaryHandler, or that of an isolation.
func HandlerKnown(handler string) bool {
	return handler == "" || handler == ordinaryHandler || v1alpha1.Isolation(handler).Validate() == nil
}

// ordinaryHandler of a RuntimeClass asks for no isolation: it is containerd's own, there on EKS as on most nodes.
const ordinaryHandler = "runc"

// IsolationFor is what a pod is to run in on the profile; fallback is the cluster's default, for profiles that name none. A pod
// asks for another by annotation, or by a RuntimeClass, which class looks up, with the handler of that isolation. refused says why
// it may not have it; then the request is the profile's.
func IsolationFor(p *v1alpha1.FargateProfile, pod *corev1.Pod, class func(name string) (*nodev1.RuntimeClass, error), fallback v1alpha1.Isolation) (request IsolationRequest, refused *podcheck.Refusal) {
	own := IsolationRequest{p.Spec.Isolation, "profile " + p.Name}
	if p.Spec.Isolation == "" {
		own = IsolationRequest{cmp.Or(fallback, v1alpha1.IsolationAuto), "the cluster's default"}
	}
	request = own
	asked, refused := wishes(pod, class)
	if refused != nil {
		return own, refused
	}
	for i, w := range asked {
		isolation := v1alpha1.Isolation(w.text)
		err := isolation.Validate()
		switch {
		case err != nil && w.class: // Kubernetes schedules such a pod
			no := w.refuse(eks.MessageNoRuntime(w.text), "")
			no.AtNode = true
			return own, no
		case err != nil:
			return own, w.refuse(err.Error(), "")
		case i > 0 && w.text != asked[0].text:
			return own, w.refuse(fmt.Sprintf("it asks for %s, and %s for %s", w.text, asked[0].by, asked[0].text), "")
		case slices.Contains(p.Spec.AllowedIsolations, isolation):
			request = IsolationRequest{isolation, w.by + " of the pod"}
		case isolation == own.Isolation: // what it has anyway
		case len(p.Spec.AllowedIsolations) == 0:
			return own, w.refuse(fmt.Sprintf("profile %s does not let pods choose their isolation", p.Name), waitsForProfile)
		default:
			return own, w.refuse(fmt.Sprintf("profile %s lets pods choose %s only, not %s", p.Name, list(p.Spec.AllowedIsolations), w.text), waitsForProfile)
		}
	}
	return request, nil
}

// wish is an isolation that a pod asks for, and where: in its RuntimeClass, if class.
type wish struct {
	text, by, field, remedy, waitsFor string
	class                             bool
}

const waitsForProfile = "the profile to allow that isolation"

// wishes of the pod; refused, if its RuntimeClass is not to be had.
func wishes(pod *corev1.Pod, class func(string) (*nodev1.RuntimeClass, error)) (out []wish, refused *podcheck.Refusal) {
	const annotation = v1alpha1.AnnotationIsolation
	if text := pod.Annotations[annotation]; text != "" {
		out = append(out, wish{text: text, by: "annotation " + annotation, field: "metadata.annotations[" + annotation + "]", remedy: "remove the annotation", waitsFor: "the annotation to change"})
	}
	if pod.Spec.RuntimeClassName == nil || class == nil {
		return out, nil
	}
	name := *pod.Spec.RuntimeClassName
	w := wish{class: true, by: "runtimeClassName " + name, field: "spec.runtimeClassName", remedy: "remove it, or name a RuntimeClass with handler gvisor or microvm"}
	c, err := class(name)
	if err != nil {
		return nil, w.refuse(err.Error(), "RuntimeClass "+name)
	}
	if w.text = c.Handler; w.text != ordinaryHandler {
		out = append(out, w)
	}
	return out, nil
}

func (w wish) refuse(why, waitsFor string) *podcheck.Refusal {
	r := &podcheck.Refusal{Finding: podcheck.Finding{Field: w.field, Problem: w.by + ": " + why, Remedy: w.remedy}, WaitsFor: waitsFor}
	if waitsFor == waitsForProfile {
		r.Remedy += ", or let the profile allow it (spec.allowedIsolations)"
	}
	if w.waitsFor != "" {
		r.WaitsFor = strings.TrimPrefix(waitsFor+", or "+w.waitsFor, ", or ")
	}
	return r
}

func list(isolations []v1alpha1.Isolation) string {
	var out []string
	for _, i := range isolations {
		out = append(out, string(i))
	}
	return strings.Join(out, " or ")
}

// AllowsPrivileged tells whether containers of a pod that asks for the isolation may have all rights inside its sandbox.
func AllowsPrivileged(p *v1alpha1.FargateProfile, isolation v1alpha1.Isolation) bool {
	return p.Spec.AllowPrivileged && isolation == v1alpha1.IsolationMicroVM
}
