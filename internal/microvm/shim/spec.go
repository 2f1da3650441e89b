package shim

import (
	"fmt"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// toGuest rewrites what a specification says about the host. The pod's network, host name and IPC are the machine's own; a process
// namespace that is shared is the machine's, or that of another container, by its process id in the guest.
func toGuest(spec *specs.Spec, id string, machine int) {
	spec.Hostname, spec.Domainname = "", ""
	spec.Hooks = nil
	if spec.Process != nil {
		spec.Process.ApparmorProfile, spec.Process.SelinuxLabel = "", ""
	}
	if spec.Linux == nil {
		return
	}
	spec.Linux.MountLabel = ""
	spec.Linux.CgroupsPath = "/pod/" + id
	spec.Linux.Sysctl = nil // the machine has them
	var kept []specs.LinuxNamespace
	for _, ns := range spec.Linux.Namespaces {
		switch ns.Type {
		case specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace:
			continue
		case specs.PIDNamespace:
			if strings.HasPrefix(ns.Path, fmt.Sprintf("/proc/%d/", machine)) {
				continue
			}
		case specs.CgroupNamespace:
			ns.Path = ""
		}
		kept = append(kept, ns)
	}
	spec.Linux.Namespaces = kept
}
