package hostagent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	internalapi "k8s.io/cri-api/pkg/apis"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/hostagent/network"
	"github.com/berth-run/berth/internal/kit/conditions"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/nodeconfig"
	"github.com/berth-run/berth/internal/podcgroup"
	"github.com/berth-run/berth/internal/podnet"
)

// reconciler brings the host in line with its Berths, one at a time.
type reconciler struct {
	client  client.Client
	cri     internalapi.RuntimeService
	options Options
	// nodeVersion is what nodes are made of now.
	nodeVersion string
	net         *network.Host
	subnets     *subnets
	policies    *policies
	mtu         int
	issuer      *issuer
	processes   *nodeProcesses
	journal     *journal
	// isolations that this machine can run.
	isolations *isolations
	machines   *machines
	wake       func(types.NamespacedName)

	sweeping sync.Mutex

	mu       sync.Mutex
	kubelets map[string]netip.Addr // pod UID -> address of its kubelet
	limited  map[string]bool       // pod UID -> its CPU limit is set
	failures map[string]time.Time  // pod UID -> when its node process last ended by itself
}

// restartPause is how long a node process that ended by itself stays down.
const restartPause = 2 * time.Second

// Reconcile starts or ends one Berth's machine.
func (r *reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	b := &v1alpha1.Berth{}
	err := r.client.Get(ctx, req.NamespacedName, b)
	if apierrors.IsNotFound(err) {
		return reconcile.Result{}, r.sweep(ctx) // it may have gone without waiting for us
	}
	if err != nil {
		return reconcile.Result{}, fmt.Errorf("get berth %s: %w", req.NamespacedName, err)
	}
	if b.Spec.HostName != r.options.HostName {
		return reconcile.Result{}, nil
	}
	if b.DeletionTimestamp != nil && !controllerutil.ContainsFinalizer(b, v1alpha1.FinalizerPod) {
		return reconcile.Result{}, r.remove(ctx, b)
	}
	before := b.DeepCopy()
	result, err := r.start(ctx, b)
	if err != nil {
		conditions.Set(&b.Status.Conditions, v1alpha1.ConditionReady, false, b.Generation, "StartFailed", err.Error())
	} else {
		r.journal.apply(b)
		err = errors.Join(r.limit(b), r.complete(ctx, b))
	}
	if !reflect.DeepEqual(before.Status, b.Status) {
		if perr := r.client.Status().Patch(ctx, b, client.MergeFrom(before)); client.IgnoreNotFound(perr) != nil {
			return reconcile.Result{}, fmt.Errorf("write the status of berth %s: %w", b.Name, perr)
		}
	}
	return result, err
}

// start makes what is missing of the pod's machine.
func (r *reconciler) start(ctx context.Context, b *v1alpha1.Berth) (reconcile.Result, error) {
	uid := string(b.Spec.Pod.UID)
	key := client.ObjectKeyFromObject(b)
	if pid := r.processes.running(uid); pid != 0 {
		if err := r.processes.adopt(pid, func() { r.ended(uid, key) }); err != nil {
			return reconcile.Result{}, err
		}
		return r.renew(ctx, b), nil
	}
	if wait := r.pause(uid); wait > 0 {
		return reconcile.Result{RequeueAfter: wait}, nil
	}
	if b.Status.Timeline.Accepted == nil {
		created := metav1.NewMicroTime(b.CreationTimestamp.Time)
		b.Status.Phase, b.Status.NodeVersion = v1alpha1.BerthPending, r.nodeVersion
		b.Status.Timeline = v1alpha1.Timeline{PodCreated: &created, Accepted: micro(time.Now()),
			Admitted: parseMicro(b.Annotations[v1alpha1.AnnotationAdmitted]), Placed: parseMicro(b.Annotations[v1alpha1.AnnotationPlaced])}
	}
	dir := r.options.Dirs.NodeRun(uid)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return reconcile.Result{}, fmt.Errorf("make the node's run directory: %w", err)
	}
	kubelet, err := r.kubeletAddress(uid)
	if err != nil {
		return reconcile.Result{}, err
	}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		_, err := r.issuer.ensure(gctx, b, dir)
		return err
	})
	g.Go(func() error { return podcgroup.Make(uid, cgroupSize(b.Spec)) })
	g.Go(func() error {
		subnet, err := r.subnets.cover(gctx, b.Spec.SubnetName)
		if err != nil {
			return err
		}
		c := podnet.Config{IP: b.Spec.IP, Gateway: layout.GatewayIP, MTU: r.mtu, Subnet: subnet.String()}
		if w := b.Spec.Bandwidth; w != nil {
			c.Ingress, c.Egress = bits(w.Ingress), bits(w.Egress)
		}
		if err := podnet.Write(r.options.Dirs.PodNetwork(uid), c); err != nil {
			return err
		}
		if err := r.policies.cover(gctx, b); err != nil {
			return err
		}
		return r.net.AddPod(gctx, podnet.HostLink(uid), b.Spec.IP, kubelet.String())
	})
	if err := g.Wait(); err != nil {
		return reconcile.Result{}, err
	}
	conditions.Set(&b.Status.Conditions, v1alpha1.ConditionNetworkReady, true, b.Generation, "Done", "address, firewall and port 10250 of the pod are set up")
	return reconcile.Result{}, r.processes.start(r.nodeConfig(b, kubelet), func() { r.ended(uid, key) })
}

