package v1alpha1

import metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

// SubnetType says whether a subnet serves pods or load balancers.
// +kubebuilder:validation:Enum=private;public
type SubnetType string

// The types of a Subnet.
const (
	// SubnetPrivate serves pods: no route from outside, egress by NAT.
	SubnetPrivate SubnetType = "private"
	// SubnetPublic serves load balancers; a profile may not name it.
	SubnetPublic SubnetType = "public"
)

// SubnetSpec is the desired state of a Subnet.
type SubnetSpec struct {
	// cidr is the IPv4 range that pod addresses are taken from, /16 to /28. It cannot be changed.
	// The first four addresses and the last one are reserved, as in an Amazon VPC.
	// +kubebuilder:validation:XValidation:rule="isCIDR(self) && cidr(self).ip().family() == 4 && cidr(self).prefixLength() >= 16 && cidr(self).prefixLength() <= 28 && cidr(self) == cidr(self).masked()",message="cidr must be an IPv4 network address with a prefix of /16 to /28, such as 10.90.0.0/20"
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="cidr cannot be changed: create another subnet"
	// +kubebuilder:validation:MaxLength=18
	// +required
	CIDR string `json:"cidr"`

	// zone that the subnet is in. It cannot be changed.
	// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="zone cannot be changed: create another subnet"
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=63
	// +required
	Zone string `json:"zone"`

	// type of the subnet: private for pods, public for load balancers.
	// +kubebuilder:default=private
	// +optional
	Type SubnetType `json:"type,omitempty"`

	// natGateway lets pods of this subnet reach addresses outside the cluster, by NAT. Without, they reach pods, Services and load
	// balancers only. It can be changed; connections that were open go on to be judged by it.
	// +kubebuilder:default=true
	// +optional
	NATGateway *bool `json:"natGateway,omitempty"`
}

// SubnetStatus is the observed state of a Subnet.
type SubnetStatus struct {
	// availableIPs is how many addresses are free now.
	// +optional
	AvailableIPs int32 `json:"availableIPs"`

	// usedIPs is how many addresses pods hold now, including those that wait before they are used again.
	// +optional
	UsedIPs int32 `json:"usedIPs"`

	// heldIPs are the addresses that may not be given: pods hold them, or they rest. Written before an address is used, under a
	// lock of this object's version, so that no two controllers give the same one. Ranges such as 10.90.0.4-10.90.0.9.
	// +listType=atomic
	// +optional
	HeldIPs []string `json:"heldIPs,omitempty"`

	// conditions; Ready is the summary.
	// +listType=map
	// +listMapKey=type
	// +optional
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Subnet is a range of addresses in a zone.
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:scope=Cluster,categories=fargate
// +kubebuilder:printcolumn:name="Ready",type=string,JSONPath=`.status.conditions[?(@.type=="Ready")].status`
// +kubebuilder:printcolumn:name="CIDR",type=string,JSONPath=`.spec.cidr`
// +kubebuilder:printcolumn:name="Zone",type=string,JSONPath=`.spec.zone`
// +kubebuilder:printcolumn:name="Type",type=string,JSONPath=`.spec.type`
// +kubebuilder:printcolumn:name="Available",type=integer,JSONPath=`.status.availableIPs`
// +kubebuilder:printcolumn:name="Message",type=string,priority=1,JSONPath=`.status.conditions[?(@.type=="Ready")].message`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Subnet struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec SubnetSpec `json:"spec"`
	// +optional
	Status SubnetStatus `json:"status,omitempty"`
}

// SubnetList is a list of Subnet.
// +kubebuilder:object:root=true
type SubnetList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Subnet `json:"items"`
}
