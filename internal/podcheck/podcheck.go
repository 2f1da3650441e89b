// Package podcheck lists what Fargate refuses about a pod, in the words and the order of AWS's published validator
// (facts 4.2). Pure: lookups come in as a function.
package podcheck

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
)

// Options of a check.
type Options struct {
	// PVC looks up a claim and, if it is bound, its volume. Nil: claims are not judged.
	PVC func(namespace, name string) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume, error)
	// AllowPrivileged: containers may have all rights inside the pod's sandbox, as a profile with isolation microvm may permit.
	AllowPrivileged bool
	// IsolationRefused says why the pod may not have the isolation that it asks for (profile.IsolationFor); nil: it may.
	IsolationRefused *Refusal
}

// Refusal is a violation that the caller found, and what would change it.
type Refusal struct {
	Finding
	WaitsFor string
	// AtNode: the pod's node refuses it, the scheduler does not.
	AtNode bool
}

// efsDriver is the one CSI driver that Fargate mounts (facts 4.2, 4b).
const efsDriver = "efs.csi.aws.com"

// permitted capabilities to add: containerd's default set (facts 4.2).
var permitted = map[corev1.Capability]bool{
	"AUDIT_WRITE": true, "CHOWN": true, "DAC_OVERRIDE": true, "FOWNER": true, "FSETID": true, "KILL": true, "MKNOD": true,
	"NET_BIND_SERVICE": true, "NET_RAW": true, "SETFCAP": true, "SETGID": true, "SETPCAP": true, "SETUID": true, "SYS_CHROOT": true,
}

// Violations lists everything about the pod that Fargate refuses; empty means none. All checks run.
func Violations(pod *corev1.Pod, opts Options) []string {
	var out []string
	add := func(s string) {
		if s != "" {
			out = append(out, s)
		}
	}
	for _, owner := range pod.OwnerReferences {
		if owner.Kind == "DaemonSet" {
			add("DaemonSet not supported")
			break
		}
	}
	add(hostNamespaces(&pod.Spec))
	containers := append(append([]corev1.Container(nil), pod.Spec.InitContainers...), pod.Spec.Containers...)
	out = append(out, containerViolations(containers, volumes(pod, opts), opts)...)
	for _, annotation := range []string{AnnotationIngress, AnnotationEgress} {
		add(bandwidths(pod)[annotation])
	}
	if opts.IsolationRefused != nil && !opts.IsolationRefused.AtNode {
		add(opts.IsolationRefused.Problem)
	}
	return out
}

// foreignResources are those that no size has: GPUs and other extended resources, huge pages. EKS's validator does not know
// them; there the kubelet ignores an extended resource, and the pod runs without it.
func foreignResources(containers []corev1.Container) []string {
	seen := map[string]bool{}
	for i := range containers {
		for _, list := range []corev1.ResourceList{containers[i].Resources.Requests, containers[i].Resources.Limits} {
			for name, q := range list {
				switch name {
				case corev1.ResourceCPU, corev1.ResourceMemory, corev1.ResourceEphemeralStorage:
				default:
					seen[string(name)] = seen[string(name)] || !q.IsZero()
				}
			}
		}
	}
	maps.DeleteFunc(seen, func(_ string, asked bool) bool { return !asked })
	return slices.Sorted(maps.Keys(seen))
}

func hostNamespaces(spec *corev1.PodSpec) string {
	var fields []string
	for _, f := range []struct {
		set  bool
		name string
	}{{spec.HostNetwork, "HostNetwork"}, {spec.HostPID, "HostPID"}, {spec.HostIPC, "HostIPC"}} {
		if f.set {
			fields = append(fields, f.name)
		}
	}
	if len(fields) == 0 {
		return ""
	}
	return "fields not supported: " + strings.Join(fields, ", ")
}

func securityContexts(containers []corev1.Container) string {
	var lists []string
	for _, c := range containers {
		if fields := securityContext(c.SecurityContext); len(fields) > 0 {
			lists = append(lists, strings.Join(fields, ", "))
		}
	}
	if len(lists) == 0 {
		return ""
	}
	return "invalid SecurityContext fields: " + strings.Join(lists, ",")
}

func securityContext(sc *corev1.SecurityContext) []string {
	if sc == nil {
		return nil
	}
	var fields []string
	if sc.Capabilities != nil {
		var refused []string
		for _, c := range sc.Capabilities.Add {
			if !permitted[c] {
				refused = append(refused, string(c))
			}
		}
		if len(refused) > 0 {
			fields = append(fields, "Capabilities added: "+strings.Join(refused, ", "))
		}
	}
	if sc.AllowPrivilegeEscalation != nil && *sc.AllowPrivilegeEscalation {
		fields = append(fields, "AllowPrivilegeEscalation")
	}
	if sc.Privileged != nil && *sc.Privileged {
		fields = append(fields, "Privileged")
	}
	return fields
}

func volumes(pod *corev1.Pod, opts Options) []string {
	var out []string
	for _, v := range pod.Spec.Volumes {
		switch {
		case v.EmptyDir != nil, v.Secret != nil, v.ConfigMap != nil, v.Projected != nil, v.DownwardAPI != nil, v.NFS != nil:
		case v.PersistentVolumeClaim != nil:
			if opts.PVC == nil {
				continue
			}
			if why := claim(pod.Namespace, v.PersistentVolumeClaim.ClaimName, opts); why != "" {
				out = append(out, fmt.Sprintf("%s not supported because: %s", v.Name, why))
			}
		default:
			out = append(out, v.Name+" is of an unsupported volume Type")
		}
	}
	return out
}

func claim(namespace, name string, opts Options) string {
	pvc, pv, err := opts.PVC(namespace, name)
	switch {
	case err != nil:
		return err.Error()
	case pvc == nil || pvc.Status.Phase != corev1.ClaimBound || pv == nil:
		return fmt.Sprintf("PVC %s not bound", name)
	case pv.Spec.NFS != nil:
		return ""
	case pv.Spec.CSI == nil:
		return fmt.Sprintf("PVC %s bound to invalid PV %s with nil CSI spec", name, pv.Name)
	case pv.Spec.CSI.Driver != efsDriver:
		return fmt.Sprintf("PVC %s bound to invalid PV %s with CSI Driver: %s", name, pv.Name, pv.Spec.CSI.Driver)
	}
	return ""
}

// WaitsFor is what would let a pod with Violations run: its claims, or the profile and an annotation, if they are all that is
// wrong; the rest of a pod cannot be changed. Empty: nothing would.
func WaitsFor(pod *corev1.Pod, opts Options) string {
	if len(Violations(pod, Options{AllowPrivileged: opts.AllowPrivileged})) > 0 {
		return ""
	}
	if opts.IsolationRefused != nil && !opts.IsolationRefused.AtNode {
		return opts.IsolationRefused.WaitsFor
	}
	if opts.PVC == nil {
		return ""
	}
	var claims []string
	for _, name := range Claims(pod) {
		if claim(pod.Namespace, name, opts) != "" && !slices.Contains(claims, name) {
			claims = append(claims, name)
		}
	}
	if len(claims) == 0 {
		return ""
	}
	return "PersistentVolumeClaim " + strings.Join(claims, ", ") + " to be bound to a volume of EFS or NFS"
}

// Claims names the claims of a pod, in the order of its volumes.
func Claims(pod *corev1.Pod) []string {
	var names []string
	for _, v := range pod.Spec.Volumes {
		if v.PersistentVolumeClaim != nil {
			names = append(names, v.PersistentVolumeClaim.ClaimName)
		}
	}
	return names
}