// renew keeps a running node's certificates good. A pod goes on without: only what it is told late, and its logs, suffer.
func (r *reconciler) renew(ctx context.Context, b *v1alpha1.Berth) reconcile.Result {
	at, err := r.issuer.ensure(ctx, b, r.options.Dirs.NodeRun(string(b.Spec.Pod.UID)))
	if err != nil {
		slog.Error("renew a node's certificates", "node", b.Spec.NodeName, "error", err)
		return reconcile.Result{RequeueAfter: renewRetry}
	}
	return reconcile.Result{RequeueAfter: max(time.Until(at), time.Minute)}
}

// limit holds the pod to its CPU as soon as its first container runs. The sandbox's own start, which takes about half a
// second of CPU, is not held back: a quarter of a CPU would make it two seconds.
func (r *reconciler) limit(b *v1alpha1.Berth) error {
	uid := string(b.Spec.Pod.UID)
	r.mu.Lock()
	defer r.mu.Unlock()
	if b.Status.Timeline.ContainerStarted == nil || r.limited[uid] {
		return nil
	}
	if err := podcgroup.LimitCPU(uid, b.Spec.Size); err != nil {
		return err
	}
	r.limited[uid] = true
	return nil
}

// ended notes that a node process is gone and looks whether it should be.
func (r *reconciler) ended(uid string, key types.NamespacedName) {
	r.mu.Lock()
	r.failures[uid] = time.Now()
	r.mu.Unlock()
	r.wake(key)
}

func (r *reconciler) pause(uid string) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	at, failed := r.failures[uid]
	if !failed {
		return 0
	}
	return time.Until(at.Add(restartPause))
}

// remove ends the pod's machine and lets the Berth go when nothing of it is left.
func (r *reconciler) remove(ctx context.Context, b *v1alpha1.Berth) error {
	if !controllerutil.ContainsFinalizer(b, v1alpha1.FinalizerHost) {
		return nil
	}
	uid := string(b.Spec.Pod.UID)
	if err := r.clean(ctx, uid, b.Spec.NodeName, b.Spec.IP); err != nil {
		return fmt.Errorf("remove the machine of berth %s: %w", b.Name, err)
	}
	r.journal.forget(b.Spec.Pod.UID)
	before := b.DeepCopy()
	controllerutil.RemoveFinalizer(b, v1alpha1.FinalizerHost)
	err := r.client.Patch(ctx, b, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil // somebody was faster; what they wrote leads here again
	}
	if err != nil {
		return fmt.Errorf("let berth %s go: %w", b.Name, err)
	}
	return nil
}

func (r *reconciler) clean(ctx context.Context, uid, node, ip string) error {
	if err := r.processes.stop(uid); err != nil {
		return err
	}
	if err := removeSandboxes(ctx, r.cri, node); err != nil {
		return err
	}
	link := podnet.HostLink(uid)
	if err := podnet.Del(uid); err != nil {
		return err
	}
	if err := r.net.RemovePod(ctx, link, ip); err != nil {
		return err
	}
	if err := podcgroup.Remove(layout.PodCgroupPath(uid)); err != nil {
		return err
	}
	r.forget(uid)
	return removeFiles(r.options.Dirs, uid)
}

func (r *reconciler) forget(uid string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.kubelets, uid)
	delete(r.failures, uid)
	delete(r.limited, uid)
}

const kubeletAddressFile = "kubelet-address"

