package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestDemo plays the story of `make demo`, which checks itself: nodes, zones, addresses, curl, scaling, logs, exec, cp,
// attach, port-forward, debug, Job, CronJob and a pod that no profile takes.
func TestDemo(t *testing.T) {
	demo := exec.Command(filepath.Join(top, "hack", "demo.sh"))
	demo.Env = append(os.Environ(), "ISOLATION="+isolation)
	out, err := demo.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if !strings.Contains(string(out), "Stop it and leave nothing behind") {
		t.Fatalf("the demo did not reach its end:\n%s", out)
	}
}

// TestNode checks what tools written for EKS Fargate read off a node (facts 2.7).
func TestNode(t *testing.T) {
	apply(t, "features.yaml")
	kubectl(t, "wait", "--for=condition=Ready", "pod/features", "--timeout=90s")
	node := kubectl(t, "get", "pod", "features", "-o", "jsonpath={.spec.nodeName}")
	ip := kubectl(t, "get", "pod", "features", "-o", "jsonpath={.status.podIP}")
	for path, want := range map[string]string{
		"{.metadata.labels.eks\\.amazonaws\\.com/compute-type}":                    "fargate",
		"{.metadata.labels.kubernetes\\.io/hostname}":                              strings.TrimPrefix(node, "fargate-"),
		"{.metadata.labels.topology\\.kubernetes\\.io/region}":                     "local-1",
		"{.spec.taints[0].key}={.spec.taints[0].value}:{.spec.taints[0].effect}":   "eks.amazonaws.com/compute-type=fargate:NoSchedule",
		"{.status.addresses[?(@.type==\"InternalIP\")].address}":                   ip,
		"{.status.capacity.pods} {.status.capacity.cpu} {.status.capacity.memory}": "1 250m 1Gi",
		"{.metadata.annotations}":                                                  `{"node.alpha.kubernetes.io/ttl":"0","volumes.kubernetes.io/controller-managed-attach-detach":"true"}`,
		"{.status.daemonEndpoints.kubeletEndpoint.Port}":                           "10250",
	} {
		if got := kubectl(t, "get", "node", node, "-o", "jsonpath="+path); got != want {
			t.Errorf("%s is %q, want %q", path, got, want)
		}
	}
	if want := "fargate-ip-" + strings.ReplaceAll(ip, ".", "-") + ".local-1.compute.internal"; node != want {
		t.Errorf("node is named %s, want %s", node, want)
	}
	if id := kubectl(t, "get", "node", node, "-o", "jsonpath={.spec.providerID}"); !strings.HasPrefix(id, "aws:///local-1") || !strings.HasSuffix(id, "/"+node) {
		t.Errorf("providerID %q has not the shape of EKS", id)
	}
	if got := kubectl(t, "get", "pod", "features", "-o", "jsonpath={.metadata.annotations.CapacityProvisioned}"); got != "0.25vCPU 1GB" {
		t.Errorf("CapacityProvisioned is %q", got)
	}
	if version := kubectl(t, "get", "node", node, "-o", "jsonpath={.status.nodeInfo.kubeletVersion}"); !strings.Contains(kubectl(t, "get", "--raw", "/version"), `"`+version+`"`) {
		t.Errorf("the kubelet is %s, the API server is not", version)
	}
	shows(t, node, "get", "lease", node, "-n", "kube-node-lease", "-o", "jsonpath={.spec.holderIdentity}")
	if line := strings.Fields(kubectl(t, "get", "node", node, "-o", "wide", "--no-headers")); line[2] != "<none>" || !strings.HasPrefix(line[len(line)-1], "containerd://") {
		t.Errorf("roles and container runtime are %q and %q", line[2], line[len(line)-1])
	}
	shows(t, "Starting NodeReady", "get", "events", "--field-selector", "involvedObject.kind=Node,involvedObject.name="+node, "--sort-by", ".lastTimestamp", "-o",
		`jsonpath={.items[?(@.reason=="Starting")].reason} {.items[?(@.reason=="NodeReady")].reason}`)
	for _, path := range []string{"metrics/resource", "metrics/cadvisor", "stats/summary"} {
		if out := kubectl(t, "get", "--raw", "/api/v1/nodes/"+node+"/proxy/"+path); !strings.Contains(out, "main") {
			t.Errorf("%s does not tell of the container:\n%s", path, out)
		}
	}
}

// TestKubeletFeatures checks what a kubelet gives: init containers, a native sidecar, probes, hooks, volumes of all kinds
// with live updates, environment from everything, a service account token.
func TestKubeletFeatures(t *testing.T) {
	apply(t, "features.yaml")
	kubectl(t, "wait", "--for=condition=Ready", "pod/features", "--timeout=90s")
	for name, check := range map[string]struct{ command, want string }{
		"init container and emptyDir": {"cat /shared/init", "from init"},
		"sidecar":                     {"cat /shared/sidecar", "from sidecar"},
		"postStart hook":              {"cat /shared/hook", "from hook"},
		"configMap volume":            {"cat /config/greeting", "hello"},
		"secret volume":               {"cat /secret/word", "sesame"},
		"downwardAPI volume":          {"cat /downward/labels", "role=\"features\""},
		"projected token":             {"cut -c1-2 /projected/token", "ey"},
		"service account token":       {"ls /var/run/secrets/kubernetes.io/serviceaccount", "token"},
		"env from configMap":          {"echo $greeting", "hello"},
		"env from field":              {"echo $POD_IP", "10.90."},
		"env from resource":           {"echo $CPU_LIMIT", "1"},
		"memory volume":               {"echo x > /memory/x && cat /memory/x && stat -f -c %T /memory && df -k /memory | awk 'END {print $2}'", "x\ntmpfs\n16384"},
	} {
		t.Run(name, func(t *testing.T) {
			if out := kubectl(t, "exec", "features", "-c", "main", "--", "sh", "-c", check.command); !strings.Contains(out, check.want) {
				t.Fatalf("%s prints %q, want %q", check.command, out, check.want)
			}
		})
	}
	t.Run("live update", func(t *testing.T) {
		kubectl(t, "label", "pod", "features", "role=changed", "--overwrite")
		shows(t, `role="changed"`, "exec", "features", "-c", "main", "--", "cat", "/downward/labels")
	})
	t.Run("liveness probe restarts the container", func(t *testing.T) {
		kubectl(t, "exec", "features", "-c", "main", "--", "rm", "/tmp/alive")
		shows(t, "1", "get", "pod", "features", "-o", "jsonpath={.status.containerStatuses[?(@.name=='main')].restartCount}")
	})
}
