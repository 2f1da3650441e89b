package hostagent

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-logr/logr"
	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/kit/testkit"
	"github.com/berth-run/berth/internal/policy"
)

var env *testkit.Env

func TestMain(m *testing.M) {
	playNode()
	ctrl.SetLogger(logr.Discard())
	os.Exit(testkit.Main(m, &env))
}

// patience bounds waits for what takes milliseconds on an idle machine.
const patience = 30 * time.Second

// fakeFilter does what it is told, unless it is to fail or to wait.
type fakeFilter struct {
	mu      sync.Mutex
	fail    error
	gate    chan struct{} // Apply waits until it is closed
	sets    map[string]map[netip.Addr]bool
	leads   map[policy.Direction]map[netip.Addr]bool
	changed chan struct{}
	known   bool
}

func (f *fakeFilter) Apply(_ context.Context, d policy.Delta) error {
	f.mu.Lock()
	gate := f.gate
	f.mu.Unlock()
	if gate != nil {
		<-gate
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail != nil {
		f.known = false
		return f.fail
	}
	if d.Replace {
		f.known = true
		f.sets, f.leads = map[string]map[netip.Addr]bool{}, map[policy.Direction]map[netip.Addr]bool{policy.Ingress: {}, policy.Egress: {}}
	}
	if !f.known {
		return errors.New("a change on top of what failed")
	}
	for _, s := range d.AddSets {
		f.sets[s.Name] = map[netip.Addr]bool{}
	}
	for name, elements := range d.RemoveElements {
		for _, e := range elements {
			delete(f.sets[name], e.Addr)
		}
	}
	for name, elements := range d.AddElements {
		for _, e := range elements {
			f.sets[name][e.Addr] = true
		}
	}
	for _, l := range d.RemoveLeads {
		delete(f.leads[l.Direction], l.Addr)
	}
	for _, l := range d.AddLeads {
		f.leads[l.Direction][l.Addr] = true
	}
	close(f.changed)
	f.changed = make(chan struct{})
	return nil
}

func (f *fakeFilter) set(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// ready tells whether there was any change.
func (f *fakeFilter) ready() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.known
}

// isolates tells whether the address is held to policies of ingress.
func (f *fakeFilter) isolates(ip string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.leads[policy.Ingress][netip.MustParseAddr(ip)]
}

// peer tells whether the address is in any set of peers.
func (f *fakeFilter) peer(ip string) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for name, s := range f.sets {
		if strings.HasPrefix(name, "policy/pods/") && s[netip.MustParseAddr(ip)] {
			return true
		}
	}
	return false
}

func (f *fakeFilter) until(t *testing.T, what string, is func() bool) {
	t.Helper()
	deadline := time.After(patience)
	for {
		f.mu.Lock()
		changed := f.changed
		f.mu.Unlock()
		if is() {
			return
		}
		select {
		case <-changed:
		case <-deadline:
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// keeper runs policies for host-1, with the agent's own rights, on a namespace of its own.
type keeper struct {
	*testing.T
	*policies
	admin  client.Client
	filter *fakeFilter
	ns     string
}

func newKeeper(t *testing.T) *keeper {
	t.Helper()
	scheme := kruntime.NewScheme()
	if err := errors.Join(clientscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme), env.Create(t.Context(), "charts/berth/templates/host-rbac.yaml")); err != nil {
		t.Fatal(err)
	}
	admin, err := client.New(env.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	config, err := env.ConfigFor("berth:host:host-1", "berth:hosts")
	if err != nil {
		t.Fatal(err)
	}
	live, err := client.New(config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	k := &keeper{T: t, admin: admin, filter: &fakeFilter{changed: make(chan struct{})}}
	if k.policies, err = newPolicies(t.Context(), config, scheme, "host-1", live, k.filter); err != nil {
		t.Fatal(err)
	}
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "policies-"}}
	k.create(ns)
	k.ns = ns.Name
	k.create(&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: k.ns, Name: "default"}})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- k.run(ctx) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("the policies end with %v", err)
		}
	})
	return k
}

func (k *keeper) create(o client.Object) {
	k.Helper()
	if err := k.admin.Create(k.Context(), o); err != nil {
		k.Fatalf("create %T %s: %v", o, o.GetName(), err)
	}
	k.Cleanup(func() {
		if err := k.admin.Delete(context.Background(), o, client.GracePeriodSeconds(0)); client.IgnoreNotFound(err) != nil {
			k.Errorf("delete %T %s: %v", o, o.GetName(), err)
		}
	})
}

// policy isolates all pods of the namespace; peers are those with app=client.
func (k *keeper) policy() {
	k.Helper()
	k.create(&networking.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: k.ns, Name: "deny"}, Spec: networking.NetworkPolicySpec{
		Ingress: []networking.NetworkPolicyIngressRule{{From: []networking.NetworkPolicyPeer{{PodSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "client"}}}}}}}})
}

