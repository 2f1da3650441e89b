// Package v1alpha1 holds the types of the API group berth.run/v1alpha1:
// FargateProfile (which pods run on Berth), Subnet (where their addresses come
// from), Host (a machine that runs them) and Berth (one pod's own machine).
//
// It imports apimachinery and the core API only, so that anyone can import it.
//
// +kubebuilder:object:generate=true
// +groupName=berth.run
package v1alpha1
