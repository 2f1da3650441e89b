package e2e

import (
	"fmt"
	"os"
	"os/exec"
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
		})
	}
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
	if out, err := berth("up"); err != nil || !strings.Contains(out, "runs already") {
		t.Errorf("a second berth up: %v\n%s", err, out)
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
	t.Run("kubelet", func(t *testing.T) {
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
	})
	for _, part := range []string{"berth-host", "berth-controller", "containerd"} {
		t.Run(part, func(t *testing.T) {
			pid := func() string {
				out, _ := berth("status", "-o", "json")
				_, rest, _ := strings.Cut(out, fmt.Sprintf("%q", part))
				_, rest, _ = strings.Cut(rest, `"pid": `)
				pid, _, _ := strings.Cut(rest, ",")
				return pid
			}
			before := pid()
			kill(t, before)
			eventually(t, func() string {
				out, _ := berth("status", "-o", "json")
				if now := pid(); now == before || !strings.Contains(out, `"ready": true,`) || strings.Contains(out, `"ready": false`) {
					return part + " was not started again:\n" + out
				}
				return ""
			})
			same(t)
		})
	}
}

func kill(t *testing.T, pid string) {
	t.Helper()
	if out, err := exec.Command("kill", "-9", pid).CombinedOutput(); err != nil {
		t.Fatalf("kill -9 %s: %v\n%s", pid, err, out)
	}
}

// TestLimitsBite checks that a pod cannot use more memory or CPU than its size.
func TestLimitsBite(t *testing.T) {
	apply(t, "limits.yaml")
	t.Run("memory", func(t *testing.T) {
		shows(t, "Failed", "get", "pod", "hog", "-o", "jsonpath={.status.phase}")
	})
	t.Run("cpu", func(t *testing.T) {
		shows(t, "spun", "logs", "spinner")
		uid := kubectl(t, "get", "pod", "spinner", "-o", "jsonpath={.metadata.uid}")
		out, err := exec.Command("bash", "-c", "cat /sys/fs/cgroup/cpu/berth/"+uid+"/cpu.stat /sys/fs/cgroup/berth/"+uid+"/cpu.stat 2>/dev/null | grep nr_throttled").CombinedOutput()
		if text := strings.TrimSpace(string(out)); text == "" || text == "nr_throttled 0" {
			t.Fatalf("a busy pod of 250m was never throttled: %q, %v", text, err)
		}
	})
}
