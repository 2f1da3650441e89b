package placement

import (
	"fmt"
	"slices"
	"strings"

	"github.com/berth-run/berth/api/v1alpha1"
)

// IsolationError says that none of the hosts that could take the pod can run what it is to run in, and why.
type IsolationError struct {
	Isolation v1alpha1.Isolation
	// By is who asks for it.
	By string
	// Hosts say, each in a sentence, what is in the way there.
	Hosts []string
}

func (e *IsolationError) Error() string {
	return fmt.Sprintf("No host can run isolation %s, which %s asks for (%s)", e.Isolation, e.By, strings.Join(e.Hosts, "; "))
}

// WaitsFor is what would let the pod run.
func (e *IsolationError) WaitsFor() string {
	return fmt.Sprintf("a host that can run isolation %s", e.Isolation)
}

// isolated gives the candidates what the pod is to run in there, and leaves out those whose host, ready or not, cannot run
// it; cannot says why. It is an error if none is left: room that comes free would not help.
func isolated(in Input, candidates []candidate) (out []candidate, cannot []string, err error) {
	for _, c := range candidates {
		isolation, why := isolationOn(in.Isolation, c.host)
		if isolation == "" {
			cannot = append(cannot, why)
			continue
		}
		c.isolation = isolation
		out = append(out, c)
	}
	if len(out) == 0 && len(cannot) > 0 {
		return nil, nil, &IsolationError{Isolation: asked(in.Isolation), By: in.IsolationBy, Hosts: sorted(cannot)}
	}
	return out, cannot, nil
}

// isolationOn is what a pod that is to run in wish gets on the host, or else why it cannot have it.
func isolationOn(wish v1alpha1.Isolation, h HostState) (v1alpha1.Isolation, string) {
	isolation := asked(wish)
	if isolation == v1alpha1.IsolationAuto {
		isolation = v1alpha1.IsolationGVisor
		if h.underKVM() {
			isolation = v1alpha1.IsolationMicroVM
		}
	}
	if !slices.Contains(h.Isolations, isolation) {
		return "", fmt.Sprintf("host %s cannot run isolation %s%s", h.Name, isolation, because(h.probe(isolation)))
	}
	return isolation, ""
}

func asked(wish v1alpha1.Isolation) v1alpha1.Isolation {
	if wish == "" {
		return v1alpha1.IsolationAuto
	}
	return wish
}

// underKVM tells whether the host proved microvm with the processor's own virtualization.
func (h HostState) underKVM() bool {
	return slices.Contains(h.Isolations, v1alpha1.IsolationMicroVM) && h.probe(v1alpha1.IsolationMicroVM).Accelerator == v1alpha1.AcceleratorKVM
}

func (h HostState) probe(isolation v1alpha1.Isolation) v1alpha1.IsolationProbe {
	for _, p := range h.Probes {
		if p.Isolation == isolation {
			return p
		}
	}
	return v1alpha1.IsolationProbe{}
}

func because(p v1alpha1.IsolationProbe) string {
	if p.Message == "" {
		return ""
	}
	return ": " + p.Message
}

// IsolationReason says, in a sentence, why a choice made of the input has its isolation. Every Berth has it, so what the host found
// out in detail stays with the Host.
func IsolationReason(in Input, c Choice) string {
	i := slices.IndexFunc(in.Hosts, func(h HostState) bool { return h.Name == c.Host })
	if i < 0 {
		return ""
	}
	h := in.Hosts[i]
	vm := h.probe(v1alpha1.IsolationMicroVM)
	switch {
	case asked(in.Isolation) == v1alpha1.IsolationAuto && c.Isolation == v1alpha1.IsolationMicroVM:
		return fmt.Sprintf("%s says auto, and host %s proved microvm under KVM", in.IsolationBy, h.Name)
	case asked(in.Isolation) == v1alpha1.IsolationAuto:
		return fmt.Sprintf("%s says auto, and host %s has not proved microvm under KVM (its probes say why)", in.IsolationBy, h.Name)
	case c.Isolation == v1alpha1.IsolationMicroVM && vm.Accelerator != "":
		return fmt.Sprintf("%s asks for it; host %s runs it under %s", in.IsolationBy, h.Name, strings.ToUpper(string(vm.Accelerator)))
	}
	return in.IsolationBy + " asks for it"
}
