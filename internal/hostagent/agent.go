package hostagent

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	remote "k8s.io/cri-client/pkg"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/healthz"
	"sigs.k8s.io/controller-runtime/pkg/manager"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/hostagent/network"
	"github.com/berth-run/berth/internal/kit/conditions"
	"github.com/berth-run/berth/internal/microvm/disk"
)

const (
	heartbeat  = 10 * time.Second
	criTimeout = 2 * time.Minute
	parallel   = 16
)

// Run is the agent; it returns when ctx ends. Pods go on running without it.
func Run(ctx context.Context, o Options) error {
	if err := o.Complete(); err != nil {
		return err
	}
	config, err := clientcmd.BuildConfigFromFlags("", o.Kubeconfig)
	if err != nil {
		return fmt.Errorf("read kubeconfig %s: %w", o.Kubeconfig, err)
	}
	config.QPS = -1
	mgr, err := newManager(config, o)
	if err != nil {
		return err
	}
	r, err := newReconciler(ctx, mgr, config, o)
	if err != nil {
		return err
	}
	// After the network: what it needs of the kernel is loaded by then.
	if err := raiseLimits(o.Dirs, limits); err != nil {
		return err
	}
	go r.processes.refill()
	defer r.processes.dismiss()
	for _, part := range []manager.RunnableFunc{
		func(ctx context.Context) error { return r.journal.listen(ctx, o.Dirs.AgentSocket()) },
		func(ctx context.Context) error { return r.report(ctx) },
		func(ctx context.Context) error { return r.sweep(ctx) },
		r.isolations.run,
		r.machines.run,
		func(ctx context.Context) error { return sweepDisks(ctx, disk.Images{Dir: o.Dirs.ImageDisks()}) },
		r.policies.run,
	} {
		if err := mgr.Add(part); err != nil {
			return fmt.Errorf("set the agent up: %w", err)
		}
	}
	return mgr.Start(ctx)
}

func newManager(config *rest.Config, o Options) (ctrl.Manager, error) {
	scheme := kruntime.NewScheme()
	for _, add := range []func(*kruntime.Scheme) error{clientscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			return nil, fmt.Errorf("build the scheme: %w", err)
		}
	}
	mgr, err := ctrl.NewManager(config, ctrl.Options{
		Scheme: scheme, Metrics: metricsserver.Options{BindAddress: "0"},
		HealthProbeBindAddress: fmt.Sprintf("127.0.0.1:%d", o.HealthPort),
		Cache: cache.Options{ByObject: map[client.Object]cache.ByObject{
			&v1alpha1.Berth{}: {Field: fields.OneTermEqualSelector("spec.hostName", o.HostName)},
			&v1alpha1.Host{}:  {Field: fields.OneTermEqualSelector("metadata.name", o.HostName)},
		}},
	})
	if err != nil {
		return nil, fmt.Errorf("make the agent's manager: %w", err)
	}
	if err := mgr.AddReadyzCheck("ping", healthz.Ping); err != nil {
		return nil, err
	}
	return mgr, nil
}

func newReconciler(ctx context.Context, mgr ctrl.Manager, config *rest.Config, o Options) (*reconciler, error) {
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("make the API client: %w", err)
	}
	ca, err := os.ReadFile(o.ClientCA)
	if err != nil {
		return nil, fmt.Errorf("read --client-ca: %w", err)
	}
	cri, err := remote.NewRemoteRuntimeServiceBuilder().WithEndpoint("unix://" + o.Dirs.ContainerdSocket()).WithConnectionTimeout(criTimeout).WithTracerProvider(nil).Build(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to containerd: %w", err)
	}
	host, err := network.Up(ctx, o.ServiceAPI, o.APIServer)
	if err != nil {
		return nil, err
	}
	filter, err := network.NewPolicies()
	if err != nil {
		return nil, err
	}
	held, err := newPolicies(ctx, config, mgr.GetScheme(), o.HostName, mgr.GetAPIReader(), filter)
	if err != nil {
		return nil, err
	}
	version, err := nodeVersion(o.BinDir)
	if err != nil {
		return nil, err
	}
	ranges, err := newSubnets(mgr, host, o.Dirs)
	if err != nil {
		return nil, err
	}
	mtu, _ := network.Uplink()
	vms := newMachines(o)
	events := make(chan event.GenericEvent, 1024)
	r := &reconciler{
		client: mgr.GetClient(), cri: cri, options: o, nodeVersion: version, net: host, subnets: ranges, policies: held, mtu: mtu,
		issuer:     &issuer{kube: kube, apiServer: config.Host, ca: ca, now: time.Now},
		processes:  newNodeProcesses(o.Dirs, filepath.Join(o.BinDir, "berth-node"), o.Pool),
		isolations: newIsolations(o.Dirs, o.BinDir, vms), machines: vms,
		kubelets: map[string]netip.Addr{}, failures: map[string]time.Time{}, limited: map[string]bool{},
	}
	r.wake = func(key types.NamespacedName) {
		events <- event.GenericEvent{Object: &v1alpha1.Berth{ObjectMeta: metav1.ObjectMeta{Namespace: key.Namespace, Name: key.Name}}}
	}
	r.journal = newJournal(func(pod types.UID) { r.wakePod(ctx, pod) })
	r.recoverAddresses()
	err = ctrl.NewControllerManagedBy(mgr).Named("berth").For(&v1alpha1.Berth{}).
		WatchesRawSource(source.Channel(events, &handler.EnqueueRequestForObject{})).
		WithOptions(controller.Options{MaxConcurrentReconciles: parallel}).Complete(r)
	if err != nil {
		return nil, fmt.Errorf("set the berth reconciler up: %w", err)
	}
	return r, nil
}

