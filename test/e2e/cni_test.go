package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// ownChain is where an operator's chain is looked for.
const ownChain = "/etc/berth/cni"

// TestAnotherCNI starts the cluster with another main plugin (ptp, of the CNI project) and its bandwidth plugin. Pods keep
// their addresses, Services, policies and closed host. It stops the cluster of the other tests for as long.
func TestAnotherCNI(t *testing.T) {
	if _, err := os.Stat("/usr/lib/cni/ptp"); err != nil {
		t.Fatalf("install Debian package containernetworking-plugins (make deps does): %v", err)
	}
	if _, err := os.Stat(ownChain); err == nil {
		t.Fatalf("%s exists: this machine has a CNI chain of its own, which this test would replace", ownChain)
	}
	chain := func(text string) {
		t.Helper()
		if err := os.WriteFile(filepath.Join(ownChain, "e2e.conflist"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	up := func() {
		t.Helper()
		if out, err := berth("up"); err != nil {
			t.Fatalf("berth up: %v\n%s", err, out)
		}
	}
	if out, err := berth("down"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() {
		if out, err := berth("down"); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		for _, path := range []string{filepath.Join(ownChain, "e2e.conflist"), ownChain} {
			if err := os.Remove(path); err != nil {
				t.Error(err)
			}
		}
		_ = os.Remove(filepath.Dir(ownChain)) // unless there is more in it
		up()
	})
	if err := os.MkdirAll(ownChain, 0o755); err != nil {
		t.Fatal(err)
	}
	chain(`{"cniVersion": "1.0.0", "name": "e2e", "plugins": [{"type": "ptp", "ipam": {"type": "host-local"}}]}`)
	if out, err := berth("up"); err == nil || !strings.Contains(out, `write "ipam": {"type": "berth-cni"}`) {
		t.Fatalf("a chain that cannot work: %v\n%s", err, out)
	}
	chain(`{"cniVersion": "1.0.0", "name": "e2e", "plugins": [{"type": "ptp", "ipam": {"type": "berth-cni"}}, {"type": "bandwidth", "capabilities": {"bandwidth": true}}]}`)
	up()
	t.Run("pods", func(t *testing.T) {
		apply(t, "cni.yaml")
		kubectl(t, "wait", "--for=condition=Ready", "pod/server", "pod/client", "--timeout=90s")
		if own := links(t); len(own) > 0 {
			t.Errorf("links of ours beside those of the chain: %q", own)
		}
		curl := func(url string) (string, error) {
			return berth("kubectl", "exec", "client", "--", "curl", "-sSk", "--max-time", "2", url)
		}
		ip := kubectl(t, "get", "pod", "server", "-o", "jsonpath={.status.podIP}")
		for url, want := range map[string]string{"http://" + ip + "/": "nginx", "http://server/": "nginx", "https://kubernetes/healthz": "ok"} {
			eventually(t, func() string { out, err := curl(url); return missing(out, want, err) })
		}
		if out, err := curl("http://10.90.255.1:23447/readyz"); err == nil {
			t.Errorf("a port of the host answers: %s", out)
		}
		kubectl(t, "patch", "networkpolicy", "server", "--type=merge", "-p", `{"spec": {"ingress": []}}`)
		eventually(t, func() string {
			if out, err := curl("http://" + ip + "/"); err == nil {
				return "a policy that denies does not hold: " + out
			}
			return ""
		})
	})
}
