package podcheck

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestViolations(t *testing.T) {
	yes := true
	privileged := corev1.Container{SecurityContext: &corev1.SecurityContext{Privileged: &yes}}
	caps := func(c ...corev1.Capability) corev1.Container {
		return corev1.Container{SecurityContext: &corev1.SecurityContext{Capabilities: &corev1.Capabilities{Add: c}}}
	}
	hostPort := corev1.Container{Ports: []corev1.ContainerPort{{HostPort: 80}}}
	tests := map[string]struct {
		pod  corev1.Pod
		want string
	}{
		"an ordinary pod": {corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{}}}}, ""},
		"facts 4.2: aws-efs-csi-driver#589": {corev1.Pod{Spec: corev1.PodSpec{HostNetwork: true,
			Containers: []corev1.Container{{SecurityContext: privileged.SecurityContext, Ports: hostPort.Ports}}}},
			"fields not supported: HostNetwork, invalid SecurityContext fields: Privileged, port contains HostIP or HostPort"},
		"facts 4.2: kube-s3#14": {corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{privileged},
			Volumes: []corev1.Volume{{Name: "mntdatas3fs", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{}}}}}},
			"invalid SecurityContext fields: Privileged, volumes not supported: mntdatas3fs is of an unsupported volume Type"},
		"facts 4.2: two containers": {corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{caps("DAC_READ_SEARCH"), caps("DAC_READ_SEARCH")}}},
			"invalid SecurityContext fields: Capabilities added: DAC_READ_SEARCH,Capabilities added: DAC_READ_SEARCH"},
		"facts 4.2: permitted capability": {corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{caps("NET_RAW")}}}, ""},
		"facts 4.2 row 2: DaemonSet": {corev1.Pod{ObjectMeta: metav1.ObjectMeta{OwnerReferences: []metav1.OwnerReference{{Kind: "DaemonSet"}}}},
			"DaemonSet not supported"},
		"facts 4.2 row 6: volumeDevices": {corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{VolumeDevices: []corev1.VolumeDevice{{}}}}}},
			"volumeDevices not supported"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := strings.Join(Violations(&test.pod, Options{}), ", "); got != test.want {
				t.Fatalf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}
