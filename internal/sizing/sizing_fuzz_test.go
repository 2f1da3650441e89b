package sizing

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-run/berth/api/v1alpha1"
)

// FuzzForPod: quantities as people write them, in init containers, sidecars and containers. Never a panic, never less than
// was asked, never a size outside the table, and exact is never more than the table gives.
func FuzzForPod(f *testing.F) {
	f.Add("250m", "256Mi", "1Gi", uint8(0))
	f.Add("16", "122624Mi", "175Gi", uint8(1))
	f.Add("1e30", "999999999999999999999E", "0.1m", uint8(2))
	f.Add("9223372036854775807", "9223372036854775807", "9223372036854775807", uint8(3))
	f.Add("1e1000000000", "0", "1E300000", uint8(1))
	f.Add("0.1", "1e20", "1n", uint8(0))
	f.Fuzz(func(t *testing.T, cpu, memory, storage string, kind uint8) {
		asked := corev1.ResourceList{}
		for name, text := range map[corev1.ResourceName]string{corev1.ResourceCPU: cpu, corev1.ResourceMemory: memory, corev1.ResourceEphemeralStorage: storage} {
			if strings.Contains(text, "-") {
				return // the API server takes none, and the parser itself takes minutes for 1e-100000000
			}
			q, err := resource.ParseQuantity(text)
			if err != nil {
				return
			}
			asked[name] = q
		}
		spec := podOf(asked, kind)
		need := Requests(spec)
		table, err := ForPod(spec, v1alpha1.SizingTable)
		if err == nil {
			holds(t, table, need)
			inTable(t, table)
		}
		exact, exactErr := ForPod(spec, v1alpha1.SizingExact)
		if exactErr != nil {
			if err == nil {
				t.Fatalf("%v is too large for exact, but the table has %v", need, table)
			}
			return
		}
		holds(t, exact, need)
		if exact.Memory.Value()%(1<<20) != 0 {
			t.Fatalf("%s are no whole MiB", exact.Memory.String())
		}
		if err == nil && (exact.CPU.Cmp(table.CPU) > 0 || exact.Memory.Cmp(table.Memory) > 0) {
			t.Fatalf("exact gives %v, the table %v", exact, table)
		}
	})
}

// podOf puts the requests into an init container, a sidecar, two containers, or all of them as limits only.
func podOf(asked corev1.ResourceList, kind uint8) *corev1.PodSpec {
	always := corev1.ContainerRestartPolicyAlways
	c := corev1.Container{Resources: corev1.ResourceRequirements{Requests: asked}}
	switch kind % 4 {
	case 0:
		return &corev1.PodSpec{InitContainers: []corev1.Container{c}, Containers: []corev1.Container{{}}}
	case 1:
		sidecar := c
		sidecar.RestartPolicy = &always
		return &corev1.PodSpec{InitContainers: []corev1.Container{sidecar, c}, Containers: []corev1.Container{c}}
	case 2:
		return &corev1.PodSpec{Containers: []corev1.Container{c, c}}
	}
	return &corev1.PodSpec{Containers: []corev1.Container{{Resources: corev1.ResourceRequirements{Limits: asked}}}}
}

func holds(t *testing.T, s v1alpha1.Size, need corev1.ResourceList) {
	t.Helper()
	if s.CPU.Cmp(*need.Cpu()) < 0 || s.Memory.Cmp(*need.Memory()) < 0 || s.EphemeralStorage.Cmp(*need.StorageEphemeral()) < 0 {
		t.Fatalf("%v holds less than %v", s, need)
	}
}

func inTable(t *testing.T, s v1alpha1.Size) {
	t.Helper()
	for _, other := range Table() {
		if other.CPU.Equal(s.CPU) && other.Memory.Equal(s.Memory) {
			return
		}
	}
	t.Fatalf("%v is not in the table", s)
}
