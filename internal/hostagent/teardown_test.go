package hostagent

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	internalapi "k8s.io/cri-api/pkg/apis"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/mount-utils"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/podcgroup"
)

// fakeCRI holds sandboxes as containerd does: one must be stopped before it can be removed.
type fakeCRI struct {
	internalapi.RuntimeService
	mu        sync.Mutex
	sandboxes []*cri.PodSandbox
	fail      error
}

func (f *fakeCRI) add(id, node, uid string, state cri.PodSandboxState) {
	f.sandboxes = append(f.sandboxes, &cri.PodSandbox{Id: id, State: state, Metadata: &cri.PodSandboxMetadata{Namespace: "ns", Name: "pod-" + id, Uid: uid},
		Labels: map[string]string{labelNode: node, "io.kubernetes.pod.uid": uid}})
}

func (f *fakeCRI) ListPodSandbox(_ context.Context, filter *cri.PodSandboxFilter) ([]*cri.PodSandbox, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(f.sandboxes), func(s *cri.PodSandbox) bool {
		for k, v := range filter.LabelSelector {
			if s.Labels[k] != v {
				return true
			}
		}
		return false
	}), nil
}

func (f *fakeCRI) StopPodSandbox(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, s := range f.sandboxes {
		if s.Id == id {
			s.State = cri.PodSandboxState_SANDBOX_NOTREADY
		}
	}
	return f.fail
}

func (f *fakeCRI) RemovePodSandbox(_ context.Context, id string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, s := range f.sandboxes {
		if s.Id == id && s.State == cri.PodSandboxState_SANDBOX_READY {
			return errors.New("it runs")
		} else if s.Id == id {
			f.sandboxes = slices.Delete(f.sandboxes, i, i+1)
			return nil
		}
	}
	return nil
}

// left are the sandboxes that are there, each with its state.
func (f *fakeCRI) left() string {
	var out []string
	for _, s := range f.sandboxes {
		out = append(out, s.Id+" "+strings.TrimPrefix(s.State.String(), "SANDBOX_"))
	}
	return strings.Join(out, ", ")
}

func threeSandboxes() *fakeCRI {
	f := &fakeCRI{}
	f.add("old", "n", "u", cri.PodSandboxState_SANDBOX_NOTREADY)
	f.add("new", "n", "u", cri.PodSandboxState_SANDBOX_READY)
	f.add("other", "m", "v", cri.PodSandboxState_SANDBOX_READY)
	return f
}

func TestSandboxesOfANode(t *testing.T) {
	for name, test := range map[string]struct {
		do   func(context.Context, internalapi.RuntimeService) error
		left string
	}{
		"removed": {func(ctx context.Context, c internalapi.RuntimeService) error { return removeSandboxes(ctx, c, "n") }, "other READY"},
		"stopped": {func(ctx context.Context, c internalapi.RuntimeService) error { return stopSandboxes(ctx, c, "n") }, "old NOTREADY, new NOTREADY, other READY"},
		"all":     {StopSandboxes, ""},
	} {
		t.Run(name, func(t *testing.T) {
			f := threeSandboxes()
			for range 2 {
				if err := test.do(t.Context(), f); err != nil || f.left() != test.left {
					t.Fatalf("left: %s, %v; want %s", f.left(), err, test.left)
				}
			}
		})
	}
	f := threeSandboxes()
	f.fail = errors.New("the shim does not answer")
	if err := removeSandboxes(t.Context(), f, "m"); err == nil || !strings.Contains(err.Error(), "end sandbox other of pod ns/pod-other: stop it: the shim does not answer") {
		t.Errorf("got %v", err)
	}
	if f.left() != "old NOTREADY, new READY, other NOTREADY" {
		t.Errorf("a sandbox that did not stop was removed: %s", f.left())
	}
}

// TestFilesOfANode removes them with what is mounted in them, one mount below the other.
func TestFilesOfANode(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this needs root (mounts): run it with sudo, or with make test")
	}
	dirs := agentDirs(t)
	kept := dirs.Node("uid-2") // its name begins like the other's
	for _, dir := range []string{dirs.Node("uid") + "/pods/p/volumes/v", kept + "/v", dirs.NodeRun("uid"), filepath.Dir(dirs.PodNetwork("uid")), filepath.Dir(dirs.NodeLog("uid"))} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{dirs.PodNetwork("uid"), dirs.NodeLog("uid"), filepath.Join(dirs.NodeRun("uid"), pidFile)} {
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	volume := dirs.Node("uid") + "/pods/p/volumes/v"
	for _, dir := range []string{volume, volume + "/inner", kept + "/v"} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", dir, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	}
	for range 2 {
		if err := removeFiles(dirs, "uid"); err != nil {
			t.Fatal(err)
		}
	}
	for _, path := range []string{dirs.Node("uid"), dirs.NodeRun("uid"), dirs.PodNetwork("uid"), dirs.NodeLog("uid")} {
		if _, err := os.Stat(path); err == nil {
			t.Errorf("%s is still there", path)
		}
	}
	mounts, err := mount.New("").List()
	if err != nil {
		t.Fatal(err)
	}
	var found []string
	for _, m := range mounts {
		if strings.HasPrefix(m.Path, dirs.State) {
			found = append(found, m.Path)
		}
	}
	if len(found) != 1 || found[0] != kept+"/v" {
		t.Errorf("mounted: %v, want the other node's only", found)
	}
}

