package v1alpha1

import (
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Finalizers of a Berth.
const (
	// FinalizerPod is held by the berth controller until the pod is gone: until then the machine runs, though the Berth was deleted.
	FinalizerPod = "berth.run/pod"
	// FinalizerHost is held by the host agent until nothing of the pod's machine is left on the host.
	FinalizerHost = "berth.run/host"
	// FinalizerNode is held by the berth controller until the Node object is gone.
	FinalizerNode = "berth.run/node"
)

// BerthNodeNameField selects Berths by the node that they name: the API server can, and berth-controller's cache has an index.
const BerthNodeNameField = "spec.nodeName"

// Annotations of a Berth that begin its timeline: the host agent copies them into the status.
const (
	// AnnotationAdmitted, of the pod and the Berth, is when the webhook saw the pod (RFC 3339 with nanoseconds).
	AnnotationAdmitted = "berth.run/admitted-at"
	// AnnotationPlaced is when host, subnet and address were chosen (RFC 3339 with nanoseconds).
	AnnotationPlaced = "berth.run/placed-at"
	// AnnotationCompleted is when the last container of a pod that Succeeded or Failed ended (RFC 3339), by the berth controller.
	AnnotationCompleted = "berth.run/completed-at"
)

// Conditions of a Berth, in the order in which they become true.
const (
	// ConditionNetworkReady: address, firewall and port 10250 of the pod are set up.
	ConditionNetworkReady = "NetworkReady"
	// ConditionNodeRegistered: the pod's kubelet runs and its Node exists.
	ConditionNodeRegistered = "NodeRegistered"
	// ConditionSandboxReady: the pod's sandbox runs.
	ConditionSandboxReady = "SandboxReady"
	// ConditionCompleted: the pod Succeeded or Failed and its sandbox is gone. Its kubelet goes on serving logs, but takes no room
	// on the host, and nothing is metered from Timeline.Completed on.
	ConditionCompleted = "Completed"
)

// PodReference names the pod that a Berth is for; it is in the Berth's namespace.
type PodReference struct {
	// name of the pod.
	// +required
	Name string `json:"name"`
	// uid of the pod.
	// +required
	UID types.UID `json:"uid"`
}

// Size is what a pod is given, and what is metered.
type Size struct {
	// cpu, such as 250m or 4.
	// +required
	CPU resource.Quantity `json:"cpu"`
	// memory, such as 512Mi or 30Gi.
	// +required
	Memory resource.Quantity `json:"memory"`
	// ephemeralStorage, such as 20Gi.
	// +required
	EphemeralStorage resource.Quantity `json:"ephemeralStorage"`
}

// Bandwidth limits a pod's link. A direction without a limit has that of the host.
type Bandwidth struct {
	// ingress to the pod, in bits per second, such as 10M.
	// +optional
	Ingress *resource.Quantity `json:"ingress,omitempty"`
	// egress from the pod, in bits per second.
	// +optional
	Egress *resource.Quantity `json:"egress,omitempty"`
}

// BerthSpec is what the scheduler decided. It never changes.
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a berth cannot be changed: delete its pod"
type BerthSpec struct {
	// pod that this machine is for.
	// +required
	Pod PodReference `json:"pod"`
	// profileName of the profile that the pod matched.
	// +required
	ProfileName string `json:"profileName"`
	// hostName of the Host that runs it.
	// +required
	HostName string `json:"hostName"`
	// nodeName of the Node that is made for the pod.
	// +required
	NodeName string `json:"nodeName"`
	// subnetName of the Subnet that the address is from.
	// +required
	SubnetName string `json:"subnetName"`
	// zone of the subnet.
	// +required
	Zone string `json:"zone"`
	// ip of the pod and of its node.
	// +kubebuilder:validation:Format=ipv4
	// +required
	IP string `json:"ip"`
	// size that the pod is given.
	// +required
	Size Size `json:"size"`
	// bandwidth as the pod's annotations kubernetes.io/ingress-bandwidth and egress-bandwidth limit it.
	// +optional
	Bandwidth *Bandwidth `json:"bandwidth,omitempty"`
	// isolation of the sandbox: microvm or gvisor.
	// +required
	Isolation Isolation `json:"isolation"`
	// isolationReason says, in a sentence, who asked for it and what the host has to do with it.
	// +optional
	IsolationReason string `json:"isolationReason,omitempty"`
	// allowPrivileged: the profile lets the pod's containers have all rights inside the pod's virtual machine.
	// +optional
	AllowPrivileged bool `json:"allowPrivileged,omitempty"`
}

// BerthPhase says where a Berth is in its life.
type BerthPhase string

// The phases of a Berth.
const (
	BerthPending     BerthPhase = "Pending"
	BerthRunning     BerthPhase = "Running"
	BerthCompleted   BerthPhase = "Completed"
	BerthTerminating BerthPhase = "Terminating"
)

// Timeline holds when each stage of the pod's start and end was reached. Usage is metered from it.
type Timeline struct {
	// podCreated is the pod's creation (whole seconds, from the API server).
	// +optional
	PodCreated *metav1.MicroTime `json:"podCreated,omitempty"`
	// admitted is when the webhook saw the pod.
	// +optional
	Admitted *metav1.MicroTime `json:"admitted,omitempty"`
	// placed is when host, subnet and address were chosen.
	// +optional
	Placed *metav1.MicroTime `json:"placed,omitempty"`
	// accepted is when the host agent took the berth up.
	// +optional
	Accepted *metav1.MicroTime `json:"accepted,omitempty"`
	// kubeletStarted is when the pod's kubelet process had its configuration.
	// +optional
	KubeletStarted *metav1.MicroTime `json:"kubeletStarted,omitempty"`
	// nodeRegistered is when the Node object existed.
	// +optional
	NodeRegistered *metav1.MicroTime `json:"nodeRegistered,omitempty"`
	// pullStarted is when the first image pull was asked for, if any.
	// +optional
	PullStarted *metav1.MicroTime `json:"pullStarted,omitempty"`
	// sandboxStarted is when the sandbox ran.
	// +optional
	SandboxStarted *metav1.MicroTime `json:"sandboxStarted,omitempty"`
	// containerStarted is when the first container ran.
	// +optional
	ContainerStarted *metav1.MicroTime `json:"containerStarted,omitempty"`
	// completed is when the last container of a pod that Succeeded or Failed ended. Metering ends here.
	// +optional
	Completed *metav1.MicroTime `json:"completed,omitempty"`
	// released is when nothing was left on the host.
	// +optional
	Released *metav1.MicroTime `json:"released,omitempty"`
}

// BerthStatus is the observed state of a Berth, written by the host agent.
type BerthStatus struct {
	// phase: Pending, Running, Completed or Terminating.
	// +optional
	Phase BerthPhase `json:"phase,omitempty"`
	// nodeVersion that the pod's node was made with (see status.nodeVersion of the Host).
	// +optional
	NodeVersion string `json:"nodeVersion,omitempty"`
	// timeline of the stages.
	// +optional
	Timeline Timeline `json:"timeline,omitempty"`
	// conditions, one per stage; Ready is the summary.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Berth is one pod's own machine: its node, sandbox, address and size. It is owned by the pod and gone with it.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Namespaced,categories=fargate
// +kubebuilder:selectablefield:JSONPath=`.spec.hostName`
// +kubebuilder:selectablefield:JSONPath=`.spec.nodeName`
// +kubebuilder:printcolumn:name="Pod",type=string,JSONPath=`.spec.pod.name`
// +kubebuilder:printcolumn:name="Phase",type=string,JSONPath=`.status.phase`
// +kubebuilder:printcolumn:name="CPU",type=string,JSONPath=`.spec.size.cpu`
// +kubebuilder:printcolumn:name="Memory",type=string,JSONPath=`.spec.size.memory`
// +kubebuilder:printcolumn:name="IP",type=string,JSONPath=`.spec.ip`
// +kubebuilder:printcolumn:name="Host",type=string,JSONPath=`.spec.hostName`
// +kubebuilder:printcolumn:name="Isolation",type=string,JSONPath=`.spec.isolation`
// +kubebuilder:printcolumn:name="Profile",type=string,priority=1,JSONPath=`.spec.profileName`
// +kubebuilder:printcolumn:name="Subnet",type=string,priority=1,JSONPath=`.spec.subnetName`
// +kubebuilder:printcolumn:name="Why this isolation",type=string,priority=1,JSONPath=`.spec.isolationReason`
// +kubebuilder:printcolumn:name="Zone",type=string,priority=1,JSONPath=`.spec.zone`
// +kubebuilder:printcolumn:name="Node Version",type=string,priority=1,JSONPath=`.status.nodeVersion`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Berth struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec BerthSpec `json:"spec"`
	// +optional
	Status BerthStatus `json:"status,omitempty"`
}

// BerthList is a list of Berth.
// +kubebuilder:object:root=true
type BerthList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Berth `json:"items"`
}