// kubeletAddress is the host's own address on which the pod's kubelet listens, the same after a restart of the agent.
func (r *reconciler) kubeletAddress(uid string) (netip.Addr, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if addr, ok := r.kubelets[uid]; ok {
		return addr, nil
	}
	taken := map[netip.Addr]bool{}
	for _, addr := range r.kubelets {
		taken[addr] = true
	}
	prefix := netip.MustParsePrefix(layout.KubeletRange)
	for addr := prefix.Addr().Next(); prefix.Contains(addr); addr = addr.Next() {
		if taken[addr] {
			continue
		}
		path := filepath.Join(r.options.Dirs.NodeRun(uid), kubeletAddressFile)
		if err := os.WriteFile(path, []byte(addr.String()), 0o600); err != nil {
			return netip.Addr{}, fmt.Errorf("keep the kubelet's address: %w", err)
		}
		r.kubelets[uid] = addr
		return addr, nil
	}
	return netip.Addr{}, fmt.Errorf("no address is left in %s for another kubelet: this host is full", layout.KubeletRange)
}

// recoverAddresses reads which kubelet has which address after a restart of the agent.
func (r *reconciler) recoverAddresses() {
	files, err := filepath.Glob(filepath.Join(r.options.Dirs.Run, "nodes", "*", kubeletAddressFile))
	if err != nil {
		return
	}
	for _, path := range files {
		data, err := os.ReadFile(path)
		if err != nil {
			slog.Warn("read a kubelet's address", "error", err)
			continue
		}
		if addr, err := netip.ParseAddr(strings.TrimSpace(string(data))); err == nil {
			r.kubelets[filepath.Base(filepath.Dir(path))] = addr
		}
	}
}

func (r *reconciler) nodeConfig(b *v1alpha1.Berth, kubelet netip.Addr) nodeconfig.Config {
	uid, o := string(b.Spec.Pod.UID), r.options
	run, root := o.Dirs.NodeRun(uid), o.Dirs.Node(uid)
	ip, _ := netip.ParseAddr(b.Spec.IP) // the API server checked it
	return nodeconfig.Config{
		PodNamespace: b.Namespace, PodName: b.Spec.Pod.Name, PodUID: b.Spec.Pod.UID,
		NodeName: b.Spec.NodeName, Hostname: eks.Hostname(ip, o.Region), IP: b.Spec.IP,
		ProviderID: eks.ProviderID(b.Spec.Zone, uid, b.Spec.NodeName),
		Labels:     nodeLabels(o, b),
		Taints:     []corev1.Taint{{Key: eks.ComputeTypeKey, Value: eks.ComputeTypeFargate, Effect: corev1.TaintEffectNoSchedule}},
		Capacity: corev1.ResourceList{
			corev1.ResourceCPU: b.Spec.Size.CPU, corev1.ResourceMemory: b.Spec.Size.Memory, corev1.ResourceEphemeralStorage: b.Spec.Size.EphemeralStorage,
		},
		ListenAddress: kubelet.String(),
		RootDir:       root, PodLogsDir: filepath.Join(root, "logs"),
		Kubeconfig:  filepath.Join(run, kubeconfigFile),
		ServingCert: filepath.Join(run, servingFile), ServingKey: filepath.Join(run, servingFile), ClientCA: o.ClientCA,
		HostRunDir:  o.Dirs.Run,
		CRIEndpoint: "unix://" + o.Dirs.ContainerdSocket(), PrivateImages: o.Dirs.PrivateImages(), RuntimeHandler: runtimeHandler(b.Spec.Isolation),
		PortForward: portForward(b.Spec.Isolation, o), AllowPrivileged: b.Spec.AllowPrivileged, CgroupParent: layout.PodCgroupPath(uid),
		ClusterDomain: layout.ClusterDomain, ClusterDNS: o.ClusterDNS, ResolvConf: resolvConf(), EventSocket: o.Dirs.AgentSocket(),
	}
}

// nodeLabels are those that the kubelet does not set by itself. A host's name may be longer than a label's value.
func nodeLabels(o Options, b *v1alpha1.Berth) map[string]string {
	labels := map[string]string{
		eks.ComputeTypeKey:                  eks.ComputeTypeFargate,
		corev1.LabelTopologyRegion:          o.Region,
		corev1.LabelTopologyZone:            b.Spec.Zone,
		corev1.LabelFailureDomainBetaRegion: o.Region,
		corev1.LabelFailureDomainBetaZone:   b.Spec.Zone,
	}
	if len(validation.IsValidLabelValue(o.HostName)) == 0 {
		labels[v1alpha1.LabelHost] = o.HostName
	}
	return labels
}

// resolvConf is the host's list of resolvers; that of systemd-resolved names them rather than a stub on loopback.
func resolvConf() string {
	const resolved = "/run/systemd/resolve/resolv.conf"
	if _, err := os.Stat(resolved); err == nil {
		return resolved
	}
	return "/etc/resolv.conf"
}
