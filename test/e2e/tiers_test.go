package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
)

// TestThreeTiers runs an ordinary application: nginx, a program behind it, Redis. A Job's visits are all counted, while the
// front is replaced, and who is not of the application does not reach its store.
func TestThreeTiers(t *testing.T) {
	apply(t, "tiers.yaml")
	for _, tier := range []string{"statefulset/store", "deployment/counter", "deployment/front"} {
		kubectl(t, "rollout", "status", tier, "--timeout=120s")
	}
	hits := func() int {
		t.Helper()
		n, err := strconv.Atoi(kubectl(t, "exec", "store-0", "--", "redis-cli", "get", "hits"))
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	address := ""
	eventually(t, func() string {
		address = kubectl(t, "get", "service", "front", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}")
		if address == "" {
			return "service front has no address"
		}
		if status, body, err := ask("http://"+address+"/count", "front"); err != nil || status != 200 || !strings.HasPrefix(body, ":") {
			return fmt.Sprintf("%d, %q, %v", status, body, err)
		}
		return ""
	})
	t.Run("a job's visits are counted while the front is replaced", func(t *testing.T) {
		before := hits()
		t.Cleanup(func() { kubectl(t, "delete", "-f", "testdata/tiers-load.yaml", "--ignore-not-found", "--timeout=60s") })
		kubectl(t, "apply", "-f", "testdata/tiers-load.yaml")
		kubectl(t, "rollout", "restart", "deployment/front")
		kubectl(t, "rollout", "status", "deployment/front", "--timeout=120s")
		eventually(t, func() string {
			state := kubectl(t, "get", "job", "visits", "-o", "jsonpath={.status.conditions[*].type}")
			if strings.Contains(state, "Failed") {
				t.Fatalf("a visit failed: %s", kubectl(t, "logs", "-l", "job-name=visits", "--prefix", "--tail=-1"))
			}
			if !strings.Contains(state, "Complete") {
				return "the job is not complete, but " + kubectl(t, "get", "pods", "-l", "job-name=visits")
			}
			return ""
		})
		if got := hits() - before; got < 3*40 {
			t.Errorf("%d visits were counted, want %d and those of probes", got, 3*40)
		}
	})
	t.Run("what the store saves is on the pod's disk", func(t *testing.T) { // in a volume that its image declares
		kubectl(t, "exec", "store-0", "--", "redis-cli", "save")
		out := kubectl(t, "exec", "store-0", "--", "sh", "-c", "stat -c %s /data/dump.rdb; df -k --output=size /data | tail -n 1")
		var saved, size int
		if _, err := fmt.Sscan(out, &saved, &size); err != nil || saved == 0 || size < 19<<20 || size > 20<<20 {
			t.Errorf("%d bytes saved on a disk of %d KiB, want one of 20 GiB (%q, %v)", saved, size, out, err)
		}
	})
	t.Run("the store is the program's only", func(t *testing.T) {
		counter := kubectl(t, "get", "pods", "-l", "app=counter", "-o", "jsonpath={.items[0].metadata.name}")
		front := kubectl(t, "get", "pods", "-l", "app=front", "-o", "jsonpath={.items[0].metadata.name}")
		if out := kubectl(t, "exec", counter, "--", "sh", "-c", `printf 'PING\r\nQUIT\r\n' | nc -w 5 store 6379`); !strings.Contains(out, "PONG") {
			t.Errorf("the program gets %q", out)
		}
		if out, err := berth("kubectl", "exec", front, "--", "curl", "-s", "--max-time", "2", "telnet://store:6379"); err == nil {
			t.Errorf("the front reaches the store: %s", out)
		}
	})
}
