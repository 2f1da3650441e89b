package v1alpha1

// Isolation is the kind of sandbox that separates a pod from its host.
// +kubebuilder:validation:Enum=auto;microvm;gvisor
type Isolation string

const (
	// IsolationAuto takes microvm where the host proved it, else gvisor.
	IsolationAuto Isolation = "auto"
	// IsolationMicroVM runs the pod in a virtual machine of its own.
	IsolationMicroVM Isolation = "microvm"
	// IsolationGVisor runs the pod in a gVisor (runsc) sandbox.
	IsolationGVisor Isolation = "gvisor"
)
