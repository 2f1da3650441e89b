package shim

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
)

// toGuest rewrites what a specification says about the host. The pod's network, host name and IPC are the machine's own; a process
// namespace that is shared is the machine's, or that of another container, by its process id in the guest. A privileged container gets the machine's
// devices, kernel modules and control groups; any other one sees its own control group only, whatever version of them the host has.
func toGuest(spec *specs.Spec, id string, machine int) {
	spec.Hostname, spec.Domainname = "", ""
	spec.Hooks = nil
	if spec.Process != nil {
		rewriteProcess(spec.Process)
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
		case specs.NetworkNamespace, specs.IPCNamespace, specs.UTSNamespace, specs.CgroupNamespace:
			continue
		case specs.PIDNamespace:
			if strings.HasPrefix(ns.Path, fmt.Sprintf("/proc/%d/", machine)) {
				continue
			}
		}
		kept = append(kept, ns)
	}
	if privileged(spec) {
		spec.Linux.Devices = append(spec.Linux.Devices, guestDevices()...)
		spec.Mounts = withModules(spec.Mounts)
	} else {
		kept = append(kept, specs.LinuxNamespace{Type: specs.CgroupNamespace})
	}
	spec.Linux.Namespaces = kept
}

// processToGuest rewrites the process of an exec likewise, in the form in which containerd sends it.
func processToGuest(packed *anypb.Any) error {
	var process specs.Process
	if err := json.Unmarshal(packed.GetValue(), &process); err != nil {
		return fmt.Errorf("the process's specification is not valid: %w", err)
	}
	rewriteProcess(&process)
	data, err := json.Marshal(process)
	if err != nil {
		return fmt.Errorf("encode the process's specification: %w", err)
	}
	packed.Value = data
	return nil
}

// rewriteProcess drops what is the host's: names of its security modules, what it lacks of capabilities. It limits the process.
func rewriteProcess(p *specs.Process) {
	p.ApparmorProfile, p.SelinuxLabel = "", ""
	widen(p.Capabilities, hostCapabilities())
	limitProcess(p)
}

// limitProcess gives a container Fargate's limits of open files and processes (facts 3.5); Kubernetes has no way to ask for others.
func limitProcess(p *specs.Process) {
	for _, kind := range []string{"RLIMIT_NOFILE", "RLIMIT_NPROC"} {
		p.Rlimits = slices.DeleteFunc(p.Rlimits, func(l specs.POSIXRlimit) bool { return l.Type == kind })
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: kind, Soft: 1024, Hard: 65535})
	}
}

// privileged tells whether a container may use every device.
func privileged(spec *specs.Spec) bool {
	if spec.Linux.Resources == nil {
		return false
	}
	for _, rule := range spec.Linux.Resources.Devices {
		if rule.Allow && (rule.Type == "" || rule.Type == "a") && rule.Major == nil && rule.Minor == nil {
			return true
		}
	}
	return false
}

// modulesDir is where the kernel's modules are, in the guest and in privileged containers.
const modulesDir = "/lib/modules"

// withModules adds the guest kernel's modules for who loads them by name, unless the pod mounts something else there.
func withModules(mounts []specs.Mount) []specs.Mount {
	if slices.ContainsFunc(mounts, func(m specs.Mount) bool { return m.Destination == modulesDir }) {
		return mounts
	}
	return append(mounts, specs.Mount{Type: "bind", Source: modulesDir, Destination: modulesDir, Options: []string{"bind", "ro"}})
}

// loopDevices is how many loop devices a privileged container finds; it can make more of them.
const loopDevices = 8

// guestDevices are the devices of the machine that a privileged container gets: user-space file systems, loop mounts, tunnels, the
// kernel's log. The guest's kernel loads the modules for them when they are opened.
func guestDevices() []specs.LinuxDevice {
	mode := os.FileMode(0o666)
	out := []specs.LinuxDevice{
		{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, FileMode: &mode},
		{Path: "/dev/net/tun", Type: "c", Major: 10, Minor: 200, FileMode: &mode},
		{Path: "/dev/loop-control", Type: "c", Major: 10, Minor: 237, FileMode: &mode},
		{Path: "/dev/kmsg", Type: "c", Major: 1, Minor: 11, FileMode: &mode},
	}
	for n := range int64(loopDevices) {
		out = append(out, specs.LinuxDevice{Path: fmt.Sprintf("/dev/loop%d", n), Type: "b", Major: 7, Minor: n, FileMode: &mode})
	}
	return out
}