func (r *reconciler) wakePod(ctx context.Context, pod types.UID) {
	var berths v1alpha1.BerthList
	if err := r.client.List(ctx, &berths); err != nil {
		slog.Warn("find the berth of a pod", "error", err)
		return
	}
	for _, b := range berths.Items {
		if b.Spec.Pod.UID == pod {
			r.wake(client.ObjectKeyFromObject(&b))
		}
	}
}

// report keeps the Host object true until ctx ends.
func (r *reconciler) report(ctx context.Context) error {
	tick := time.NewTicker(heartbeat)
	defer tick.Stop()
	for {
		if err := r.reportOnce(ctx); err != nil && ctx.Err() == nil {
			slog.Error("report the host's state", "error", err)
		}
		select {
		case <-tick.C:
		case <-r.isolations.changed:
		case <-ctx.Done():
			return nil
		}
	}
}

func (r *reconciler) reportOnce(ctx context.Context) error {
	h := &v1alpha1.Host{ObjectMeta: metav1.ObjectMeta{Name: r.options.HostName}}
	if _, err := controllerutil.CreateOrUpdate(ctx, r.client, h, func() error {
		h.Spec.Zones = r.options.Zones
		return nil
	}); err != nil {
		return fmt.Errorf("write Host %s: %w", h.Name, err)
	}
	before := h.DeepCopy()
	capacity, err := r.capacity()
	if err != nil {
		return err
	}
	free := corev1.ResourceList{}
	var berths v1alpha1.BerthList
	if err := r.client.List(ctx, &berths); err != nil {
		return fmt.Errorf("list berths: %w", err)
	}
	for name, q := range capacity {
		left := q.DeepCopy()
		for _, b := range berths.Items {
			if b.Status.Timeline.Completed != nil {
				continue
			}
			size := map[corev1.ResourceName]resource.Quantity{corev1.ResourceCPU: b.Spec.Size.CPU, corev1.ResourceMemory: b.Spec.Size.Memory}
			left.Sub(size[name])
		}
		free[name] = left
	}
	in, err := networks(r.options.Dirs)
	if err != nil {
		return err
	}
	h.Status.Networks = nil
	for _, n := range in {
		h.Status.Networks = append(h.Status.Networks, n.String())
	}
	_, address := network.Uplink()
	h.Status.Capacity, h.Status.Free, h.Status.Address = capacity, free, address
	h.Status.Isolations, h.Status.Probes = r.isolations.status()
	h.Status.AgentVersion, h.Status.NodeVersion, h.Status.HeartbeatTime = Version, r.nodeVersion, metav1.Now()
	conditions.Set(&h.Status.Conditions, v1alpha1.ConditionReady, true, h.Generation, "AgentReports", "the host agent reports and takes pods")
	if err := r.client.Status().Patch(ctx, h, client.MergeFrom(before)); err != nil {
		return fmt.Errorf("write the status of Host %s: %w", h.Name, err)
	}
	return nil
}

// capacity is what this machine may promise to pods.
func (r *reconciler) capacity() (corev1.ResourceList, error) {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return nil, fmt.Errorf("read the machine's memory: %w", err)
	}
	memory := float64(int64(info.Totalram)*int64(info.Unit)-r.options.ReserveMemory.Value()) * r.options.MemoryOvercommit
	return corev1.ResourceList{
		corev1.ResourceCPU:    *resource.NewMilliQuantity(int64(float64(runtime.NumCPU()*1000)*r.options.CPUOvercommit), resource.DecimalSI),
		corev1.ResourceMemory: *resource.NewQuantity(int64(memory)>>20<<20, resource.BinarySI),
	}, nil
}

// sweep removes what belongs to no Berth any more: its Berth went while no agent ran, or by force.
func (r *reconciler) sweep(ctx context.Context) error {
	r.sweeping.Lock()
	defer r.sweeping.Unlock()
	// First the directories, then the Berths: a machine is made after its Berth is known.
	found := map[string]bool{}
	for _, dir := range []string{filepath.Join(r.options.Dirs.Run, "nodes"), filepath.Join(r.options.Dirs.State, "nodes")} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			found[e.Name()] = true
		}
	}
	var berths v1alpha1.BerthList
	if err := r.client.List(ctx, &berths); err != nil {
		return fmt.Errorf("list berths: %w", err)
	}
	for _, b := range berths.Items {
		delete(found, string(b.Spec.Pod.UID))
	}
	for uid := range found {
		slog.Info("remove what an ended pod left", "pod", uid)
		if err := r.sweepOne(ctx, uid); err != nil {
			slog.Error("remove what an ended pod left", "pod", uid, "error", err)
		}
		r.journal.forget(types.UID(uid))
	}
	return nil
}
