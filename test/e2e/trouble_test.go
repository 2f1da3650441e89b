package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRefusals checks that bad input gets a sentence that names the cause.
func TestRefusals(t *testing.T) {
	apply(t, "refusals.yaml")
	for pod, want := range map[string]string{
		"hostnetwork": "Pod not supported on Fargate: fields not supported: HostNetwork",
		"toolarge":    "Your pod's cpu/memory requirements exceed the max Fargate configuration",
		"otherzone":   "MatchNodeSelector failed: Fargate profile refusals cannot satisfy pod's node selector/affinity requirements",
		"noimage":     "Failed to pull image",
	} {
		t.Run(pod, func(t *testing.T) {
			shows(t, want, "get", "events", "--field-selector", "involvedObject.name="+pod, "-o", "jsonpath={.items[*].message}")
			if out, err := berth("explain", "pod", "default/"+pod); err != nil || pod != "noimage" && !strings.Contains(out, want) {
				t.Errorf("berth explain does not say %q: %v\n%s", want, err, out)
			}
		})
	}
	for want, args := range map[string][]string{
		"spec.hostNetwork: the host's namespaces are not the pod's":             {"pod", "default/hostnetwork"},
		"it is bound to node fargate-ip-":                                       {"pod", "default/noimage"},
		"Pod default/otherzone: it stays Pending until there is a place for it": {"--file", "testdata/refusals.yaml"},
		`"profile": "refusals"`:                                                 {"pod", "default/toolarge", "-o", "json"},
		"pods \"nobody\" not found":                                             {"pod", "nobody"},
		"no such file":                                                          {"--file", "nowhere.yaml"},
	} {
		if out, _ := berth(append([]string{"explain"}, args...)...); !strings.Contains(out, want) {
			t.Errorf("berth explain %s does not say %q:\n%s", strings.Join(args, " "), want, out)
		}
	}
}

// TestTogether creates profiles and their pods with one kubectl apply, each pod right after its profile.
func TestTogether(t *testing.T) {
	t.Cleanup(func() {
		kubectl(t, "delete", "-f", "testdata/together.yaml", "--ignore-not-found", "--wait", "--timeout=60s")
	})
	kubectl(t, "apply", "-f", "testdata/together.yaml")
	kubectl(t, "wait", "--for=condition=Ready", "pod", "-l", "together", "--timeout=60s")
}

