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

// AnnotationClientRequestToken, of a profile, is the token of the request that created it; the same request, made again, finds it.
const AnnotationClientRequestToken = "berth.run/client-request-token"

// ConditionReady is the summary condition of every Berth object.
const ConditionReady = "Ready"

// ConditionAddressesAvailable of a FargateProfile: a subnet of it has a free address.
const ConditionAddressesAvailable = "AddressesAvailable"

// Sizing says how a pod's size follows from its requests.
// +kubebuilder:validation:Enum=table;exact
type Sizing string

// The ways of sizing.
const (
	// SizingTable takes the smallest of Fargate's 74 sizes that holds the requests and 256 MiB, as Amazon EKS does.
	SizingTable Sizing = "table"
	// SizingExact gives what is requested, in steps of 1m and 1Mi.
	SizingExact Sizing = "exact"
)

// Selector says which pods a profile takes: those that meet all of its fields. namespace and labels are those of Amazon EKS;
// matchExpressions and namespaceSelector are Berth's, and may exclude.
// +kubebuilder:validation:XValidation:rule="has(self.namespace) || has(self.namespaceSelector)",fieldPath=".namespace",reason=FieldValueRequired,message="Fargate Profile must have at least one selector with at least one namespace value. Write a namespace (* for all) or a namespaceSelector"
type Selector struct {
	// namespace that the pod is in. `*` stands for any number of characters, `?` for exactly one.
	// Needed, unless there is a namespaceSelector; with both, both must match.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +kubebuilder:validation:Pattern=`^[a-z0-9*?]([-a-z0-9*?]*[a-z0-9*?])?$`
	// +optional
	Namespace string `json:"namespace,omitempty"`

	// labels that the pod must have, all of them. Keys and values may hold `*` and `?`.
	// +kubebuilder:validation:MaxProperties=100
	// +optional
	Labels map[string]string `json:"labels,omitempty"`

	// matchExpressions that the pod's labels must meet, all of them: In, NotIn, Exists, DoesNotExist, without wildcards.
	// A pod that lacks the label meets NotIn and DoesNotExist. They count as labels for the quota.
	// +kubebuilder:validation:MaxItems=100
	// +kubebuilder:validation:XValidation:rule="self.all(e, e.operator in ['In', 'NotIn'] ? has(e.values) && size(e.values) > 0 : e.operator in ['Exists', 'DoesNotExist'] && (!has(e.values) || size(e.values) == 0))",message="operator In or NotIn needs values; Exists or DoesNotExist takes none; there are no others"
	// +listType=atomic
	// +optional
	MatchExpressions []metav1.LabelSelectorRequirement `json:"matchExpressions,omitempty"`

	// namespaceSelector that the labels of the pod's namespace must meet; every namespace has label
	// kubernetes.io/metadata.name with its name, so that NotIn of it excludes namespaces.
	// +optional
	NamespaceSelector *metav1.LabelSelector `json:"namespaceSelector,omitempty"`
}

// FargateProfileSpec is the desired state of a FargateProfile.
// +kubebuilder:validation:XValidation:rule="!has(self.tags) || self.tags.all(k, size(k) > 0 && size(k) <= 127 && size(self.tags[k]) <= 255)",message="a tag needs a key of 1 to 127 and a value of up to 255 characters"
// +kubebuilder:validation:XValidation:rule="self.selectors.all(s, !has(s.labels) || s.labels.all(k, size(k) > 0 && size(k) <= 127 && size(s.labels[k]) > 0 && size(s.labels[k]) <= 255))",message="a selector label needs a key of 1 to 127 and a value of 1 to 255 characters"
// +kubebuilder:validation:XValidation:rule="!has(self.allowPrivileged) || !self.allowPrivileged || (has(self.isolation) && self.isolation == 'microvm')",fieldPath=".allowPrivileged",message="allowPrivileged needs isolation microvm: only a virtual machine of the pod's own keeps a privileged container from the host"
type FargateProfileSpec struct {
	// podExecutionRoleArn is accepted for compatibility with Amazon EKS; Berth does not need it.
	// +kubebuilder:validation:MaxLength=2048
	// +kubebuilder:validation:XValidation:rule="self.matches('^arn:[^:]+:iam::[0-9]{12}:role/.+$')",message="Invalid Role Arn",messageExpression="\"Invalid Role Arn: '\" + self + \"'\""
	// +optional
	PodExecutionRoleArn string `json:"podExecutionRoleArn,omitempty"`

	// subnets by name, private ones only. Empty means every private subnet of the cluster.
	// +kubebuilder:validation:MaxItems=50
	// +listType=set
	// +optional
	Subnets []string `json:"subnets,omitempty"`

	// selectors: a pod that matches any of them runs on this profile.
	// +kubebuilder:validation:XValidation:rule="size(self) > 0",message="Fargate Profile requires at least one selector."
	// +kubebuilder:validation:MaxItems=100
	// +listType=atomic
	// +required
	Selectors []Selector `json:"selectors"`

	// tags are kept with the profile and appear in usage records; they are not put on pods.
	// +kubebuilder:validation:MaxProperties=50
	// +optional
	Tags map[string]string `json:"tags,omitempty"`

	// isolation of the profile's pods; empty is the cluster's default (`berth up --isolation`, berth-controller's --isolation).
	// `auto` takes microvm on hosts that proved it under KVM, else gvisor. With `microvm` or `gvisor` the pods wait for a host
	// that can run it.
	// +optional
	Isolation Isolation `json:"isolation,omitempty"`

	// allowedIsolations that a pod may ask for by annotation berth.run/isolation, in place of the profile's. A pod that asks for
	// another one is refused. Empty: pods may not choose.
	// +kubebuilder:validation:MaxItems=3
	// +listType=set
	// +optional
	AllowedIsolations []Isolation `json:"allowedIsolations,omitempty"`

	// allowPrivileged lets containers have all rights inside their pod's virtual machine: privileged, any added capability,
	// privilege escalation, unsafe sysctls. The host's namespaces and files stay out of reach. Only with isolation `microvm`, where the
	// machine and not the container is the boundary; a pod that chose another isolation (allowedIsolations) does not get it.
	// +optional
	AllowPrivileged bool `json:"allowPrivileged,omitempty"`

	// sizing of the profile's pods. `table` takes the smallest of Fargate's sizes that holds the pod's requests and 256 MiB.
	// `exact` gives what is requested, in steps of 1m and 1Mi: at least 10m and 64Mi, and 250m or 512Mi where nothing is
	// requested. The sandbox's own memory then comes out of the request.
	// +kubebuilder:default=table
	// +optional
	Sizing Sizing `json:"sizing,omitempty"`
}

