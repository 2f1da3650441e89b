// Command hold starts many pods at once on a running cluster (make up), holds them and takes them away again. It says how
// long that takes, what memory and CPU the idle pods cost, and whether anything stays behind.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/test/bench"
)

const (
	name = "bench-hold"
	// perPod is how long one pod's start and end may take on average.
	perPod = 10 * time.Second
	// singles is how many pods are deleted one by one before the rest goes at once.
	singles = 10
)

func main() {
	o := options{}
	flag.IntVar(&o.count, "n", 50, "pods")
	flag.StringVar(&o.image, "image", "busybox", "image of the pods")
	flag.StringVar(&o.requestCPU, "cpu", "50m", "what each pod requests")
	flag.StringVar(&o.isolation, "isolation", "", "what the pods run in: auto, microvm or gvisor (default: the cluster's)")
	flag.StringVar(&o.requestMemory, "memory", "64Mi", "what each pod requests")
	flag.DurationVar(&o.idle, "idle", time.Minute, "how long the CPU of idle pods is measured; 0: neither that nor memory")
	flag.DurationVar(&o.settle, "settle", 25*time.Second, "how long pods are left alone before they are measured: a node process gives the memory of its start back after 15 s, "+
		"an emulated machine its translated code after as long, and has translated what an idle one runs again after three minutes")
	flag.StringVar(&o.binDir, "bin", "bin", "directory of the cluster's programs")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench-hold:", err)
		os.Exit(1)
	}
}

type options struct {
	count                     int
	image, binDir             string
	requestCPU, requestMemory string
	isolation                 string
	settle, idle              time.Duration
}

// holder has the cluster and the pods that it holds.
type holder struct {
	*bench.Cluster
	options
	pods []*corev1.Pod
	// nodes are the names of the pods' nodes, by pod.
	nodes map[string]string
}

func run(ctx context.Context, o options) (err error) {
	cluster, err := bench.Connect()
	if err != nil {
		return err
	}
	if o.binDir, err = filepath.Abs(o.binDir); err != nil {
		return err
	}
	if o.binDir, err = filepath.EvalSymlinks(o.binDir); err != nil {
		return fmt.Errorf("find the cluster's programs (-bin): %w", err)
	}
	h := &holder{Cluster: cluster, options: o, nodes: map[string]string{}}
	profile, err := h.Profile(ctx, name, v1alpha1.SizingExact, v1alpha1.Isolation(h.isolation))
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, client.IgnoreNotFound(h.Delete(context.WithoutCancel(ctx), profile)))
	}()
	limited, cancel := context.WithTimeout(ctx, time.Duration(o.count)*2*perPod+o.idle+time.Minute)
	defer cancel()
	parts := []func(context.Context) error{h.start, h.memory, h.cpuOfIdle, h.end}
	if o.idle == 0 {
		parts = []func(context.Context) error{h.start, h.end}
	}
	for _, part := range parts {
		if err := part(limited); err != nil {
			return errors.Join(err, h.clean(context.WithoutCancel(ctx)))
		}
	}
	return nil
}

func (h *holder) clean(ctx context.Context) error {
	return h.DeleteAllOf(ctx, &corev1.Pod{}, client.InNamespace(metav1.NamespaceDefault), client.MatchingLabels{"bench": name})
}

// pod runs a shell that ends at once when it is told to.
func (h *holder) pod() *corev1.Pod {
	return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "hold-", Namespace: metav1.NamespaceDefault, Labels: map[string]string{"bench": name}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{
			Name: "c", Image: h.image, ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"sh", "-c", "trap exit TERM; sleep 1000000 & wait"},
			Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
				corev1.ResourceCPU: resource.MustParse(h.requestCPU), corev1.ResourceMemory: resource.MustParse(h.requestMemory)}}}}}}
}

// start creates all pods at once and waits until all run.
func (h *holder) start(ctx context.Context) error {
	began := time.Now()
	for range h.count {
		pod := h.pod()
		if err := h.Create(ctx, pod); err != nil {
			return fmt.Errorf("create a pod: %w", err)
		}
		h.pods = append(h.pods, pod)
	}
	var took []time.Duration
	seen := map[string]bool{}
	err := bench.Until(ctx, func() (bool, error) {
		var list corev1.PodList
		if err := h.List(ctx, &list, client.InNamespace(metav1.NamespaceDefault), client.MatchingLabels{"bench": name}); err != nil {
			return false, err
		}
		for _, p := range list.Items {
			if p.Status.Phase == corev1.PodRunning && !seen[p.Name] {
				seen[p.Name], h.nodes[p.Name] = true, p.Spec.NodeName
				took = append(took, time.Since(began))
			}
		}
		return len(took) == h.count, nil
	})
	if err != nil {
		return fmt.Errorf("%d of %d pods run: %w", len(took), h.count, err)
	}
	fmt.Printf("%d pods at once, each with a node of its own: half of them ran after %.1f s, all after %.1f s (%.1f pods/s)\n",
		h.count, took[len(took)/2].Seconds(), took[len(took)-1].Seconds(), float64(h.count)/took[len(took)-1].Seconds())
	return nil
}

func (h *holder) uids() []string {
	var out []string
	for _, p := range h.pods {
		out = append(out, string(p.UID))
	}
	return out
}

// sums adds a figure up by kind and prints each kind's share of a pod, and the total.
type sums map[string]float64

func (s sums) show(title, unit string, pods int) {
	fmt.Printf("\n%s\n", title)
	total := 0.0
	for _, kind := range slices.Sorted(mapKeys(s)) {
		fmt.Printf("  %-28s %8.2f %s\n", kind, s[kind]/float64(pods), unit)
		total += s[kind] / float64(pods)
	}
	fmt.Printf("  %-28s %8.2f %s\n", "together", total, unit)
}

func (h *holder) memory(ctx context.Context) error {
	select {
	case <-time.After(h.settle):
	case <-ctx.Done():
		return ctx.Err()
	}
	found, err := find(h.uids(), h.binDir)
	if err != nil {
		return err
	}
	s := sums{}
	for _, p := range found.pods {
		bytes, err := private(p.pid)
		if err != nil {
			return err
		}
		s[p.kind] += float64(bytes) / (1 << 20)
	}
	s.show(fmt.Sprintf("private memory of one of %d idle pods", h.count), "MiB", h.count)
	return nil
}

// cpuOfIdle measures the processes of the pods and, apart, those that all pods share: what the control plane does for idle
// nodes, and for itself.
func (h *holder) cpuOfIdle(ctx context.Context) error {
	found, err := find(h.uids(), h.binDir)
	if err != nil {
		return err
	}
	before := map[int]time.Duration{}
	all := slices.Concat(found.pods, found.shared)
	for _, p := range all {
		before[p.pid] = cpu(p.pid)
	}
	select {
	case <-time.After(h.idle):
	case <-ctx.Done():
		return ctx.Err()
	}
	pods, shared := sums{}, sums{}
	for _, p := range found.pods {
		pods[p.kind] += 1000 * (cpu(p.pid) - before[p.pid]).Seconds() / h.idle.Seconds()
	}
	for _, p := range found.shared {
		shared[p.kind] += 1000 * max(0, (cpu(p.pid)-before[p.pid]).Seconds()) / h.idle.Seconds()
	}
	pods.show(fmt.Sprintf("CPU of one of %d idle pods, over %s", h.count, h.idle), "mCPU", h.count)
	shared.show("CPU of what all pods share, meanwhile", "mCPU", 1)
	return nil
}
