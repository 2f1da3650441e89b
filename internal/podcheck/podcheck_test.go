package podcheck

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
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
		"better: resources that no size has": {corev1.Pod{Spec: corev1.PodSpec{
			InitContainers: []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{"hugepages-2Mi": resource.MustParse("4Mi")}}}},
			Containers: []corev1.Container{{Resources: corev1.ResourceRequirements{Limits: corev1.ResourceList{
				"cpu": resource.MustParse("1"), "nvidia.com/gpu": resource.MustParse("1"), "example.com/none": resource.MustParse("0")}}}}}},
			"resources not supported: hugepages-2Mi, nvidia.com/gpu"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := strings.Join(Violations(&test.pod, Options{}), ", "); got != test.want {
				t.Fatalf("got  %q\nwant %q", got, test.want)
			}
			if findings := Findings(&test.pod, Options{}); len(findings) > 0 != (test.want != "") {
				t.Fatalf("findings %+v do not agree with %q", findings, test.want)
			}
		})
	}
}

// TestWaitsFor: only what can change is waited for.
func TestWaitsFor(t *testing.T) {
	with := func(change func(*corev1.PodSpec), claims ...string) *corev1.Pod {
		p := &corev1.Pod{}
		for _, c := range claims {
			p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: c, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c}}})
		}
		if change != nil {
			change(&p.Spec)
		}
		return p
	}
	lookup := func(_, name string) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume, error) {
		if name != "bound" {
			return &corev1.PersistentVolumeClaim{}, nil, nil
		}
		return &corev1.PersistentVolumeClaim{Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound}},
			&corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{}}}}, nil
	}
	hostNetwork := func(s *corev1.PodSpec) { s.HostNetwork = true }
	for name, test := range map[string]struct {
		pod  *corev1.Pod
		want string
	}{
		"nothing":                       {with(nil), ""},
		"facts 2.6: an unbound claim":   {with(nil, "bound", "data"), "PersistentVolumeClaim data to be bound to a volume of EFS or NFS"},
		"two claims, each once":         {with(nil, "a", "b", "a"), "PersistentVolumeClaim a, b to be bound to a volume of EFS or NFS"},
		"what cannot change, too":       {with(hostNetwork, "data"), ""},
		"a pod that Fargate can't have": {with(hostNetwork), ""},
	} {
		if got := WaitsFor(test.pod, Options{PVC: lookup}); got != test.want {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}
