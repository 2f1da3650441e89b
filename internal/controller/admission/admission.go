// Package admission is the mutating webhook that marks the pods that a profile takes: on CREATE it sets their scheduler
// and the profile label, and nothing else that a user could see (facts 2.1 to 2.3).
package admission

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"gomodules.xyz/jsonpatch/v2"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/webhook/admission"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/profile"
)

// Path on which the webhook answers.
const Path = "/mutate"

// Handler answers admission reviews from Reader, which is the cache. Before it lets a pod go for good it asks Live, the API
// server, because a pod is often created milliseconds after its profile, by the same `kubectl apply`.
type Handler struct {
	Reader, Live client.Reader
	Now          func() time.Time
}

// Handle marks the pod if a profile takes it, and lets everything pass.
func (h *Handler) Handle(ctx context.Context, req admission.Request) admission.Response {
	if req.Kind.Group != "" || req.Kind.Kind != "Pod" || req.SubResource != "" {
		return admission.Allowed("not a pod")
	}
	var pod corev1.Pod
	if err := json.Unmarshal(req.Object.Raw, &pod); err != nil {
		return admission.Errored(http.StatusBadRequest, fmt.Errorf("decode the pod: %w", err))
	}
	ns, err := h.namespace(ctx, req.Namespace)
	if err != nil {
		return admission.Errored(http.StatusInternalServerError, err)
	}
	var decision profile.Decision
	for _, r := range []client.Reader{h.Reader, h.Live} {
		var profiles v1alpha1.FargateProfileList
		if err := r.List(ctx, &profiles); err != nil {
			return admission.Errored(http.StatusInternalServerError, fmt.Errorf("list profiles: %w", err))
		}
		if decision = profile.Select(profiles.Items, &pod, ns); decision.Profile != nil || decision.LeftAlone {
			break
		}
	}
	if decision.Profile == nil {
		return admission.Allowed(decision.Reason)
	}
	return admission.Patched(decision.Reason,
		jsonpatch.NewOperation("add", "/spec/schedulerName", eks.SchedulerName),
		setKey("/metadata/labels", pod.Labels, eks.LabelProfile, decision.Profile.Name),
		setKey("/metadata/annotations", pod.Annotations, v1alpha1.AnnotationAdmitted, h.Now().UTC().Format(time.RFC3339Nano)),
	)
}

// namespace of the pod. One that the cache does not know yet must not be taken for one without labels: selectors exclude by them.
func (h *Handler) namespace(ctx context.Context, name string) (profile.Namespace, error) {
	var ns corev1.Namespace
	err := h.Reader.Get(ctx, client.ObjectKey{Name: name}, &ns)
	if apierrors.IsNotFound(err) {
		err = h.Live.Get(ctx, client.ObjectKey{Name: name}, &ns)
	}
	if err != nil {
		return profile.Namespace{}, fmt.Errorf("get namespace %s: %w", name, err)
	}
	return profile.Namespace{Name: name, Labels: ns.Labels}, nil
}

// setKey patches one key of a map and no more: the pod may have fields that this program does not know of, so it is
// never written back as a whole.
func setKey(path string, m map[string]string, key, value string) jsonpatch.Operation {
	if len(m) == 0 {
		return jsonpatch.NewOperation("add", path, map[string]string{key: value})
	}
	escaped := strings.NewReplacer("~", "~0", "/", "~1").Replace(key)
	return jsonpatch.NewOperation("add", path+"/"+escaped, value)
}
