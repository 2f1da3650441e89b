package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestRules checks rules of EKS Fargate, and what Berth does better, on real pods (docs/reference/eks-fargate.md).
func TestRules(t *testing.T) {
	apply(t, "rules.yaml")
	kubectl(t, "wait", "--for=condition=Ready", "pod/limited", "--timeout=90s")
	// What programs see of 1 GiB, in KiB: a virtual machine's kernel keeps some of it.
	visible := map[string]string{"gvisor": "1048576", "microvm": "900000"}
	for name, check := range map[string]struct{ command, want string }{
		"facts 3.5: nofile and nproc, soft":  {"ulimit -Sn; ulimit -Su", "1024\n1024"},
		"facts 3.5: nofile and nproc, hard":  {"ulimit -Hn; ulimit -Hu", "65535\n65535"},
		"facts 3.5: memory in /dev/shm":      {"dd if=/dev/zero of=/dev/shm/x bs=1M count=100 2>/dev/null && ls -l /dev/shm/x | awk '{print $5}'", "104857600"},
		"facts 3.5: memory in an emptyDir":   {"dd if=/dev/zero of=/memory/x bs=1M count=100 2>/dev/null && ls -l /memory/x | awk '{print $5}'", "104857600"},
		"facts 3.4: what the round-up gives": {"[ $(grep MemTotal /proc/meminfo | awk '{print $2}') -ge " + visible[isolation] + " ] && echo enough", "enough"},
	} {
		t.Run(name, func(t *testing.T) {
			if out := kubectl(t, "exec", "limited", "--", "bash", "-c", check.command); out != check.want {
				t.Errorf("%s prints %q, want %q", check.command, out, check.want)
			}
		})
	}
	t.Run("facts 3.5: nproc is enforced", testProcessLimit)
	t.Run("facts 2.5: events in order", testEvents)
	t.Run("facts 2.7: a foreign pod fails", testForeignPod)
	t.Run("facts 4.2: debug containers", testDebugContainers)
	t.Run("spread over zones", testSpread)
	t.Run("DaemonSets take no pod's place", testDaemonSet)
	t.Run("waits for another pod", testWaitsForAnother)
	t.Run("facts 6: patch", testPatch)
}

// testProcessLimit lowers the limit first: a thousand processes take a pod of this size more than a minute. The processes outlive the
// 15 seconds for which bash tries again. They are an ordinary user's: Linux exempts root, in a virtual machine here as on Fargate.
func testProcessLimit(t *testing.T) {
	const script = "ulimit -u 40; i=0; while [ $i -lt 50 ]; do sleep 60 >/dev/null 2>&1 & i=$((i+1)); done; echo all"
	out, _ := berth("kubectl", "exec", "limited", "--", "setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "bash", "-c", script)
	if !strings.Contains(out, "fork: ") || strings.Contains(out, "all") {
		t.Errorf("50 processes, of which 40 are allowed: %s", out)
	}
}

func testEvents(t *testing.T) {
	eventually(t, func() string {
		out, err := berth("kubectl", "get", "events", "--field-selector", "involvedObject.name=limited", "--sort-by", ".firstTimestamp", "-o", `jsonpath={range .items[*]}{.source.component} {.type} {.reason} {.message}{"\n"}{end}`)
		node := kubectl(t, "get", "pod", "limited", "-o", "jsonpath={.spec.nodeName}")
		for _, want := range []string{
			`fargate-scheduler Warning LoggingDisabled Disabled logging because aws-logging configmap was not found. configmap "aws-logging" not found`,
			"fargate-scheduler Normal Scheduled Successfully assigned default/limited to " + node,
			"kubelet Normal Started ",
		} {
			if err != nil || !strings.Contains(out, want) {
				return fmt.Sprintf("no %q in:\n%s", want, out)
			}
		}
		return ""
	})
	annotations := kubectl(t, "get", "pod", "limited", "-o", "jsonpath={.metadata.annotations.CapacityProvisioned}, {.metadata.annotations.Logging}")
	if want := "0.25vCPU 1GB, LoggingDisabled: LOGGING_CONFIGMAP_NOT_FOUND"; annotations != want {
		t.Errorf("annotations are %q, want %q", annotations, want)
	}
}

func testForeignPod(t *testing.T) {
	node := kubectl(t, "get", "pod", "limited", "-o", "jsonpath={.spec.nodeName}")
	file := filepath.Join(t.TempDir(), "foreign.yaml")
	manifest := "apiVersion: v1\nkind: Pod\nmetadata: {name: foreign}\nspec: {nodeName: " + node + ", containers: [{name: c, image: busybox}]}\n"
	if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kubectl(t, "delete", "pod", "foreign", "--ignore-not-found", "--timeout=60s") })
	kubectl(t, "apply", "-f", file)
	shows(t, "Failed UnsupportedPodSpec Pod was rejected: Pod not supported: SchedulerName is not fargate-scheduler",
		"get", "pod", "foreign", "-o", "jsonpath={.status.phase} {.status.reason} {.status.message}")
	kubectl(t, "wait", "--for=condition=Ready", "pod/limited", "--timeout=10s")
}

