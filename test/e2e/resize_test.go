package e2e

import (
	"fmt"
	"strings"
	"testing"
)

// TestResize changes a running container's requests and limits: within the pod's size without a restart, beyond it not at all.
func TestResize(t *testing.T) {
	apply(t, "resize.yaml")
	kubectl(t, "wait", "--for=condition=Ready", "pod/resize", "--timeout=60s")
	resize := func(cpu, memory string) (string, error) {
		return berth("kubectl", "patch", "pod", "resize", "--subresource", "resize", "-p", fmt.Sprintf(
			`{"spec":{"containers":[{"name":"main","resources":{"requests":{"cpu":%q,"memory":%q},"limits":{"cpu":%q,"memory":%q}}}]}}`, cpu, memory, cpu, memory))
	}
	for _, size := range [][2]string{{"200m", "150Mi"}, {"50m", "120Mi"}} {
		if out, err := resize(size[0], size[1]); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		shows(t, fmt.Sprintf(`{"limits":{"cpu":%q,"memory":%q},"requests":{"cpu":%q,"memory":%q}} 0 []`, size[0], size[1], size[0], size[1]), "get", "pod", "resize", "-o",
			`jsonpath={.status.containerStatuses[0].resources} {.status.containerStatuses[0].restartCount} [{.status.conditions[?(@.type=="PodResizeInProgress")].message}]`)
	}
	if out, err := resize("2", "150Mi"); err == nil || !strings.Contains(out, "node didn't have enough allocatable resources: cpu, requested: 2000, allocatable: 250") {
		t.Errorf("a container was made larger than its pod: %v\n%s", err, out)
	}
}
