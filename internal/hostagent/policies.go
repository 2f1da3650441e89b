package hostagent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/policy"
)

const (
	// coverTimeout bounds how long a pod's start waits for its policies before it fails and is tried again.
	coverTimeout = 5 * time.Second
	// applyPause is how long the packet filter is left alone after it refused a change.
	applyPause = time.Second
)

// policyFilter holds what a policy.Table says. Apply makes a change at once, or fails and changes nothing.
type policyFilter interface {
	Apply(ctx context.Context, d policy.Delta) error
}

// policies keeps the packet filter in line with the cluster's NetworkPolicies, namespaces and pods: those of this host are
// held to them, those of other hosts are peers.
type policies struct {
	host   string
	live   client.Reader // the API server itself
	cache  cache.Cache
	filter policyFilter
	synced []toolscache.InformerSynced
	wake   chan struct{}

	mu     sync.Mutex
	table  *policy.Table
	pods   map[types.UID]*corev1.Pod
	places map[types.UID]place // by pod
	// deleted pods whose machine is still there.
	deleted  map[types.UID]bool
	versions map[types.NamespacedName]version
	// changed counts changes of the table; the filter holds the first applied of them.
	changed, applied uint64
	failure          error
	// progress is closed, and another one made, when anything here changes.
	progress chan struct{}
}

// place is where a Berth says that its pod is: its address is known before the pod's status has it.
type place struct {
	addr    netip.Addr
	local   bool
	covered bool
}

// version of a policy's spec.
type version struct {
	uid        types.UID
	generation int64
}

// newPolicies has a cache of its own: the agent's holds the Berths of this host only, and this one no more than policies read.
func newPolicies(ctx context.Context, config *rest.Config, scheme *kruntime.Scheme, host string, live client.Reader, filter policyFilter) (*policies, error) {
	p := &policies{host: host, live: live, filter: filter, wake: make(chan struct{}, 1), progress: make(chan struct{}),
		table: policy.NewTable(), pods: map[types.UID]*corev1.Pod{}, places: map[types.UID]place{}, deleted: map[types.UID]bool{}, versions: map[types.NamespacedName]version{}}
	var err error
	if p.cache, err = cache.New(config, cache.Options{Scheme: scheme, ByObject: map[client.Object]cache.ByObject{
		&corev1.Pod{}: {Transform: slimPod}, &v1alpha1.Berth{}: {Transform: slimBerth},
		&corev1.Namespace{}: {Transform: cache.TransformStripManagedFields()}, &networking.NetworkPolicy{}: {Transform: cache.TransformStripManagedFields()},
	}}); err != nil {
		return nil, fmt.Errorf("make the cache for network policies: %w", err)
	}
	for object, handler := range map[client.Object]toolscache.ResourceEventHandler{
		&corev1.Pod{}: handle(p, p.setPod, p.deletePod), &v1alpha1.Berth{}: handle(p, p.setBerth, p.deleteBerth),
		&corev1.Namespace{}:         handle(p, func(n *corev1.Namespace) { p.table.SetNamespace(n.Name, n.Labels) }, func(n *corev1.Namespace) { p.table.DeleteNamespace(n.Name) }),
		&networking.NetworkPolicy{}: handle(p, p.setPolicy, p.deletePolicy),
	} {
		informer, err := p.cache.GetInformer(ctx, object)
		if err != nil {
			return nil, fmt.Errorf("watch what network policies depend on: %w", err)
		}
		registration, err := informer.AddEventHandler(handler)
		if err != nil {
			return nil, fmt.Errorf("watch what network policies depend on: %w", err)
		}
		p.synced = append(p.synced, registration.HasSynced)
	}
	return p, nil
}

