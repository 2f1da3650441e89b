package podcheck

import (
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// claimed is a pod with the claim c as volume v, and a lookup that answers with phase and volume source.
func claimed(phase corev1.PersistentVolumeClaimPhase, source corev1.PersistentVolumeSource, err error) (*corev1.Pod, Options) {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns"}, Spec: corev1.PodSpec{Volumes: []corev1.Volume{{Name: "v",
		VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "c"}}}}}}
	return pod, Options{PVC: func(namespace, name string) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume, error) {
		if namespace != "ns" || name != "c" {
			return nil, nil, errors.New("asked for " + namespace + "/" + name)
		}
		if err != nil {
			return nil, nil, err
		}
		pvc := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "c"}, Status: corev1.PersistentVolumeClaimStatus{Phase: phase}}
		if phase != corev1.ClaimBound {
			return pvc, nil, nil
		}
		return pvc, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "y"}, Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: source}}, nil
	}}
}

func TestClaims(t *testing.T) {
	csi := func(driver string) corev1.PersistentVolumeSource {
		return corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: driver}}
	}
	tests := map[string]struct {
		phase  corev1.PersistentVolumeClaimPhase
		source corev1.PersistentVolumeSource
		err    error
		want   string
	}{
		"facts 4.2 row 4b: EFS":            {corev1.ClaimBound, csi("efs.csi.aws.com"), nil, ""},
		"facts 4.2 row 4b: not bound":      {corev1.ClaimPending, corev1.PersistentVolumeSource{}, nil, "v not supported because: PVC c not bound"},
		"facts 4.2 row 4b: another driver": {corev1.ClaimBound, csi("ebs.csi.aws.com"), nil, "v not supported because: PVC c bound to invalid PV y with CSI Driver: ebs.csi.aws.com"},
		"facts 4.2 row 4b: no CSI": {corev1.ClaimBound, corev1.PersistentVolumeSource{HostPath: &corev1.HostPathVolumeSource{}}, nil,
			"v not supported because: PVC c bound to invalid PV y with nil CSI spec"},
		"facts 4.2 row 4b: CR#1382": {"", corev1.PersistentVolumeSource{}, errors.New(`persistentvolumeclaim "c" not found`),
			`v not supported because: persistentvolumeclaim "c" not found`},
		"ours, a departure: NFS": {corev1.ClaimBound, corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{}}, nil, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			pod, opts := claimed(test.phase, test.source, test.err)
			want := []string(nil)
			if test.want != "" {
				want = []string{"volumes not supported: " + test.want}
			}
			if got := Violations(pod, opts); !slices.Equal(got, want) {
				t.Fatalf("got  %q\nwant %q", got, want)
			}
			if got := Violations(pod, Options{}); len(got) != 0 {
				t.Fatalf("claims were judged without a lookup: %q", got)
			}
		})
	}
}

func TestFieldsAndVolumes(t *testing.T) {
	yes, no := true, false
	volume := func(name string, source corev1.VolumeSource) corev1.Volume {
		return corev1.Volume{Name: name, VolumeSource: source}
	}
	all := &corev1.SecurityContext{Privileged: &yes, AllowPrivilegeEscalation: &yes,
		Capabilities: &corev1.Capabilities{Add: []corev1.Capability{"ALL", "CHOWN", "CAP_CHOWN"}}}
	tests := map[string]struct {
		spec corev1.PodSpec
		want string
	}{
		"facts 4.2 row 3: all three": {corev1.PodSpec{HostIPC: true, HostPID: true, HostNetwork: true}, "fields not supported: HostNetwork, HostPID, HostIPC"},
		"facts 4.2 row 4: what is allowed": {corev1.PodSpec{Volumes: []corev1.Volume{
			volume("a", corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{Medium: corev1.StorageMediumMemory}}),
			volume("b", corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{}}), volume("c", corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{}}),
			volume("d", corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{}}), volume("e", corev1.VolumeSource{DownwardAPI: &corev1.DownwardAPIVolumeSource{}}),
			volume("f", corev1.VolumeSource{NFS: &corev1.NFSVolumeSource{}})}}, ""},
		"facts 4.2 row 4: what is not": {corev1.PodSpec{Volumes: []corev1.Volume{
			volume("a", corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}), volume("b", corev1.VolumeSource{CSI: &corev1.CSIVolumeSource{}})}},
			"volumes not supported: a is of an unsupported volume Type, b is of an unsupported volume Type"},
		"facts 4.2 row 5: order inside a container": {corev1.PodSpec{Containers: []corev1.Container{{SecurityContext: all}}},
			"invalid SecurityContext fields: Capabilities added: ALL, CAP_CHOWN, AllowPrivilegeEscalation, Privileged"},
		"facts 4.2 row 5: init containers first": {corev1.PodSpec{InitContainers: []corev1.Container{{SecurityContext: &corev1.SecurityContext{Privileged: &yes}}},
			Containers: []corev1.Container{{SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: &yes}}}},
			"invalid SecurityContext fields: Privileged,AllowPrivilegeEscalation"},
		"facts 4.2: only an explicit true": {corev1.PodSpec{Containers: []corev1.Container{{SecurityContext: &corev1.SecurityContext{AllowPrivilegeEscalation: &no, Privileged: &no,
			Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}}}}}}, ""},
		"facts 4.2 row 7: hostIP of an init container": {corev1.PodSpec{InitContainers: []corev1.Container{{Ports: []corev1.ContainerPort{{HostIP: "127.0.0.1"}}}}},
			"port contains HostIP or HostPort"},
		"facts 4.2: not validated": {corev1.PodSpec{SecurityContext: &corev1.PodSecurityContext{Sysctls: []corev1.Sysctl{{Name: "a", Value: "1"}}},
			ShareProcessNamespace: &yes, HostAliases: []corev1.HostAlias{{IP: "10.0.0.1"}}}, ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := strings.Join(Violations(&corev1.Pod{Spec: test.spec}, Options{}), ", "); got != test.want {
				t.Fatalf("got  %q\nwant %q", got, test.want)
			}
		})
	}
}

// FuzzViolations: any pod is judged without a panic, twice the same, and never by an empty sentence.
func FuzzViolations(f *testing.F) {
	f.Add([]byte(`{"spec":{"hostNetwork":true,"volumes":[{"name":"v","hostPath":{"path":"/"}}],"containers":[{"name":"c","ports":[{"hostPort":80}]}]}}`))
	f.Add([]byte(`{"spec":{"volumes":[{"name":"v","persistentVolumeClaim":{"claimName":"c"}}],"initContainers":[{"securityContext":{"capabilities":{"add":["ALL"]}}}]}}`))
	f.Add([]byte(`{"metadata":{"annotations":{"kubernetes.io/egress-bandwidth":"1e-100000000"}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var pod corev1.Pod
		if json.Unmarshal(raw, &pod) != nil {
			return
		}
		nothing := Options{PVC: func(string, string) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume, error) {
			return nil, nil, nil
		}}
		got := Violations(&pod, nothing)
		if slices.Contains(got, "") || !slices.Equal(got, Violations(&pod, nothing)) {
			t.Fatalf("got %q", got)
		}
		if pod.Spec.HostNetwork && len(got) == 0 {
			t.Fatal("the host's network was allowed")
		}
	})
}