func testDebugContainers(t *testing.T) {
	out, err := berth("kubectl", "debug", "limited", "--image=busybox", "--profile=sysadmin", "--", "true")
	if err == nil || !strings.Contains(out, "Pod not supported on Fargate: invalid SecurityContext fields: Privileged") {
		t.Errorf("a privileged debug container: %v, %s", err, out)
	}
	kubectl(t, "debug", "limited", "--image=busybox", "--container=look", "--", "echo", "in the pod")
	shows(t, "in the pod", "logs", "limited", "--container=look")
}

// zones of the Deployment's pods that are ready.
func zones(t *testing.T) []string {
	t.Helper()
	ready := kubectl(t, "get", "pods", "-l", "app=spread", "-o", `jsonpath={range .items[?(@.status.phase=="Running")]}{.metadata.name}{"\n"}{end}`)
	var out []string
	for name := range strings.FieldsSeq(ready) {
		out = append(out, kubectl(t, "get", "berths", "-o", `jsonpath={.items[?(@.spec.pod.name=="`+name+`")].spec.zone}`))
	}
	slices.Sort(out)
	return out
}

func testSpread(t *testing.T) {
	kubectl(t, "rollout", "status", "deployment/rules", "--timeout=90s")
	if got := strings.Join(zones(t), " "); got != "local-1a local-1b local-1c" {
		t.Errorf("three pods that spread over zones are in %s", got)
	}
	if got := kubectl(t, "get", "nodes", "-l", "berth.run/host", "-o", "name"); len(strings.Fields(got)) < 3 {
		t.Errorf("nodes with their machine's label: %s", got)
	}
}

func testWaitsForAnother(t *testing.T) {
	const words = "Fargate profile rules cannot satisfy pod's topology spread constraints or pod affinity requirements (zone local-1a, host "
	shows(t, words, "get", "pod", "alone", "-o", "jsonpath={.status.conditions[?(@.type=='PodScheduled')].message}")
	if out, err := berth("explain", "pod", "default/alone"); err != nil || !strings.Contains(out, words) || !strings.Contains(out, "didn't match pod affinity rules") {
		t.Errorf("berth explain: %v\n%s", err, out)
	}
	t.Cleanup(func() { kubectl(t, "delete", "pod", "friend", "--ignore-not-found", "--timeout=60s") })
	kubectl(t, "run", "friend", "--image=busybox", "--labels=profile=rules,app=friend", "--", "sleep", "3600")
	kubectl(t, "wait", "--for=condition=Ready", "pod/alone", "--timeout=60s")
	zone := func(pod string) string {
		return kubectl(t, "get", "berths", "-o", `jsonpath={.items[?(@.spec.pod.name=="`+pod+`")].spec.zone}`)
	}
	if a, b := zone("alone"), zone("friend"); a != b {
		t.Errorf("the pod is in zone %s, what it is to be near in %s", a, b)
	}
}

