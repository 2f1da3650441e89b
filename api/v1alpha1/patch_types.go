package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// Annotations of a Berth whose pod is being patched.
const (
	// AnnotationPatchNotified is the beginning of the round of patching that the pod's owner was told of (RFC 3339).
	AnnotationPatchNotified = "berth.run/patch-notified"
	// AnnotationScheduledTermination is when a pod that could not be evicted is terminated (RFC 3339 with nanoseconds).
	AnnotationScheduledTermination = "berth.run/scheduled-termination"
	// AnnotationNotice, of the event that says so, is the detail of EKS's event, in JSON.
	AnnotationNotice = "berth.run/detail"
)

// PatchPhase says where a Patch is.
type PatchPhase string

// The phases of a Patch.
const (
	// PatchWaiting for its window to open.
	PatchWaiting PatchPhase = "Waiting"
	// PatchPatching: pods are being evicted, zone by zone, or wait for their scheduled termination.
	PatchPatching PatchPhase = "Patching"
	// PatchComplete: no pod is left that it is for. With a window it looks again when that opens.
	PatchComplete PatchPhase = "Complete"
)

// PatchPods says which pods a Patch recycles.
// +kubebuilder:validation:Enum=Outdated;All
type PatchPods string

// The pods that a Patch recycles.
const (
	// PatchOutdated are those whose node is older than what their host makes now.
	PatchOutdated PatchPods = "Outdated"
	// PatchAll are all that were created before the patch began.
	PatchAll PatchPods = "All"
)

// MaintenanceWindow is when pods may be recycled.
type MaintenanceWindow struct {
	// days of the week on which the window opens; empty means every day.
	// +kubebuilder:validation:MaxItems=7
	// +kubebuilder:validation:items:Enum=Sun;Mon;Tue;Wed;Thu;Fri;Sat
	// +listType=set
	// +optional
	Days []string `json:"days,omitempty"`

	// start of the window, HH:MM in UTC.
	// +kubebuilder:validation:Pattern=`^([01][0-9]|2[0-3]):[0-5][0-9]$`
	// +required
	Start string `json:"start"`

	// duration of the window, such as 4h; at most a day.
	// +kubebuilder:validation:XValidation:rule="duration(self) > duration('0s') && duration(self) <= duration('24h')",message="a window lasts up to 24h"
	// +required
	Duration metav1.Duration `json:"duration"`
}

// PatchSpec is what a Patch is to do.
type PatchSpec struct {
	// window in which the patch works, again and again. Without one it works at once, and only once.
	// +optional
	Window *MaintenanceWindow `json:"window,omitempty"`

	// pods to recycle: Outdated (the default) or All.
	// +kubebuilder:default=Outdated
	// +optional
	Pods PatchPods `json:"pods,omitempty"`

	// terminationDelay is how long a pod stays that could not be evicted, because of its PodDisruptionBudget say, until it is
	// deleted regardless. With a window it is then the next time that the window is open.
	// +kubebuilder:default="72h"
	// +kubebuilder:validation:XValidation:rule="duration(self) >= duration('0s')",message="a delay is not negative"
	// +optional
	TerminationDelay *metav1.Duration `json:"terminationDelay,omitempty"`
}

// PatchStatus is how far a Patch has come.
type PatchStatus struct {
	// phase: Waiting, Patching or Complete.
	// +optional
	Phase PatchPhase `json:"phase,omitempty"`

	// startedAt is when the current, or the latest, round began: pods created before it are subject to eviction.
	// +optional
	StartedAt *metav1.Time `json:"startedAt,omitempty"`

	// zone whose pods are being evicted.
	// +optional
	Zone string `json:"zone,omitempty"`

	// remaining pods of the round.
	// +optional
	Remaining int32 `json:"remaining"`

	// blocked are those of them that could not be evicted and have a scheduled termination.
	// +optional
	Blocked int32 `json:"blocked"`

	// conditions; Ready is the summary.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Patch recycles pods whose nodes are older than what their hosts make now: it evicts them, zone by zone, so that their
// controllers make others. Nodes are never changed in place.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=patches,scope=Cluster,categories=fargate
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="Zone",type=string,JSONPath=`.status.zone`
// +kubebuilder:printcolumn:name="Remaining",type=integer,JSONPath=`.status.remaining`
// +kubebuilder:printcolumn:name="Blocked",type=integer,JSONPath=`.status.blocked`
// +kubebuilder:printcolumn:name="Window",type=string,JSONPath=`.spec.window.start`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Patch struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +optional
	Spec PatchSpec `json:"spec,omitempty"`
	// +optional
	Status PatchStatus `json:"status,omitempty"`
}

// PatchList is a list of Patch.
// +kubebuilder:object:root=true
type PatchList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Patch `json:"items"`
}
