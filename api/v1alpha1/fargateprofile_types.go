package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// ProfileStatus is the life-cycle state of a FargateProfile, in the words of the Amazon EKS API.
// +kubebuilder:validation:Enum=CREATING;ACTIVE;DELETING;CREATE_FAILED;DELETE_FAILED
type ProfileStatus string

// The states of a FargateProfile.
const (
	ProfileCreating     ProfileStatus = "CREATING"
	ProfileActive       ProfileStatus = "ACTIVE"
	ProfileDeleting     ProfileStatus = "DELETING"
	ProfileCreateFailed ProfileStatus = "CREATE_FAILED"
	ProfileDeleteFailed ProfileStatus = "DELETE_FAILED"
)

// ConditionReady is the summary condition of every Berth object.
const ConditionReady = "Ready"

// Selector says which pods a profile takes: those of a namespace that carry all of the labels.
type Selector struct {
	// namespace that the pod is in. `*` stands for any number of characters, `?` for exactly one.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9*?]([-a-z0-9*?]*[a-z0-9*?])?$`
	// +required
	Namespace string `json:"namespace"`

	// labels that the pod must have, all of them. Keys and values may hold `*` and `?`.
	// +kubebuilder:validation:MaxProperties=100
	// +optional
	Labels map[string]string `json:"labels,omitempty"`
}

// FargateProfileSpec is the desired state of a FargateProfile.
// +kubebuilder:validation:XValidation:rule="self.selectors.all(s, !has(s.labels) || s.labels.all(k, size(k) > 0 && size(k) <= 127 && size(s.labels[k]) > 0 && size(s.labels[k]) <= 255))",message="a selector label needs a key of 1 to 127 and a value of 1 to 255 characters"
type FargateProfileSpec struct {
	// podExecutionRoleArn is accepted for compatibility with Amazon EKS; Berth does not need it.
	// +kubebuilder:validation:Pattern=`^arn:[^:]+:iam::[0-9]{12}:role/.+$`
	// +optional
	PodExecutionRoleArn string `json:"podExecutionRoleArn,omitempty"`

	// subnets by name, private ones only. Empty means every private subnet of the cluster.
	// +kubebuilder:validation:MaxItems=50
	// +listType=set
	// +optional
	Subnets []string `json:"subnets,omitempty"`

	// selectors: a pod that matches any of them runs on this profile.
	// +kubebuilder:validation:MinItems=1
	// +kubebuilder:validation:MaxItems=100
	// +listType=atomic
	// +required
	Selectors []Selector `json:"selectors"`

	// tags are kept with the profile and appear in usage records; they are not put on pods.
	// +kubebuilder:validation:MaxProperties=50
	// +optional
	Tags map[string]string `json:"tags,omitempty"`

	// isolation of the profile's pods. `auto` takes a microVM where the host proved that it can run one, else gVisor.
	// +kubebuilder:default=auto
	// +optional
	Isolation Isolation `json:"isolation,omitempty"`
}

// FargateProfileStatus is the observed state of a FargateProfile.
type FargateProfileStatus struct {
	// status in the words of the Amazon EKS API.
	// +optional
	Status ProfileStatus `json:"status,omitempty"`

	// subnets that the profile's pods are spread over: those of the spec, or all private ones.
	// +listType=set
	// +optional
	Subnets []string `json:"subnets,omitempty"`

	// observedGeneration is the generation of the spec that this status describes.
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`

	// conditions; Ready is the summary.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// FargateProfile names the pods that run on Berth: each gets a node and a sandbox of its own.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,shortName=fp,categories=berth
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.status`
// +kubebuilder:printcolumn:name="Namespaces",type=string,JSONPath=`.spec.selectors[*].namespace`
// +kubebuilder:printcolumn:name="Isolation",type=string,JSONPath=`.spec.isolation`
// +kubebuilder:printcolumn:name="Subnets",type=string,priority=1,JSONPath=`.status.subnets`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
// +kubebuilder:validation:XValidation:rule="!self.metadata.name.startsWith('eks-')",message="The fargate profile name starts with the reserved prefix: 'eks-'."
// +kubebuilder:validation:XValidation:rule="size(self.metadata.name) <= 100",message="The Fargate profile name parameter should not be greater than 100 characters."
type FargateProfile struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec FargateProfileSpec `json:"spec"`
	// +optional
	Status FargateProfileStatus `json:"status,omitempty"`
}

// FargateProfileList is a list of FargateProfile.
// +kubebuilder:object:root=true
type FargateProfileList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []FargateProfile `json:"items"`
}