// ProfileIssueCode says what kind of thing is wrong with a profile.
type ProfileIssueCode string

// The codes. The first three are of Amazon EKS's FargateProfileIssueCode (its fourth, PodExecutionRoleAlreadyInUse, is about IAM).
// The others are named after the exceptions with which EKS refuses a request: a profile that was applied cannot be refused for
// what is in other objects.
const (
	// IssueAccessDenied: the API server does not let a pod of the profile be deleted.
	IssueAccessDenied ProfileIssueCode = "AccessDenied"
	// IssueClusterUnreachable: no host that could run the profile's pods reports to the cluster.
	IssueClusterUnreachable ProfileIssueCode = "ClusterUnreachable"
	// IssueInternalFailure: a pod of the profile could not be deleted for another reason.
	IssueInternalFailure ProfileIssueCode = "InternalFailure"
	// IssueInvalidParameter: something in the spec is wrong, or a subnet that it names.
	IssueInvalidParameter ProfileIssueCode = "InvalidParameter"
	// IssueResourceLimitExceeded: the cluster has as many profiles as its quota allows.
	IssueResourceLimitExceeded ProfileIssueCode = "ResourceLimitExceeded"
)

// ProfileIssue is something that is wrong with a profile.
type ProfileIssue struct {
	// code: AccessDenied, ClusterUnreachable or InternalFailure, as Amazon EKS has them; InvalidParameter or ResourceLimitExceeded where
	// EKS would refuse the request.
	// +required
	Code ProfileIssueCode `json:"code"`

	// message says what is wrong and what to do.
	// +required
	Message string `json:"message"`

	// resourceIds of what has part in it: hosts by name, pods as namespace/name.
	// +listType=atomic
	// +optional
	ResourceIDs []string `json:"resourceIds,omitempty"`
}

// ProfileHealth is what is wrong with a profile, in the form of the Amazon EKS API.
type ProfileHealth struct {
	// issues; none if all is well.
	// +listType=atomic
	// +optional
	Issues []ProfileIssue `json:"issues,omitempty"`
}

// FargateProfileStatus is the observed state of a FargateProfile.
type FargateProfileStatus struct {
	// status in the words of the Amazon EKS API.
	// +optional
	Status ProfileStatus `json:"status,omitempty"`

	// health of the profile, in the words of the Amazon EKS API. Conditions say the same in those of Kubernetes.
	// +optional
	Health ProfileHealth `json:"health,omitzero"`

	// subnets that the profile's pods are spread over: those of the spec, or all private ones.
	// +listType=set
	// +optional
	Subnets []string `json:"subnets,omitempty"`

	// isolation that the profile's pods get if they do not choose: that of the spec, or the cluster's default.
	// +optional
	Isolation Isolation `json:"isolation,omitempty"`

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
// +kubebuilder:resource:scope=Cluster,shortName=fp,categories=fargate
// +kubebuilder:printcolumn:name="Status",type=string,JSONPath=`.status.status`
// +kubebuilder:printcolumn:name="Namespaces",type=string,JSONPath=`.spec.selectors[*].namespace`
// +kubebuilder:printcolumn:name="Isolation",type=string,JSONPath=`.status.isolation`
// +kubebuilder:printcolumn:name="Privileged",type=boolean,priority=1,JSONPath=`.spec.allowPrivileged`
// +kubebuilder:printcolumn:name="Sizing",type=string,priority=1,JSONPath=`.spec.sizing`
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
