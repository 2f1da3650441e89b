package podcheck

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
)

// permit is the way to rights that Fargate refuses.
const permit = ", or run it on a profile with isolation microvm and allowPrivileged"

// Finding is one violation where it stands in the manifest, and what to do about it.
type Finding struct {
	// Field is the path in the pod, such as spec.containers[0].securityContext.privileged.
	Field   string `json:"field"`
	Problem string `json:"problem"`
	Remedy  string `json:"remedy"`
}

// Findings are what Violations are about, field by field: there is a Finding if and only if there is a violation.
func Findings(pod *corev1.Pod, opts Options) []Finding {
	var out []Finding
	add := func(remedy, problem, field string, args ...any) {
		out = append(out, Finding{Field: fmt.Sprintf(field, args...), Problem: problem, Remedy: remedy})
	}
	for i, owner := range pod.OwnerReferences {
		if owner.Kind == "DaemonSet" {
			add("run it as a sidecar of the pods that need it, or leave it to other nodes (annotation eks.amazonaws.com/compute-type: ec2)",
				"a DaemonSet wants a pod on every node, and here every node has one pod", "metadata.ownerReferences[%d]", i)
			break
		}
	}
	for _, annotation := range []string{AnnotationIngress, AnnotationEgress} {
		if why := bandwidths(pod)[annotation]; why != "" {
			add("write bits per second, such as 10M, or remove it", why, "metadata.annotations[%s]", annotation)
		}
	}
	for _, f := range []struct {
		set  bool
		name string
	}{{pod.Spec.HostNetwork, "hostNetwork"}, {pod.Spec.HostPID, "hostPID"}, {pod.Spec.HostIPC, "hostIPC"}} {
		if f.set {
			add("remove it; the pod has an address of its own, and no host that it could share", "the host's namespaces are not the pod's", "spec.%s", f.name)
		}
	}
	for i := range pod.Spec.InitContainers {
		containerFindings(fmt.Sprintf("spec.initContainers[%d]", i), &pod.Spec.InitContainers[i], opts, add)
	}
	for i := range pod.Spec.Containers {
		containerFindings(fmt.Sprintf("spec.containers[%d]", i), &pod.Spec.Containers[i], opts, add)
	}
	for i, v := range pod.Spec.Volumes {
		one := &corev1.Pod{ObjectMeta: pod.ObjectMeta, Spec: corev1.PodSpec{Volumes: []corev1.Volume{v}}}
		for _, why := range volumes(one, opts) {
			remedy := "use emptyDir, configMap, secret, projected, downwardAPI, nfs, or a claim of an EFS or NFS volume"
			field := fmt.Sprintf("spec.volumes[%d]", i)
			if v.PersistentVolumeClaim != nil {
				field += ".persistentVolumeClaim"
				remedy = "bind the claim to a PersistentVolume of NFS or of CSI driver " + efsDriver + "; the pod starts by itself then"
			}
			add(remedy, "volume "+why, "%s", field)
		}
	}
	if opts.IsolationRefused != nil {
		out = append(out, opts.IsolationRefused.Finding)
	}
	return out
}

func containerFindings(path string, c *corev1.Container, opts Options, add func(remedy, problem, field string, args ...any)) {
	if !opts.AllowPrivileged && c.SecurityContext != nil {
		securityFindings(path+".securityContext", c.SecurityContext, add)
	}
	if len(c.VolumeDevices) > 0 {
		add("mount a file system (volumeMounts) instead", "block devices are not supported", "%s.volumeDevices", path)
	}
	for _, name := range foreignResources([]corev1.Container{*c}) {
		add("remove it; run the pod on a node that has it (annotation eks.amazonaws.com/compute-type: ec2)", "no size has "+name, "%s.resources", path)
	}
	for i, p := range c.Ports {
		if p.HostPort > 0 {
			add("remove it; the pod is reached at its own address, or through a Service, from outside one of type LoadBalancer", "there is no host whose port it could be", "%s.ports[%d].hostPort", path, i)
		}
		if p.HostIP != "" {
			add("remove it", "there is no host whose address it could be", "%s.ports[%d].hostIP", path, i)
		}
	}
}

func securityFindings(path string, sc *corev1.SecurityContext, add func(remedy, problem, field string, args ...any)) {
	if sc.Capabilities != nil {
		for i, capability := range sc.Capabilities.Add {
			if !permitted[capability] {
				add("remove it"+permit, fmt.Sprintf("capability %s may not be added", capability), "%s.capabilities.add[%d]", path, i)
			}
		}
	}
	if sc.AllowPrivilegeEscalation != nil && *sc.AllowPrivilegeEscalation {
		add("set it to false, or remove it"+permit, "privilege escalation is not allowed", "%s.allowPrivilegeEscalation", path)
	}
	if sc.Privileged != nil && *sc.Privileged {
		add("set it to false, or remove it"+permit, "privileged containers are not allowed", "%s.privileged", path)
	}
}