// testPatch recycles the Deployment's pods; its budget keeps one from going at once.
func testPatch(t *testing.T) {
	kubectl(t, "create", "poddisruptionbudget", "rules", "--selector=app=spread", "--min-available=2")
	t.Cleanup(func() { kubectl(t, "delete", "pdb", "rules", "--ignore-not-found") })
	before := kubectl(t, "get", "pods", "-l", "app=spread", "-o", "jsonpath={.items[*].metadata.uid}")
	eventually(t, func() string { // what the budget's controller has counted
		if got := kubectl(t, "get", "pdb", "rules", "-o", "jsonpath={.status.disruptionsAllowed}"); got != "1" {
			return "disruptions allowed: " + got
		}
		return ""
	})
	if out, err := berth("patch", "--dry-run"); err != nil || !strings.Contains(out, "every node is what its host makes now") {
		t.Errorf("no node is old: %v\n%s", err, out)
	}
	if out, err := berth("patch", "--dry-run", "--all"); err != nil || !strings.Contains(out, "limited") || !strings.Contains(out, "-berth-") {
		t.Errorf("all pods: %v\n%s", err, out)
	}
	t.Cleanup(func() { kubectl(t, "delete", "patches", "--all") })
	if out, err := berth("patch", "--all", "--name", "all", "--wait"); err != nil || !strings.Contains(out, "Complete") || !strings.Contains(out, "zone local-1b") {
		t.Errorf("berth patch: %v\n%s", err, out)
	}
	kubectl(t, "rollout", "status", "deployment/rules", "--timeout=90s")
	for uid := range strings.FieldsSeq(before) {
		if now := kubectl(t, "get", "pods", "-l", "app=spread", "-o", "jsonpath={.items[*].metadata.uid}"); strings.Contains(now, uid) {
			t.Errorf("pod %s is still there: %s", uid, now)
		}
	}
	shows(t, "Any pods created before ", "get", "events", "--field-selector", "reason=PatchNotification", "-o", "jsonpath={.items[*].message}")
	if got := strings.Join(zones(t), " "); got != "local-1a local-1b local-1c" {
		t.Errorf("after the patch the pods are in %s", got)
	}
}

// testDaemonSet: pods of a DaemonSet that tolerates everything, and has a higher priority, want to be on each pod's node.
func testDaemonSet(t *testing.T) {
	uid := kubectl(t, "get", "pod", "limited", "-o", "jsonpath={.metadata.uid}")
	node := kubectl(t, "get", "pod", "limited", "-o", "jsonpath={.spec.nodeName}")
	kubectl(t, "apply", "-f", "testdata/daemon.yaml")
	t.Cleanup(func() { kubectl(t, "delete", "-f", "testdata/daemon.yaml", "--timeout=60s") })
	daemon := ""
	eventually(t, func() string {
		daemon = kubectl(t, "get", "pods", "-l", "app=daemon", "-o",
			`jsonpath={.items[?(@.spec.affinity.nodeAffinity.requiredDuringSchedulingIgnoredDuringExecution.nodeSelectorTerms[0].matchFields[0].values[0]=="`+node+`")].metadata.name}`)
		if daemon == "" {
			return "no pod of the DaemonSet wants to be on " + node
		}
		return ""
	})
	// kube-scheduler has looked for a pod to end when it says so.
	shows(t, "Too many pods", "get", "events", "--field-selector", "reason=FailedScheduling,involvedObject.name="+daemon, "-o", "jsonpath={.items[*].message}")
	state := kubectl(t, "get", "pod", "limited", "-o", "jsonpath={.metadata.uid} {.metadata.deletionTimestamp} {.status.conditions[?(@.type=='DisruptionTarget')].reason}")
	if state != uid {
		t.Errorf("the pod is %q, want %s and nothing more", state, uid)
	}
}
