package e2e

import (
	"strings"
	"testing"
	"time"
)

// TestShares: volumes of a file server (NFS), mounted by the pods' own machines. The server is Linux's own, in a pod, too.
func TestShares(t *testing.T) {
	runsMachines(t)
	loadPackages(t, "shares", "dash", "coreutils", "mount", "kmod", "nfs-kernel-server")
	apply(t, "shares.yaml", "--isolation", "microvm", "--allow-privileged")
	kubectl(t, "wait", "--for=condition=Ready", "pod/server", "pod/writer", "pod/other", "pod/inline", "--timeout=120s")
	in := func(t *testing.T, pod, container, script string) string {
		t.Helper()
		return kubectl(t, "exec", pod, "-c", container, "--", "sh", "-c", script)
	}
	t.Run("two pods write and read", func(t *testing.T) {
		in(t, "writer", "c", "echo from one > /files/x")
		in(t, "other", "c", "echo from two >> /files/x")
		for _, at := range [][2]string{{"writer", "c"}, {"other", "reader"}, {"inline", "c"}} {
			if got := in(t, at[0], at[1], "cat /files/x"); got != "from one\nfrom two" {
				t.Errorf("pod %s reads %q", at[0], got)
			}
		}
	})
	t.Run("options", func(t *testing.T) {
		if got := in(t, "writer", "c", "grep ' /files ' /proc/mounts"); !strings.Contains(got, "10.96.0.204:/") || !strings.Contains(got, "vers=4.1") || !strings.Contains(got, "timeo=50") {
			t.Errorf("it is mounted as %s", got)
		}
	})
	t.Run("read-only", func(t *testing.T) {
		for _, at := range [][2]string{{"other", "reader"}, {"inline", "c"}} {
			if got := in(t, at[0], at[1], "touch /files/no 2>&1 || true"); !strings.Contains(got, "Read-only file system") {
				t.Errorf("pod %s writes: %q", at[0], got)
			}
		}
	})
	t.Run("subPath", func(t *testing.T) {
		in(t, "writer", "c", "echo part > /part/x")
		if got := in(t, "other", "c", "cat /files/some/part/x"); got != "part" {
			t.Errorf("the other pod reads %q", got)
		}
	})
	t.Run("a name that nobody knows", func(t *testing.T) {
		const want = `the NFS server's name "files.invalid" is not known to this host's resolver`
		shows(t, want, "get", "events", "--field-selector", "involvedObject.name=nameless", "-o", "jsonpath={.items[*].message}")
	})
	t.Run("the server goes", func(t *testing.T) {
		// One process writes to a file that it has opened before, and waits for the server, perhaps in a way that no signal ends.
		const write = "exec 3>/files/y; echo > /tmp/open; until [ -e /tmp/gone ]; do sleep 0.1; done; echo lost >&3; exec 3>&-"
		go berth("kubectl", "exec", "writer", "-c", "c", "--", "sh", "-c", write) //nolint:errcheck // it never ends
		in(t, "writer", "c", "until [ -e /tmp/open ]; do sleep 0.1; done")
		uid, node := kubectl(t, "get", "pod", "server", "-o", "jsonpath={.metadata.uid}"), kubectl(t, "get", "pod", "server", "-o", "jsonpath={.spec.nodeName}")
		kubectl(t, "delete", "pod", "server", "--timeout=60s")
		eventually(t, func() string { return remains(uid, "server", node) })
		in(t, "writer", "c", "touch /tmp/gone; sleep 2")
		uid, node = kubectl(t, "get", "pod", "writer", "-o", "jsonpath={.metadata.uid}"), kubectl(t, "get", "pod", "writer", "-o", "jsonpath={.spec.nodeName}")
		began := time.Now()
		kubectl(t, "delete", "pod", "writer", "other", "--timeout=60s")
		t.Logf("pods whose server is gone went in %v", time.Since(began))
		eventually(t, func() string { return remains(uid, "writer", node) })
	})
	t.Run("no server", func(t *testing.T) {
		// A pod that comes now waits, and says for what.
		kubectl(t, "delete", "pod", "inline", "--timeout=60s")
		apply(t, "share-late.yaml", "--isolation", "microvm")
		shows(t, "mount nfs from 10.96.0.204:/", "get", "events", "--field-selector", "involvedObject.name=late", "-o", "jsonpath={.items[*].message}")
	})
}
