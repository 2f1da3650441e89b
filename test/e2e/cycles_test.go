package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// cyclesVariable is how many pods TestCycles makes and deletes; `make test-cycles` asks for 500.
const cyclesVariable = "BERTH_CYCLES"

// TestCycles makes and deletes pods under a network policy and looks for what they leave: links, routes, rules, addresses,
// namespaces, cgroups, files.
func TestCycles(t *testing.T) {
	count := 10
	if text := os.Getenv(cyclesVariable); text != "" {
		var err error
		if count, err = strconv.Atoi(text); err != nil {
			t.Fatalf("%s: %v", cyclesVariable, err)
		}
	}
	apply(t, "cycles.yaml")
	kubectl(t, "rollout", "status", "deployment/coredns", "-n", "kube-system", "--timeout=90s") // what runs already is complete
	before := belongings(t)
	const batch = 10
	for made := 0; made < count; made += batch {
		size := min(batch, count-made)
		kubectl(t, "scale", "deployment/cycle", fmt.Sprintf("--replicas=%d", size))
		kubectl(t, "rollout", "status", "deployment/cycle", "--timeout=180s")
		kubectl(t, "scale", "deployment/cycle", "--replicas=0")
		kubectl(t, "wait", "--for=delete", "pod", "-l", "app=cycle", "--timeout=180s")
	}
	eventually(t, func() string {
		after := belongings(t)
		for what, list := range after {
			there := strings.Fields(before[what])
			if left := slices.DeleteFunc(strings.Fields(list), func(one string) bool { return slices.Contains(there, one) }); len(left) > 0 {
				return fmt.Sprintf("%s are left: %s", what, left)
			}
		}
		return ""
	})
	eventually(t, func() string { // when they have rested
		held := 0
		for _, n := range strings.Fields(kubectl(t, "get", "subnets", "-o", `jsonpath={.items[?(@.spec.type=="private")].status.usedIPs}`)) {
			used, err := strconv.Atoi(n)
			if err != nil {
				t.Fatal(err)
			}
			held += used
		}
		if berths := strings.Fields(kubectl(t, "get", "berths", "-A", "-o", "name")); held != len(berths) {
			return fmt.Sprintf("%d addresses are held for %d berths", held, len(berths))
		}
		return ""
	})
}

// belongings is what pods have on this machine and in the cluster.
func belongings(t *testing.T) map[string]string {
	t.Helper()
	out := map[string]string{"links": strings.Join(links(t), " ")}
	for what, command := range map[string]string{
		"routes":             "ip route show table all | grep -E 'dev bth' | cut -d' ' -f1 || true",
		"elements of rules":  "nft -j list table ip berth | grep -oE '10\\.90\\.[0-9]+\\.[0-9]+' | sort -u",
		"chains":             "nft list table ip berth | grep -E '^\\s*chain' | tr -d ' '",
		"network namespaces": "ls /run/berth/containerd/io.containerd.grpc.v1.cri/netns /run/netns 2>/dev/null | grep -v : || true",
	} {
		text, err := exec.Command("bash", "-c", command).Output()
		if err != nil {
			t.Fatalf("%s: %v", command, err)
		}
		out[what] = string(text)
	}
	for what, pattern := range map[string]string{"cgroups": "/sys/fs/cgroup/*/berth/*-*", "nodes' files": "/var/lib/berth/nodes/*", "nodes' sockets": "/run/berth/nodes/*",
		"networks": "/run/berth/network/*", "logs": "/var/log/berth/nodes/*-*-*-*-*.log"} {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		out[what] = strings.Join(paths, "\n")
	}
	for _, kind := range []string{"berths", "nodes", "csr"} {
		out[kind] = kubectl(t, "get", kind, "-A", "-o", "jsonpath={.items[*].metadata.name}")
	}
	return out
}
