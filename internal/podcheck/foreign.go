package podcheck

import (
	"strings"

	corev1 "k8s.io/api/core/v1"

	"github.com/berth-run/berth/internal/eks"
)

// schedulerViolation is of a pod that another scheduler, or nobody, placed on a Fargate node (facts 4.2, row 1).
const schedulerViolation = "SchedulerName is not " + eks.SchedulerName

// Foreign lists what the kubelet of a Fargate node refuses about a pod that was bound to it: everything, in the kubelet's
// order, if fargate-scheduler did not place it; nothing of a pod that it placed, which was judged then.
func Foreign(pod *corev1.Pod) []string {
	if pod.Spec.SchedulerName == eks.SchedulerName {
		return nil
	}
	return append([]string{schedulerViolation}, Violations(pod, Options{})...)
}

// tracing is the capability that kubectl debug adds by default.
const tracing = corev1.Capability("SYS_PTRACE")

// Debug lists what is refused about the ephemeral containers of a pod: the same as of others (facts 4.2), but for SYS_PTRACE,
// which reaches nothing outside the pod's own sandbox and without which `kubectl debug` would not work as it comes.
func Debug(containers []corev1.EphemeralContainer, opts Options) []string {
	var plain []corev1.Container
	for _, e := range containers {
		c := *(*corev1.Container)(e.EphemeralContainerCommon.DeepCopy())
		if sc := c.SecurityContext; sc != nil && sc.Capabilities != nil {
			var add []corev1.Capability
			for _, capability := range sc.Capabilities.Add {
				if capability != tracing {
					add = append(add, capability)
				}
			}
			sc.Capabilities.Add = add
		}
		plain = append(plain, c)
	}
	return containerViolations(plain, nil, opts)
}

// containerViolations are those of containers, in EKS's order; volumes are what is said of the pod's volumes.
func containerViolations(containers []corev1.Container, volumes []string, opts Options) []string {
	var out []string
	add := func(s string) {
		if s != "" {
			out = append(out, s)
		}
	}
	if !opts.AllowPrivileged {
		add(securityContexts(containers))
	}
	if len(volumes) > 0 {
		add("volumes not supported: " + strings.Join(volumes, ", "))
	}
	devices, ports := false, false
	for _, c := range containers {
		devices = devices || len(c.VolumeDevices) > 0
		for _, p := range c.Ports {
			ports = ports || p.HostPort > 0 || p.HostIP != ""
		}
	}
	if devices {
		add("volumeDevices not supported")
	}
	if ports {
		add("port contains HostIP or HostPort")
	}
	if names := foreignResources(containers); len(names) > 0 {
		add("resources not supported: " + strings.Join(names, ", "))
	}
	return out
}