// agent is a reconciler on the real API server, with directories and sandboxes of its own.
func agent(t *testing.T, c client.Client, f *fakeCRI) *reconciler {
	t.Helper()
	dirs := agentDirs(t)
	return &reconciler{client: c, cri: f, options: Options{HostName: "h", Dirs: dirs}, processes: newProcesses(t, dirs, "polite", 0),
		journal: newJournal(func(types.UID) {}), kubelets: map[string]netip.Addr{}, limited: map[string]bool{}}
}

// TestSweep: what an agent that starts finds of a pod without a Berth goes, a pod with one does not notice.
func TestSweep(t *testing.T) {
	c := newClient(t)
	f := &fakeCRI{}
	f.add("a", "node-a", "sweep-a", cri.PodSandboxState_SANDBOX_READY)
	f.add("b", "node-b", "sweep-b", cri.PodSandboxState_SANDBOX_READY)
	r := agent(t, c, f)
	b := &v1alpha1.Berth{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "sweep-a"}, Spec: v1alpha1.BerthSpec{
		Pod: v1alpha1.PodReference{Name: "a", UID: "sweep-a"}, ProfileName: "p", HostName: "h", NodeName: "node-a", SubnetName: "s", Zone: "z", IP: "10.0.0.4",
		Size:      v1alpha1.Size{CPU: resource.MustParse("250m"), Memory: resource.MustParse("512Mi"), EphemeralStorage: resource.MustParse("20Gi")},
		Isolation: v1alpha1.IsolationGVisor}}
	if err := c.Create(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Delete(context.Background(), b) })
	startNode(t, r.processes, "sweep-a")
	ended := startNode(t, r.processes, "sweep-b")
	if err := podcgroup.Make("sweep-b", b.Spec.Size); err != nil {
		t.Fatal(err)
	}
	if err := r.sweep(t.Context()); err != nil {
		t.Fatal(err)
	}
	wait(t, "the process of the pod without a Berth ends", ended)
	if f.left() != "a READY" {
		t.Errorf("sandboxes: %s", f.left())
	}
	if r.processes.running("sweep-a") == 0 {
		t.Error("the process of the pod with a Berth was ended")
	}
	if _, err := podcgroup.Read("/berth/sweep-b"); err == nil {
		t.Error("the cgroup of the pod without a Berth is still there")
	}
	if _, err := os.Stat(r.options.Dirs.NodeRun("sweep-b")); err == nil {
		t.Error("the directory of the pod without a Berth is still there")
	}
}

// TestKubeletAddresses are different, stay the same over a restart, and run out with a sentence.
func TestKubeletAddresses(t *testing.T) {
	r := agent(t, nil, nil)
	take := func(r *reconciler, uid string) netip.Addr {
		t.Helper()
		if err := os.MkdirAll(r.options.Dirs.NodeRun(uid), 0o700); err != nil {
			t.Fatal(err)
		}
		addr, err := r.kubeletAddress(uid)
		if err != nil {
			t.Fatal(err)
		}
		return addr
	}
	a, b := take(r, "a"), take(r, "b")
	if a == b || take(r, "a") != a {
		t.Fatalf("a %s, b %s, a again %s", a, b, take(r, "a"))
	}
	later := &reconciler{options: r.options, kubelets: map[string]netip.Addr{}, failures: nil}
	later.recoverAddresses()
	if c := take(later, "c"); take(later, "a") != a || take(later, "b") != b || c == a || c == b {
		t.Errorf("after a restart: a %s, b %s, c %s", take(later, "a"), take(later, "b"), c)
	}
	later.forget("a")
	if again := take(later, "d"); again != a {
		t.Errorf("a freed address is not used again: %s", again)
	}
	for addr := a; netip.MustParsePrefix(layout.KubeletRange).Contains(addr); addr = addr.Next() {
		later.kubelets[addr.String()] = addr
	}
	if _, err := later.kubeletAddress("e"); err == nil || !strings.Contains(err.Error(), "this host is full") {
		t.Errorf("got %v", err)
	}
}

func newClient(t *testing.T) client.Client {
	t.Helper()
	scheme := kruntime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(env.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	return c
}