// TestProfileCommands checks the answers of `berth create/delete fargateprofile` to bad input.
func TestProfileCommands(t *testing.T) {
	if out, err := berth("create", "fargateprofile", "--name", "twice", "--namespace", "nowhere"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	t.Cleanup(func() { berth("delete", "fargateprofile", "--name", "twice", "--wait") }) //nolint:errcheck // checked by the next test's start
	for want, args := range map[string][]string{
		"A Fargate Profile already exists with this name in this cluster.":           {"create", "fargateprofile", "--name", "twice", "--namespace", "nowhere"},
		"name should NOT start with \"eks-\"":                                        {"create", "fargateprofile", "--name", "eks-x", "--namespace", "nowhere"},
		"empty namespace":                                                            {"create", "fargateprofile", "--name", "x"},
		"No cluster found for name: other.":                                          {"create", "fargateprofile", "--cluster", "other", "--name", "x", "--namespace", "n"},
		"Subnet public-local-1a provided in Fargate Profile is not a private subnet": {"create", "fargateprofile", "--name", "x", "--namespace", "n", "--subnets", "public-local-1a"},
		"subnet no-such does not exist":                                              {"create", "fargateprofile", "--name", "y", "--namespace", "n", "--subnets", "no-such"},
		"No Fargate Profile found with name: none.":                                  {"delete", "fargateprofile", "--name", "none"},
		"no such file: ./none.tar":                                                   {"image", "load", "./none.tar"},
	} {
		out, err := berth(args...)
		if err == nil || !strings.Contains(out, want) {
			t.Errorf("berth %s: %v, %q; want %q", strings.Join(args, " "), err, out, want)
		}
	}
	request := []string{"create", "fargateprofile", "--name", "twice", "--namespace", "nowhere", "--client-request-token", "once"}
	if out, err := berth(request...); err == nil || !strings.Contains(out, "already exists") {
		t.Errorf("another request's token finds the profile: %v\n%s", err, out)
	}
	request[3] = "once"
	t.Cleanup(func() { berth("delete", "fargateprofile", "--name", "once", "--wait") }) //nolint:errcheck // as above
	for range 2 {
		if out, err := berth(request...); err != nil {
			t.Errorf("the same request, made twice: %v\n%s", err, out)
		}
	}
	if out, err := berth("get", "fargateprofile", "--name", "once", "-o", "yaml"); err != nil || !strings.HasPrefix(out, "- name: once\n  selectors:\n  - namespace: nowhere\n  status: ACTIVE\n") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := berth("up"); err != nil || !strings.Contains(out, "runs already") {
		t.Errorf("a second berth up: %v\n%s", err, out)
	}
	if out, err := berth("up", "--isolation", "auto"); err == nil || !strings.Contains(out, "the cluster runs with --isolation "+isolation+": stop it first") {
		t.Errorf("berth up with another isolation: %v\n%s", err, out)
	}
}

// TestCrashes ends Berth's own processes by force; the pod must not notice.
func TestCrashes(t *testing.T) {
	apply(t, "features.yaml")
	kubectl(t, "wait", "--for=condition=Ready", "pod/features", "--timeout=90s")
	uid := kubectl(t, "get", "pod", "features", "-o", "jsonpath={.metadata.uid}")
	id := kubectl(t, "get", "pod", "features", "-o", "jsonpath={.status.containerStatuses[0].containerID}")
	same := func(t *testing.T) {
		t.Helper()
		shows(t, "hello", "exec", "features", "-c", "main", "--", "cat", "/config/greeting")
		if now := kubectl(t, "get", "pod", "features", "-o", "jsonpath={.status.containerStatuses[0].containerID}"); now != id {
			t.Fatalf("the container was replaced: %s, before %s", now, id)
		}
	}
	killKubelet := func(t *testing.T) {
		file := "/run/berth/nodes/" + uid + "/pid"
		before, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		kill(t, strings.Fields(string(before))[0])
		eventually(t, func() string {
			if now, err := os.ReadFile(file); err != nil || string(now) == string(before) {
				return "the kubelet was not started again"
			}
			return ""
		})
		same(t)
	}
	t.Run("kubelet", killKubelet)
	for _, part := range []string{"berth-host", "berth-controller", "containerd"} {
		t.Run(part, func(t *testing.T) {
			before := partPID(part)
			kill(t, before)
			eventually(t, func() string {
				out, _ := berth("status", "-o", "json")
				if now := partPID(part); now == before || !strings.Contains(out, `"ready": true,`) || strings.Contains(out, `"ready": false`) {
					return part + " was not started again:\n" + out
				}
				return ""
			})
			same(t)
		})
	}
	t.Run("kubelet that an earlier agent started", killKubelet)
}

// partPID is the process of a part of the cluster.
func partPID(part string) string {
	out, _ := berth("status", "-o", "json")
	_, rest, _ := strings.Cut(out, fmt.Sprintf("%q", part))
	_, rest, _ = strings.Cut(rest, `"pid": `)
	pid, _, _ := strings.Cut(rest, ",")
	return pid
}

func kill(t *testing.T, pid string) {
	t.Helper()
	if out, err := exec.Command("kill", "-9", pid).CombinedOutput(); err != nil {
		t.Fatalf("kill -9 %s: %v\n%s", pid, err, out)
	}
}

// TestProfilesTakeTurns: while a profile is DELETING, which lasts as long as its pods, the CLI refuses and an applied profile
// waits for it.
func TestProfilesTakeTurns(t *testing.T) {
	second := filepath.Join(t.TempDir(), "second.yaml")
	manifest := "apiVersion: berth.run/v1alpha1\nkind: FargateProfile\nmetadata: {name: turn-second}\nspec: {selectors: [{namespace: default, labels: {turn: second}}]}\n"
	if err := os.WriteFile(second, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		kubectl(t, "delete", "-f", "testdata/turns.yaml", "-f", second, "--ignore-not-found", "--timeout=60s")
	})
	kubectl(t, "apply", "-f", "testdata/turns.yaml")
	kubectl(t, "wait", "--for=condition=Ready", "pod/turn", "--timeout=60s")
	if got := kubectl(t, "get", "pod", "turn", "-o", "jsonpath={.metadata.annotations.CapacityProvisioned}"); got != "0.1vCPU 0.0634765625GB" {
		t.Errorf("CapacityProvisioned is %q, want just what was requested", got)
	}
	kubectl(t, "delete", "fargateprofile", "turn-first", "--wait=false")
	shows(t, "DELETING", "get", "fargateprofile", "turn-first")
	const because = "Fargate Profile turn-second because cluster berth currently has Fargate profile turn-first in status DELETING"
	if out, err := berth("create", "fargateprofile", "--name", "turn-second", "--namespace", "default"); err == nil || !strings.Contains(out, "Cannot create "+because) {
		t.Errorf("%v, %s", err, out)
	}
	kubectl(t, "apply", "-f", second)
	shows(t, "Cannot create "+because, "get", "fargateprofile", "turn-second", "-o", "jsonpath={.status.status}: {.status.conditions[0].message}")
	kubectl(t, "delete", "pod", "turn", "--grace-period=1", "--wait=false")
	kubectl(t, "wait", "--for=jsonpath={.status.status}=ACTIVE", "fargateprofile/turn-second", "--timeout=60s")
	if out := kubectl(t, "get", "pods,fargateprofiles", "-o", "name"); strings.Contains(out, "pod/turn") || strings.Contains(out, "turn-first") {
		t.Errorf("the second profile is ACTIVE before the first and its pod are gone:\n%s", out)
	}
}
