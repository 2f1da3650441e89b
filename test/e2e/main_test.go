// Package e2e tests Berth as its users see it: a real cluster started by `berth up`, real pods in real sandboxes, driven
// with real kubectl. It needs root and the programs in bin/ (make build images) and fails without them. BERTH_ISOLATION (gvisor
// unless it is set) is what its pods run in.
package e2e

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

const (
	// patience bounds every wait for something that takes a second or two on an idle machine.
	patience = 90 * time.Second
	look     = 200 * time.Millisecond
	// foreign is the directory of another containerd of the machine, which is left as it is.
	foreign = "/run/containerd"
)

var (
	top string
	// isolation that the cluster's pods run in.
	isolation = cmp.Or(os.Getenv("BERTH_ISOLATION"), "gvisor")
)

func TestMain(m *testing.M) {
	if slices.Equal(os.Args[1:], []string{"serve"}) { // in a pod
		os.Exit(fail(serve()))
	}
	os.Exit(run(m))
}

func run(m *testing.M) int {
	dir, err := os.Getwd()
	if err != nil {
		return fail(err)
	}
	top = filepath.Dir(filepath.Dir(dir))
	if os.Geteuid() != 0 {
		return fail(errors.New("the end-to-end tests need root"))
	}
	if _, err := os.Stat(filepath.Join(top, "bin", "berth")); err != nil {
		return fail(fmt.Errorf("bin/berth is missing; run make build images: %w", err))
	}
	if out, err := berth("status"); err == nil {
		return fail(fmt.Errorf("a cluster runs on this machine; stop it first (make down):\n%s", out))
	}
	// What an earlier run that was killed may have left, its state included.
	if out, err := berth("down", "--purge"); err != nil {
		return fail(fmt.Errorf("clean the machine: %w\n%s", err, out))
	}
	// What kubectl remembers of another cluster at this address is not true of this one.
	cache, err := os.MkdirTemp("", "berth-e2e-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(cache)
	os.Setenv("KUBECACHEDIR", cache)
	links, err := os.MkdirTemp("", "berth-e2e-programs-")
	if err != nil {
		return fail(err)
	}
	defer os.RemoveAll(links)
	if err := linkPrograms(links); err != nil {
		return fail(err)
	}
	before := below(foreign)
	if out, err := berth("up", "--isolation", isolation); err != nil {
		return fail(fmt.Errorf("berth up: %w\n%s", err, out))
	}
	code := 1
	if err := hostRuns(isolation); err != nil {
		fail(err)
	} else {
		code = m.Run()
	}
	if out, err := berth("down", "--purge"); err != nil {
		return fail(fmt.Errorf("berth down: %w\n%s", err, out))
	}
	left := leftovers()
	for _, path := range below(foreign) {
		if !slices.Contains(before, path) {
			left = append(left, "of another containerd: "+path)
		}
	}
	if len(left) > 0 {
		return fail(fmt.Errorf("berth down left behind:\n%s", strings.Join(left, "\n")))
	}
	return code
}

// below lists the directory, if it is there, and everything in it.
func below(dir string) []string {
	var paths []string
	_ = filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		if err == nil {
			paths = append(paths, path)
		}
		return nil
	})
	return paths
}

// hostRuns is an error unless the host can run the isolation.
func hostRuns(isolation string) error {
	out, err := berth("kubectl", "get", "hosts", "-o", "jsonpath={.items[*].status.isolations}")
	if err == nil && strings.Contains(out, `"`+isolation+`"`) {
		return nil
	}
	status, _ := berth("status")
	return fmt.Errorf("this machine cannot run isolation %s (BERTH_ISOLATION): %s, %v\n%s", isolation, out, err, status) //nolint:errorlint // it may be nil
}

func fail(err error) int {
	fmt.Fprintln(os.Stderr, "e2e:", err)
	return 1
}

// berth runs the command and returns what it printed.
func berth(args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, filepath.Join(top, "bin", "berth"), args...).CombinedOutput()
	return string(out), err
}

// kubectl runs kubectl, which must succeed, and returns what it printed.
func kubectl(t *testing.T, args ...string) string {
	t.Helper()
	out, err := berth(append([]string{"kubectl"}, args...)...)
	if err != nil {
		t.Fatalf("kubectl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return strings.TrimSpace(out)
}

// apply creates a profile, with these flags too, for the pods that carry label profile=<name of the file> and then what is in
// the file; both go when the test ends.
func apply(t *testing.T, file string, flags ...string) {
	t.Helper()
	name, path := strings.TrimSuffix(file, ".yaml"), filepath.Join("testdata", file)
	t.Cleanup(func() {
		kubectl(t, "delete", "-f", path, "--ignore-not-found", "--wait", "--timeout=60s")
		if out, err := berth("delete", "fargateprofile", "--name", name, "--wait"); err != nil {
			t.Errorf("delete profile %s: %v\n%s", name, err, out)
		}
	})
	create := append([]string{"create", "fargateprofile", "--name", name, "--namespace", "default", "--labels", "profile=" + name}, flags...)
	if out, err := berth(create...); err != nil {
		t.Fatalf("create profile %s: %v\n%s", name, err, out)
	}
	kubectl(t, "apply", "-f", path)
}

// eventually waits until the check says nothing; what it said last fails the test.
func eventually(t *testing.T, check func() string) {
	t.Helper()
	within(t, patience, check)
}

// within is eventually for what takes its time.
func within(t *testing.T, limit time.Duration, check func() string) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		said := check()
		if said == "" {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %s: %s", limit, said)
		}
		time.Sleep(look)
	}
}

// shows waits until kubectl prints the text.
func shows(t *testing.T, text string, args ...string) {
	t.Helper()
	eventually(t, func() string {
		out, err := berth(append([]string{"kubectl"}, args...)...)
		if err != nil || !strings.Contains(out, text) {
			return fmt.Sprintf("kubectl %s does not show %q but:\n%s", strings.Join(args, " "), text, out)
		}
		return ""
	})
}

// leftovers lists what of Berth is still on the machine.
func leftovers() []string {
	var left []string
	for what, command := range map[string]string{
		"link":          "ip -o link | grep -oE '(bth[0-9a-f]{11}|berth0)' || true",
		"nft table":     "nft list tables | grep -wE 'berth|kube-proxy' || true",
		"mount":         "grep -E ' /(run|var/lib)/berth' /proc/mounts || true",
		"cgroup":        "find /sys/fs/cgroup -maxdepth 2 -name berth -type d",
		"directory":     "ls -d /run/berth /var/lib/berth 2>/dev/null || true",
		"local route":   "ip route show table local | grep 10.90.240 || true",
		"haproxy":       "pgrep -fa '[/]run/berth/lb' || true",
		"process (bin)": "for e in /proc/[0-9]*/exe; do readlink $e; done 2>/dev/null | grep '^" + top + "/bin/' || true",
	} {
		out, err := exec.Command("bash", "-c", command).CombinedOutput()
		if text := strings.TrimSpace(string(out)); text != "" || err != nil {
			left = append(left, fmt.Sprintf("%s: %s", what, text))
		}
	}
	return left
}
