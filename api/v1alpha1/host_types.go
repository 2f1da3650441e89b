package v1alpha1

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// LabelHost, of each node, is the name of the Host that it is on, unless that is longer than a label's value may be. As a
// topologyKey it means the machine, where kubernetes.io/hostname means the pod's own node.
const LabelHost = "berth.run/host"

// HostSpec is the desired state of a Host.
type HostSpec struct {
	// zones that this machine serves: pods of the subnets of these zones may run on it.
	// +kubebuilder:validation:MinItems=1
	// +listType=set
	// +required
	Zones []string `json:"zones"`

	// unschedulable keeps new pods away; those that run stay.
	// +optional
	Unschedulable bool `json:"unschedulable,omitempty"`
}

// HostStatus is the observed state of a Host, written by its agent.
type HostStatus struct {
	// capacity of the machine that may be given to pods. CPU may be promised more often than it exists
	// (see cpuOvercommit of the agent), memory may not.
	// +optional
	Capacity corev1.ResourceList `json:"capacity,omitempty"`

	// free is capacity less the sizes of the berths on this host.
	// +optional
	Free corev1.ResourceList `json:"free,omitempty"`

	// isolations that this host proved that it can run: those of probes that are usable.
	// +listType=set
	// +optional
	Isolations []Isolation `json:"isolations,omitempty"`

	// probes say of each isolation whether this host can run it, and why.
	// +listType=map
	// +listMapKey=isolation
	// +optional
	Probes []IsolationProbe `json:"probes,omitempty"`

	// address of the machine.
	// +optional
	Address string `json:"address,omitempty"`

	// networks that this host is in by itself, such as 192.168.1.0/24. No subnet may overlap them.
	// +listType=atomic
	// +optional
	Networks []string `json:"networks,omitempty"`

	// agentVersion is the version of the host agent.
	// +optional
	AgentVersion string `json:"agentVersion,omitempty"`

	// nodeVersion names what nodes that are made now are made of: Kubernetes' version, and a digest of the programs. It changes
	// when one of them does.
	// +optional
	NodeVersion string `json:"nodeVersion,omitempty"`

	// heartbeatTime is when the agent last reported.
	// +optional
	HeartbeatTime metav1.Time `json:"heartbeatTime,omitempty"`

	// conditions; Ready is the summary.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Host is one machine of the fleet. Its agent creates and updates it.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=fargate
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="Zones",type=string,JSONPath=`.spec.zones`
// +kubebuilder:printcolumn:name="Free CPU",type=string,JSONPath=`.status.free.cpu`
// +kubebuilder:printcolumn:name="Free Memory",type=string,JSONPath=`.status.free.memory`
// +kubebuilder:printcolumn:name="Isolations",type=string,JSONPath=`.status.isolations`
// +kubebuilder:printcolumn:name="Node Version",type=string,priority=1,JSONPath=`.status.nodeVersion`
// +kubebuilder:printcolumn:name="Accelerator",type=string,JSONPath=`.status.probes[?(@.isolation=="microvm")].accelerator`
// +kubebuilder:printcolumn:name="MicroVM",type=string,priority=1,JSONPath=`.status.probes[?(@.isolation=="microvm")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Host struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec HostSpec `json:"spec"`
	// +optional
	Status HostStatus `json:"status,omitempty"`
}

// HostList is a list of Host.
// +kubebuilder:object:root=true
type HostList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Host `json:"items"`
}
