package podcheck

import (
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// TestAllowPrivileged: rights inside the virtual machine are given; what reaches for the host stays refused.
func TestAllowPrivileged(t *testing.T) {
	yes := true
	all := &corev1.SecurityContext{Privileged: &yes, AllowPrivilegeEscalation: &yes, Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"SYS_ADMIN", "ALL"}}}
	inside := corev1.PodSpec{InitContainers: []corev1.Container{{SecurityContext: all}}, Containers: []corev1.Container{{SecurityContext: all}}}
	host := *inside.DeepCopy()
	host.HostNetwork, host.HostPID, host.HostIPC = true, true, true
	host.Containers[0].Ports = []corev1.ContainerPort{{HostPort: 80}}
	host.Volumes = []corev1.Volume{{Name: "root", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/"}}}}
	for name, test := range map[string]struct {
		spec corev1.PodSpec
		want []string
	}{
		"all rights inside":      {inside, nil},
		"and what is the host's": {host, []string{"fields not supported: HostNetwork, HostPID, HostIPC", "volumes not supported: root is of an unsupported volume Type", "port contains HostIP or HostPort"}},
	} {
		t.Run(name, func(t *testing.T) {
			pod, opts := &corev1.Pod{Spec: test.spec}, Options{AllowPrivileged: true}
			if got := Violations(pod, opts); !slices.Equal(got, test.want) {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if findings := Findings(pod, opts); len(findings) > 0 != (len(test.want) > 0) {
				t.Errorf("findings %+v do not agree", findings)
			}
		})
	}
}

// TestIsolationRefused: the last of the violations, and one that can change.
func TestIsolationRefused(t *testing.T) {
	const why = "annotation berth.run/isolation: profile web does not let pods choose their isolation"
	opts := Options{IsolationRefused: &Refusal{Finding: Finding{"metadata.annotations[berth.run/isolation]", why, "remove it"}, WaitsFor: "the profile to change"}}
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{}}}}
	if got := Violations(pod, opts); !slices.Equal(got, []string{why}) {
		t.Errorf("got %q", got)
	}
	if got := WaitsFor(pod, opts); got != "the profile to change" {
		t.Errorf("it waits for %q", got)
	}
	if got := Findings(pod, opts); len(got) != 1 || got[0].Field != "metadata.annotations[berth.run/isolation]" || got[0].Problem != why {
		t.Errorf("findings %+v", got)
	}
	pod.Spec.HostNetwork = true
	if got := WaitsFor(pod, opts); got != "" {
		t.Errorf("a pod that can never run waits for %q", got)
	}
}
