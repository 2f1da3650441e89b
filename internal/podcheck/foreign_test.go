package podcheck

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/internal/eks"
)

func TestForeign(t *testing.T) {
	daemon := corev1.Pod{ObjectMeta: metav1.ObjectMeta{OwnerReferences: []metav1.OwnerReference{{Kind: "DaemonSet"}}},
		Spec: corev1.PodSpec{SchedulerName: "default-scheduler", HostNetwork: true}}
	tests := map[string]struct {
		pod  corev1.Pod
		want string
	}{
		"facts 2.7: another scheduler's pod": {corev1.Pod{Spec: corev1.PodSpec{SchedulerName: "default-scheduler"}}, "Pod not supported: SchedulerName is not fargate-scheduler"},
		"facts 4.2: the kubelet's order":     {daemon, "Pod not supported: SchedulerName is not fargate-scheduler, DaemonSet not supported, fields not supported: HostNetwork"},
		"a pod of this scheduler":            {corev1.Pod{Spec: corev1.PodSpec{SchedulerName: eks.SchedulerName}}, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := ""
			if why := Foreign(&test.pod); len(why) > 0 {
				got = eks.MessageUnsupportedSpec(why)
			}
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestDebug(t *testing.T) {
	yes := true
	with := func(c corev1.EphemeralContainerCommon) []corev1.EphemeralContainer {
		return []corev1.EphemeralContainer{{EphemeralContainerCommon: c}}
	}
	adding := func(caps ...corev1.Capability) []corev1.EphemeralContainer {
		return with(corev1.EphemeralContainerCommon{SecurityContext: &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: caps}}})
	}
	tests := map[string]struct {
		containers []corev1.EphemeralContainer
		want       string
	}{
		"none":                                   {nil, ""},
		"kubectl debug as it comes":              {adding("SYS_PTRACE"), ""},
		"facts 4.2: capabilities":                {adding("SYS_PTRACE", "NET_ADMIN", "SYS_ADMIN"), "invalid SecurityContext fields: Capabilities added: NET_ADMIN, SYS_ADMIN"},
		"facts 4.2: kubectl debug as sysadmin":   {with(corev1.EphemeralContainerCommon{SecurityContext: &corev1.SecurityContext{Privileged: &yes}}), "invalid SecurityContext fields: Privileged"},
		"facts 4.2: the same ports and devices":  {with(corev1.EphemeralContainerCommon{VolumeDevices: []corev1.VolumeDevice{{}}}), "volumeDevices not supported"},
		"facts 4.2: privilege escalation, asked": {with(corev1.EphemeralContainerCommon{SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: &yes}}), "invalid SecurityContext fields: AllowPrivilegeEscalation"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			before := len(test.containers)
			if got := strings.Join(Debug(test.containers, Options{}), ", "); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
			if got := Debug(test.containers, Options{AllowPrivileged: true}); strings.Contains(strings.Join(got, ", "), "SecurityContext") {
				t.Errorf("where all rights are allowed: %q", got)
			}
			if len(test.containers) != before || name == "kubectl debug as it comes" && !slices.Contains(test.containers[0].SecurityContext.Capabilities.Add, tracing) {
				t.Error("the containers were changed")
			}
		})
	}
}