// slimPod leaves of a pod what policies see; a cluster has thousands.
func slimPod(o any) (any, error) {
	p, ok := o.(*corev1.Pod)
	if !ok {
		return o, nil
	}
	slim := func(containers []corev1.Container) []corev1.Container {
		var out []corev1.Container
		for _, c := range containers {
			out = append(out, corev1.Container{Ports: c.Ports, RestartPolicy: c.RestartPolicy})
		}
		return out
	}
	return &corev1.Pod{ObjectMeta: slimMeta(&p.ObjectMeta), Spec: corev1.PodSpec{SchedulerName: p.Spec.SchedulerName, HostNetwork: p.Spec.HostNetwork,
		Containers: slim(p.Spec.Containers), InitContainers: slim(p.Spec.InitContainers)}, Status: corev1.PodStatus{Phase: p.Status.Phase, PodIP: p.Status.PodIP}}, nil
}

func slimBerth(o any) (any, error) {
	b, ok := o.(*v1alpha1.Berth)
	if !ok {
		return o, nil
	}
	return &v1alpha1.Berth{ObjectMeta: slimMeta(&b.ObjectMeta), Spec: v1alpha1.BerthSpec{Pod: b.Spec.Pod, HostName: b.Spec.HostName, IP: b.Spec.IP}}, nil
}

func slimMeta(m *metav1.ObjectMeta) metav1.ObjectMeta {
	return metav1.ObjectMeta{Namespace: m.Namespace, Name: m.Name, UID: m.UID, Labels: m.Labels, ResourceVersion: m.ResourceVersion}
}

// handle calls set and gone, one at a time, and has the filter changed afterwards.
func handle[T client.Object](p *policies, set, gone func(T)) toolscache.ResourceEventHandler {
	change := func(f func()) {
		p.mu.Lock()
		defer p.mu.Unlock()
		f()
		p.changed++
		p.progressed()
		select {
		case p.wake <- struct{}{}:
		default: // it will look anyway
		}
	}
	return toolscache.ResourceEventHandlerFuncs{
		AddFunc: func(o any) { change(func() { set(o.(T)) }) },
		UpdateFunc: func(before, o any) {
			change(func() {
				if old := before.(T); old.GetUID() != o.(T).GetUID() {
					gone(old) // and another of the same name came, while nobody watched
				}
				set(o.(T))
			})
		},
		DeleteFunc: func(o any) {
			if last, missed := o.(toolscache.DeletedFinalStateUnknown); missed {
				o = last.Obj
			}
			change(func() { gone(o.(T)) })
		},
	}
}

func (p *policies) progressed() {
	close(p.progress)
	p.progress = make(chan struct{})
}

func (p *policies) setPod(pod *corev1.Pod) {
	p.pods[pod.UID] = pod
	at := p.places[pod.UID]
	if !at.addr.IsValid() && pod.Spec.SchedulerName != eks.SchedulerName && !pod.Spec.HostNetwork {
		at.addr, _ = netip.ParseAddr(pod.Status.PodIP) // of another node: not valid while it has none
	}
	p.table.SetPod(policy.PodOf(pod, at.addr, at.local))
}

// deletePod goes on holding a pod to its policies whose machine is here: deleted by force, it may run a while longer.
func (p *policies) deletePod(pod *corev1.Pod) {
	if p.places[pod.UID].local {
		p.deleted[pod.UID] = true
		return
	}
	p.forget(pod.UID)
}

func (p *policies) forget(uid types.UID) {
	delete(p.pods, uid)
	delete(p.deleted, uid)
	p.table.DeletePod(uid)
}

func (p *policies) setBerth(b *v1alpha1.Berth) {
	uid := b.Spec.Pod.UID
	addr, _ := netip.ParseAddr(b.Spec.IP) // the API server checked it
	p.places[uid] = place{addr: addr, local: b.Spec.HostName == p.host, covered: p.places[uid].covered}
	if pod := p.pods[uid]; pod != nil {
		p.setPod(pod)
	}
}

func (p *policies) deleteBerth(b *v1alpha1.Berth) {
	uid := b.Spec.Pod.UID
	delete(p.places, uid)
	if pod := p.pods[uid]; p.deleted[uid] {
		p.forget(uid)
	} else if pod != nil {
		p.setPod(pod)
	}
}

func (p *policies) setPolicy(np *networking.NetworkPolicy) {
	p.versions[client.ObjectKeyFromObject(np)] = version{np.UID, np.Generation}
	if err := p.table.SetPolicy(np); err != nil {
		slog.Error("read a network policy; it stays as it was", "error", err)
	}
}

