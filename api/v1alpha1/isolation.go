package v1alpha1

import (
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Isolation is the kind of sandbox that separates a pod from its host.
// +kubebuilder:validation:Enum=auto;microvm;gvisor
type Isolation string

// The isolations.
const (
	// IsolationAuto takes microvm on hosts that proved it under KVM, else gvisor.
	IsolationAuto Isolation = "auto"
	// IsolationMicroVM runs the pod in a virtual machine of its own.
	IsolationMicroVM Isolation = "microvm"
	// IsolationGVisor runs the pod in a gVisor (runsc) sandbox.
	IsolationGVisor Isolation = "gvisor"
)

// Isolations lists them all.
var Isolations = []Isolation{IsolationAuto, IsolationMicroVM, IsolationGVisor}

// Validate is an error if i is neither empty, which leaves the choice to a default, nor one of Isolations.
func (i Isolation) Validate() error {
	if i == "" || slices.Contains(Isolations, i) {
		return nil
	}
	return fmt.Errorf("%q is not an isolation: use auto, microvm or gvisor", string(i))
}

// AnnotationIsolation, of a pod, asks for an isolation: auto, microvm or gvisor. The pod's profile must allow it
// (spec.allowedIsolations), else the pod is refused.
const AnnotationIsolation = "berth.run/isolation"

// Accelerator is what runs the processors of virtual machines.
// +kubebuilder:validation:Enum=kvm;tcg
type Accelerator string

// The accelerators.
const (
	// AcceleratorKVM is the processor's own virtualization.
	AcceleratorKVM Accelerator = "kvm"
	// AcceleratorTCG is QEMU's software emulation: every machine has it, and computing takes many times as long.
	AcceleratorTCG Accelerator = "tcg"
)

// IsolationProbe is what a host found out about one isolation.
type IsolationProbe struct {
	// isolation that was tried: microvm or gvisor.
	// +required
	Isolation Isolation `json:"isolation"`

	// usable says whether this host can run pods so.
	// +required
	Usable bool `json:"usable"`

	// accelerator of virtual machines, for microvm: kvm or tcg.
	// +optional
	Accelerator Accelerator `json:"accelerator,omitempty"`

	// message says, in a sentence, why it is so, and what to do about it where something can be done.
	// +optional
	Message string `json:"message,omitempty"`

	// time at which it was found out.
	// +optional
	Time metav1.Time `json:"time,omitempty"`
}