// berth makes a pod, and its Berth on the host.
func (k *keeper) berth(name, app, host, ip string) *v1alpha1.Berth {
	k.Helper()
	pod := k.pod(name, app, eks.SchedulerName)
	b := &v1alpha1.Berth{ObjectMeta: metav1.ObjectMeta{Namespace: k.ns, Name: name}, Spec: v1alpha1.BerthSpec{
		Pod: v1alpha1.PodReference{Name: name, UID: pod.UID}, ProfileName: "p", HostName: host, NodeName: "n-" + name, SubnetName: "s", Zone: "z", IP: ip,
		Size:      v1alpha1.Size{CPU: resource.MustParse("1"), Memory: resource.MustParse("1Gi"), EphemeralStorage: resource.MustParse("20Gi")},
		Isolation: v1alpha1.IsolationGVisor}}
	k.create(b)
	return b
}

func (k *keeper) pod(name, app, scheduler string) *corev1.Pod {
	k.Helper()
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: k.ns, Name: name, Labels: map[string]string{"app": app}},
		Spec: corev1.PodSpec{SchedulerName: scheduler, Containers: []corev1.Container{{Name: "c", Image: "i"}}}}
	k.create(pod)
	return pod
}

// TestCover checks that a pod's start waits until the filter holds the policies that exist, however late the agent hears of them.
func TestCover(t *testing.T) {
	k := newKeeper(t)
	k.filter.until(t, "the first change", k.filter.ready)
	gate := make(chan struct{})
	k.filter.set(func() { k.filter.gate = gate })
	k.policy()
	b := k.berth("server", "server", "host-1", "10.90.0.4")
	isolated := make(chan bool, 1)
	go func() {
		if err := k.cover(t.Context(), b); err != nil {
			t.Errorf("cover: %v", err)
		}
		isolated <- k.filter.isolates("10.90.0.4")
	}()
	k.filter.set(func() { k.filter.gate = nil })
	close(gate)
	if !<-isolated {
		t.Error("the start did not wait for the filter")
	}
	k.filter.set(func() { k.filter.fail = errors.New("no room") })
	late := k.berth("late", "server", "host-1", "10.90.0.5")
	if err := k.cover(t.Context(), late); err == nil || !strings.Contains(err.Error(), "no room") {
		t.Errorf("the filter fails, and cover says: %v", err)
	}
	if err := k.cover(t.Context(), b); err != nil {
		t.Errorf("a pod that is covered already cannot start again: %v", err)
	}
	k.filter.set(func() { k.filter.fail = nil })
	if err := k.cover(t.Context(), late); err != nil || !k.filter.isolates("10.90.0.5") || !k.filter.isolates("10.90.0.4") {
		t.Errorf("after the filter works again: %v", err)
	}
}

// TestAddresses checks which addresses are held to policies, and which are peers, and when.
func TestAddresses(t *testing.T) {
	k := newKeeper(t)
	k.policy()
	b := k.berth("server", "server", "host-1", "10.90.0.14")
	if err := k.cover(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	k.berth("near", "client", "host-1", "10.90.0.15")
	k.berth("far", "client", "host-2", "10.90.0.16")
	k.filter.until(t, "a peer on each host, by its Berth", func() bool { return k.filter.peer("10.90.0.15") && k.filter.peer("10.90.0.16") })
	if k.filter.isolates("10.90.0.16") || k.filter.peer("10.90.0.14") {
		t.Error("another host's pod is held to policies here, or a pod is a peer that is not selected")
	}
	ordinary := k.pod("ordinary", "client", "default-scheduler")
	ordinary.Status.PodIP, ordinary.Status.PodIPs = "192.0.2.9", []corev1.PodIP{{IP: "192.0.2.9"}}
	if err := k.admin.Status().Update(t.Context(), ordinary); err != nil {
		t.Fatal(err)
	}
	k.filter.until(t, "a peer on another node, by its status", func() bool { return k.filter.peer("192.0.2.9") })

	// Deleted by force, the pod's machine is still there.
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: k.ns, Name: "server"}}
	if err := k.admin.Delete(t.Context(), pod, client.GracePeriodSeconds(0)); err != nil {
		t.Fatal(err)
	}
	k.berth("next", "client", "host-1", "10.90.0.17")
	k.filter.until(t, "a later change", func() bool { return k.filter.peer("10.90.0.17") })
	if !k.filter.isolates("10.90.0.14") {
		t.Error("a pod whose machine is still there is not held to its policies any more")
	}
	if err := k.admin.Delete(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	k.filter.until(t, "the pod is gone", func() bool { return !k.filter.isolates("10.90.0.14") })
	near := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: k.ns, Name: "near"}}
	if err := k.admin.Get(t.Context(), client.ObjectKeyFromObject(near), near); err != nil {
		t.Fatal(err)
	}
	near.Status.Phase = corev1.PodSucceeded
	if err := k.admin.Status().Update(t.Context(), near); err != nil {
		t.Fatal(err)
	}
	k.filter.until(t, "a pod that ended is no peer", func() bool { return !k.filter.peer("10.90.0.15") })
}