func (p *policies) deletePolicy(np *networking.NetworkPolicy) {
	key := client.ObjectKeyFromObject(np)
	delete(p.versions, key)
	p.table.DeletePolicy(key)
}

// run changes the filter until ctx ends. What is in the kernel from an agent before this one holds until everything is known
// again, and is then replaced at once.
func (p *policies) run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return p.cache.Start(ctx) })
	g.Go(func() error {
		if !toolscache.WaitForCacheSync(ctx.Done(), p.synced...) {
			return nil
		}
		for known := false; ; {
			known = p.apply(ctx, known)
			var again <-chan time.Time
			if !known {
				again = time.After(applyPause)
			}
			select {
			case <-p.wakes(known):
			case <-again:
			case <-ctx.Done():
				return nil
			}
		}
	})
	return g.Wait()
}

// wakes is nothing to wait for after a failure: the pause comes first.
func (p *policies) wakes(known bool) <-chan struct{} {
	if !known {
		return nil
	}
	return p.wake
}

// apply brings the filter up to date, by what changed if it is known what it holds; afterwards that is so, unless it failed.
func (p *policies) apply(ctx context.Context, known bool) bool {
	p.mu.Lock()
	upTo := p.changed
	var d policy.Delta
	if known {
		d = p.table.Take()
	} else {
		d = p.table.All()
	}
	p.mu.Unlock()
	err := p.filter.Apply(ctx, d)
	if err != nil && ctx.Err() == nil {
		slog.Error("put network policies into force; it will be tried again", "error", err)
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.failure = err; err == nil {
		p.applied = upTo
	}
	p.progressed()
	return err == nil
}

// cover returns when the filter holds the pod to every policy that exists now, so that its first packet meets them. It asks
// the API server itself, as a policy that was made before the pod may not have been heard of yet.
func (p *policies) cover(ctx context.Context, b *v1alpha1.Berth) error {
	if p.isCovered(b) {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, coverTimeout)
	defer cancel()
	for {
		var list networking.NetworkPolicyList
		if err := p.live.List(ctx, &list, client.InNamespace(b.Namespace)); err != nil {
			return fmt.Errorf("list the network policies of namespace %s: %w", b.Namespace, err)
		}
		missing, progress, upTo := p.missing(b, list.Items)
		if missing == "" {
			return p.inForce(ctx, b, upTo)
		}
		select {
		case <-progress:
		case <-ctx.Done():
			return fmt.Errorf("hold the pod to its network policies: the agent has not heard of %s for %s", missing, coverTimeout)
		}
	}
}

func (p *policies) isCovered(b *v1alpha1.Berth) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.places[b.Spec.Pod.UID].covered
}

// missing is what the table lacks, and what is closed when that may be different; if it lacks nothing, upTo is the change that
// the filter must hold.
func (p *policies) missing(b *v1alpha1.Berth, list []networking.NetworkPolicy) (missing string, progress <-chan struct{}, upTo uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, np := range list {
		key := client.ObjectKeyFromObject(&np)
		if v := p.versions[key]; v.uid != np.UID || v.generation < np.Generation {
			return "network policy " + key.String(), p.progress, 0
		}
	}
	if p.pods[b.Spec.Pod.UID] == nil {
		return "pod " + b.Namespace + "/" + b.Spec.Pod.Name, p.progress, 0
	}
	if !p.places[b.Spec.Pod.UID].local {
		return "berth " + client.ObjectKeyFromObject(b).String(), p.progress, 0
	}
	return "", p.progress, p.changed
}

// inForce waits until the filter holds the change.
func (p *policies) inForce(ctx context.Context, b *v1alpha1.Berth, upTo uint64) error {
	for {
		p.mu.Lock()
		progress, failure, done := p.progress, p.failure, p.applied >= upTo
		if at, known := p.places[b.Spec.Pod.UID]; done && known {
			at.covered = true
			p.places[b.Spec.Pod.UID] = at
		}
		p.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-progress:
		case <-ctx.Done():
			return fmt.Errorf("hold the pod to its network policies: not within %s: %w", coverTimeout, failure)
		}
	}
}
