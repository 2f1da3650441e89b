package sizing

import (
	"errors"
	"math"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-run/berth/api/v1alpha1"
)

func container(requests, limits map[corev1.ResourceName]string) corev1.Container {
	list := func(m map[corev1.ResourceName]string) corev1.ResourceList {
		out := corev1.ResourceList{}
		for k, v := range m {
			if v != "" {
				out[k] = resource.MustParse(v)
			}
		}
		return out
	}
	return corev1.Container{Resources: corev1.ResourceRequirements{Requests: list(requests), Limits: list(limits)}}
}

func asking(cpu, memory string) corev1.Container {
	return container(map[corev1.ResourceName]string{corev1.ResourceCPU: cpu, corev1.ResourceMemory: memory}, nil)
}

func TestTableHas74Combinations(t *testing.T) {
	if got := len(Table()); got != 74 {
		t.Fatalf("got %d sizes, want 74 (facts 3.2)", got)
	}
}

func TestVectors(t *testing.T) {
	tests := map[string]struct{ cpu, memory, want string }{
		"facts 3.3: nothing asked (UG)":                {"", "", "0.25vCPU 0.5GB"},
		"facts 3.3: 250m 256Mi":                        {"250m", "256Mi", "0.25vCPU 0.5GB"},
		"facts 3.3: one MiB more":                      {"250m", "257Mi", "0.25vCPU 1GB"},
		"facts 3.3: 250m 512Mi (OBS)":                  {"250m", "512Mi", "0.25vCPU 1GB"},
		"facts 3.3: 250m 1792Mi":                       {"250m", "1792Mi", "0.25vCPU 2GB"},
		"facts 3.3: over the tier":                     {"250m", "1793Mi", "0.5vCPU 3GB"},
		"facts 3.3: 300m":                              {"300m", "", "0.5vCPU 1GB"},
		"facts 3.3: 1 8Gi (UG)":                        {"1", "8Gi", "2vCPU 9GB"},
		"facts 3.3: 1 4Gi (OBS)":                       {"1", "4Gi", "1vCPU 5GB"},
		"facts 3.3: 3 4Gi":                             {"3", "4Gi", "4vCPU 8GB"},
		"facts 3.3: 4 30Gi":                            {"4", "30Gi", "8vCPU 32GB"},
		"facts 3.3: 8 60Gi":                            {"8", "60Gi", "16vCPU 64GB"},
		"facts 3.3: largest":                           {"16", "122624Mi", "16vCPU 120GB"},
		"facts 3.3: 120Gi is too much":                 {"16", "120Gi", ""},
		"facts 3.3: 16001m is too much":                {"16001m", "", ""},
		"facts 3.2: GB is binary, 750M (OBS)":          {"", "750M", "0.25vCPU 1GB"},
		"facts 3.2: GB is binary, 2.5G at 1 CPU (OBS)": {"1", "2.5G", "1vCPU 3GB"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			size, err := ForPod(&corev1.PodSpec{Containers: []corev1.Container{asking(test.cpu, test.memory)}}, v1alpha1.SizingTable)
			if test.want == "" {
				if tooLarge := (*TooLargeError)(nil); !errors.As(err, &tooLarge) {
					t.Fatalf("got %v, %v, want a TooLargeError", size, err)
				}
				return
			}
			if err != nil || CapacityProvisioned(size) != test.want {
				t.Fatalf("got %q, %v, want %q", CapacityProvisioned(size), err, test.want)
			}
		})
	}
}

func TestContainersTogether(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	sidecar := asking("500m", "1Gi")
	sidecar.RestartPolicy = &always
	limited := container(nil, map[corev1.ResourceName]string{corev1.ResourceCPU: "1", corev1.ResourceMemory: "1Gi"})
	tests := map[string]struct {
		spec corev1.PodSpec
		want string
	}{
		"facts 3.1 rule 2: containers add up":          {corev1.PodSpec{Containers: []corev1.Container{asking("500m", "1Gi"), asking("500m", "1Gi")}}, "1vCPU 3GB"},
		"facts 3.1 rule 3: the larger of init and run": {corev1.PodSpec{InitContainers: []corev1.Container{asking("2", "")}, Containers: []corev1.Container{asking("", "3Gi")}}, "2vCPU 4GB"},
		"facts 3.4: a sidecar counts with the rest":    {corev1.PodSpec{InitContainers: []corev1.Container{sidecar}, Containers: []corev1.Container{asking("500m", "1Gi")}}, "1vCPU 3GB"},
		"facts 3.4: a request defaults to its limit":   {corev1.PodSpec{Containers: []corev1.Container{limited}}, "1vCPU 2GB"},
		"overhead does not count": {corev1.PodSpec{Containers: []corev1.Container{asking("500m", "")},
			Overhead: corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("2"), corev1.ResourceMemory: resource.MustParse("4Gi")}}, "0.5vCPU 1GB"},
		"the pod's own resources count before the containers'": {corev1.PodSpec{Containers: []corev1.Container{asking("500m", "1Gi")},
			Resources: &corev1.ResourceRequirements{Requests: asking("1", "3Gi").Resources.Requests}}, "1vCPU 4GB"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			size, err := ForPod(&test.spec, v1alpha1.SizingTable)
			if err != nil || CapacityProvisioned(size) != test.want {
				t.Fatalf("got %q, %v, want %q", CapacityProvisioned(size), err, test.want)
			}
		})
	}
}

