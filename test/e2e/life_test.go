package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestLifeOfANode takes a pod's machine away in every way that a user has. Each time the pod ends, its Deployment makes
// another on a node of its own, and nothing of the old one stays.
func TestLifeOfANode(t *testing.T) {
	apply(t, "life.yaml")
	pod, node := running(t, "")
	t.Run("completed", completed)
	t.Run("cordoned", func(t *testing.T) {
		kubectl(t, "cordon", node)
		if state := kubectl(t, "get", "node", node, "-o", `jsonpath={.spec.unschedulable} {.status.conditions[?(@.type=="Ready")].status}`); state != "true True" {
			t.Errorf("the node is %q, want unschedulable and ready", state)
		}
		if now, on := running(t, ""); now != pod || on != node {
			t.Errorf("pod %s on %s was replaced by %s on %s", pod, node, now, on)
		}
		kubectl(t, "uncordon", node)
	})
	t.Run("a drain waits for the budget", func(t *testing.T) {
		out, err := berth("kubectl", "drain", node, "--timeout=4s") // kubectl tries again after five
		if err == nil || !strings.Contains(out, "Cannot evict pod as it would violate the pod's disruption budget.") {
			t.Errorf("%v, %s", err, out)
		}
		if now, _ := running(t, ""); now != pod {
			t.Errorf("pod %s was replaced by %s", pod, now)
		}
		kubectl(t, "delete", "pdb", "life")
	})
	for _, way := range []struct {
		name, event string
		take        func(pod, node string) []string
	}{
		{"drained", "", func(_, node string) []string { return []string{"drain", node, "--timeout=60s"} }},
		{"node deleted", "NodeDeleted", func(_, node string) []string { return []string{"delete", "node", node} }},
		{"berth deleted", "BerthDeleted", func(pod, _ string) []string {
			name := kubectl(t, "get", "berths", "-o", "jsonpath={.items[?(@.spec.pod.name==\""+pod+"\")].metadata.name}")
			return []string{"delete", "berth", name, "--timeout=60s"}
		}},
		{"deleted by force", "", func(pod, _ string) []string {
			return []string{"delete", "pod", pod, "--grace-period=0", "--force"}
		}},
	} {
		t.Run(way.name, func(t *testing.T) {
			uid := kubectl(t, "get", "pod", pod, "-o", "jsonpath={.metadata.uid}")
			kubectl(t, way.take(pod, node)...)
			if way.event != "" {
				shows(t, pod, "get", "events", "--field-selector", "reason="+way.event, "-o", "jsonpath={.items[*].involvedObject.name}")
			}
			eventually(t, func() string { return remains(uid, pod, node) })
			pod, node = running(t, pod)
		})
	}
}

// running waits for the Deployment's pod other than that one, and names it and its node.
func running(t *testing.T, other string) (pod, node string) {
	t.Helper()
	eventually(t, func() string {
		out, err := berth("kubectl", "get", "pods", "-l", "app=life", "-o",
			`jsonpath={range .items[?(@.status.phase=="Running")]}{.metadata.name} {.spec.nodeName} {.metadata.deletionTimestamp}{"\n"}{end}`)
		for line := range strings.Lines(out) {
			if f := strings.Fields(line); err == nil && len(f) == 2 && f[0] != other {
				pod, node = f[0], f[1]
				return ""
			}
		}
		return "no pod runs: " + out
	})
	return pod, node
}

// remains says what is left of a pod that has ended, in the cluster and on the machine.
func remains(uid, pod, node string) string {
	out, err := berth("kubectl", "get", "pods,berths,nodes", "-o", "name")
	if err != nil || strings.Contains(out, pod) || strings.Contains(out, node+"\n") {
		return "the cluster still has: " + out
	}
	for _, path := range []string{"/run/berth/nodes/" + uid, "/var/lib/berth/nodes/" + uid} {
		if _, err := os.Stat(path); err == nil {
			return path + " is still there"
		}
	}
	return cgroupOf(uid, "")
}

// cgroupOf says which of the pod's cgroups is there, or holds a process if file is cgroup.procs.
func cgroupOf(uid, file string) string {
	paths, _ := filepath.Glob("/sys/fs/cgroup/*/berth/" + uid)
	for _, path := range append(paths, "/sys/fs/cgroup/berth/"+uid) {
		if _, err := os.Stat(path); err != nil {
			continue
		}
		if file == "" {
			return path + " is still there"
		}
		if data, err := os.ReadFile(filepath.Join(path, file)); err != nil || len(data) > 0 {
			return path + " has processes: " + string(data)
		}
	}
	return ""
}

// completed: at the end of its last container a pod's sandbox goes and its room is free; logs and exit code stay.
func completed(t *testing.T) {
	shows(t, "True", "get", "berths", "-o", `jsonpath={.items[?(@.spec.pod.name=="ended")].status.conditions[?(@.type=="Completed")].status}`)
	uid := kubectl(t, "get", "pod", "ended", "-o", "jsonpath={.metadata.uid}")
	eventually(t, func() string { return cgroupOf(uid, "cgroup.procs") })
	if out := kubectl(t, "logs", "ended"); out != "the last words" {
		t.Errorf("its logs are %q", out)
	}
	if out := kubectl(t, "get", "pod", "ended", "-o", "jsonpath={.status.phase} {.status.containerStatuses[0].state.terminated.exitCode}"); out != "Failed 3" {
		t.Errorf("its status is %q", out)
	}
	ended := kubectl(t, "get", "pod", "ended", "-o", "jsonpath={.status.containerStatuses[0].state.terminated.finishedAt}")
	// Nothing else is bound to its node: to schedulers a node whose pod has ended is empty.
	shows(t, "0", "get", "node", kubectl(t, "get", "pod", "ended", "-o", "jsonpath={.spec.nodeName}"), "-o", "jsonpath={.status.allocatable.pods}")
	at := kubectl(t, "get", "berths", "-o", `jsonpath={.items[?(@.spec.pod.name=="ended")].status.timeline.completed}`)
	if strings.TrimSuffix(ended, "Z") != strings.TrimSuffix(at, ".000000Z") {
		t.Errorf("metering ends at %s, the container ended at %s", at, ended)
	}
}