func TestStorage(t *testing.T) {
	tests := map[string]struct{ asked, want string }{
		"facts 3.5: default 20 GiB":      {"", "20Gi"},
		"facts 3.5: little asked":        {"1Gi", "20Gi"},
		"facts 3.5: 100 GiB gives 115":   {"100Gi", "115Gi"},
		"facts 3.5: over 175 GiB is out": {"176Gi", ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := container(map[corev1.ResourceName]string{corev1.ResourceEphemeralStorage: test.asked}, nil)
			size, err := ForPod(&corev1.PodSpec{Containers: []corev1.Container{c}}, v1alpha1.SizingTable)
			if (err != nil) != (test.want == "") || err == nil && size.EphemeralStorage.String() != test.want {
				t.Fatalf("got %s, %v, want %q", size.EphemeralStorage.String(), err, test.want)
			}
		})
	}
}

func TestPrice(t *testing.T) {
	if got := PricePerHour(Table()[0]); math.Abs(got-0.0123425) > 1e-9 {
		t.Fatalf("got %v, want 0.0123425 (facts 7)", got)
	}
}

func TestExact(t *testing.T) {
	tests := map[string]struct{ cpu, memory, storage, want string }{
		"what is asked":                      {"333m", "100Mi", "", "333m 100Mi 20Gi"},
		"whole MiB":                          {"333m", "100M", "", "333m 96Mi 20Gi"},
		"no 256 MB":                          {"1", "8Gi", "", "1 8Gi 20Gi"},
		"no tiers":                           {"15", "65Mi", "", "15 65Mi 20Gi"},
		"nothing asked is the smallest":      {"", "", "", "250m 512Mi 20Gi"},
		"no memory asked":                    {"20m", "", "", "20m 512Mi 20Gi"},
		"no CPU asked":                       {"", "100Mi", "", "250m 100Mi 20Gi"},
		"as little as can be":                {"1m", "1", "", "10m 64Mi 20Gi"},
		"facts 3.5: storage is as elsewhere": {"1", "1Gi", "100Gi", "1 1Gi 115Gi"},
		"the largest":                        {"16", "120Gi", "", "16 120Gi 20Gi"},
		"too much CPU":                       {"16001m", "1Gi", "", ""},
		"too much memory":                    {"1", "122881Mi", "", ""},
		"too much storage":                   {"1", "1Gi", "176Gi", ""},
		"beyond 64 bits":                     {"1", "10000000E", "", ""},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			c := container(map[corev1.ResourceName]string{corev1.ResourceCPU: test.cpu, corev1.ResourceMemory: test.memory, corev1.ResourceEphemeralStorage: test.storage}, nil)
			size, err := ForPod(&corev1.PodSpec{Containers: []corev1.Container{c}}, v1alpha1.SizingExact)
			got := ""
			if err == nil {
				got = size.CPU.String() + " " + size.Memory.String() + " " + size.EphemeralStorage.String()
			}
			if got != test.want {
				t.Errorf("got %q (%v), want %q", got, err, test.want)
			}
		})
	}
}

// TestBeyondArithmetic: what the API server takes for a quantity is answered at once, though its arithmetic would take hours.
func TestBeyondArithmetic(t *testing.T) {
	for cpu, fits := range map[string]bool{"1e1000000000": false, "0e1000000000": true, "1e30": false} {
		for _, container := range []corev1.Container{asking(cpu, ""), container(nil, map[corev1.ResourceName]string{corev1.ResourceCPU: cpu})} {
			for _, spec := range []corev1.PodSpec{{Containers: []corev1.Container{container}}, {InitContainers: []corev1.Container{container}}, {Resources: &container.Resources}} {
				if spec.Resources != nil && len(spec.Resources.Requests) == 0 {
					continue // the API server has put the limit there
				}
				for _, sizing := range []v1alpha1.Sizing{v1alpha1.SizingTable, v1alpha1.SizingExact} {
					if _, err := ForPod(&spec, sizing); (err == nil) != fits {
						t.Errorf("%s of CPU, %s: %v", cpu, sizing, err)
					}
				}
			}
		}
	}
}
