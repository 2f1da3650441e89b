// Command start measures how long pods take from their creation to a running container, node included, by stage: some one
// after another, then some at once, in each isolation that the host can run, beside the same pods under a plain upstream kubelet in
// gVisor. It needs a running cluster (make up), for the plain kubelet one without pods; the image is there after the first pod.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/test/bench"
)

const (
	profile = "bench-start"
	limit   = 2 * time.Minute
)

// stages of a start, in order, each measured from the pod's creation, in seconds.
var stages = []string{"admitted", "placed", "accepted by the agent", "kubelet configured", "node registered", "sandbox started", "container started", "Running seen by a watch"}

// sample is one pod's stages; a plain kubelet's pod has the last two only.
type sample [8]float64

const (
	containerStarted = 6
	runningSeen      = 7
)

func main() {
	count := flag.Int("n", 10, "pods one after another")
	burst := flag.Int("burst", 5, "pods at once; 0: none")
	rounds := flag.Int("rounds", 2, "times that Berth and the plain kubelet take turns, so that a noisy moment does not hit one alone")
	image := flag.String("image", "busybox", "image of the pods")
	only := flag.String("isolations", "", "isolations to measure, separated by commas (default: all that the host can run)")
	kubelet := flag.String("kubelet", "bin/kubelet", "upstream's kubelet program; empty: Berth alone")
	flag.Parse()
	if err := run(settings{*count, *burst, *rounds, *image, *kubelet, *only}); err != nil {
		fmt.Fprintln(os.Stderr, "bench-start:", err)
		os.Exit(1)
	}
}

// figures are all samples of one side.
type figures struct{ single, burst []sample }

type settings struct {
	count, burst, rounds       int
	image, kubelet, isolations string
}

func run(o settings) error {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	c, err := bench.Connect()
	if err != nil {
		return err
	}
	if o.kubelet != "" {
		if err := idle(ctx, c); err != nil {
			return err
		}
	}
	sides, err := makeSides(ctx, c, o)
	if err != nil {
		return err
	}
	for _, side := range sides {
		defer c.Delete(context.WithoutCancel(ctx), side.profile) //nolint:errcheck // best effort; the next run says so if it is still there
	}
	var plain figures
	for round := range o.rounds {
		n := (o.count*(round+1))/o.rounds - (o.count*round)/o.rounds
		for _, side := range sides {
			if err := side.take(ctx, &side.figures, n, o.burst); err != nil {
				return fmt.Errorf("pods in isolation %s: %w", side.isolation, err)
			}
		}
		if o.kubelet == "" {
			continue
		}
		if err := sides[0].plainSeries(ctx, &plain, n, o.burst, o.kubelet); err != nil {
			return err
		}
	}
	for _, side := range sides {
		show(fmt.Sprintf("%s: %d pods one after another", side.isolation, o.count), side.single, plain.single)
		show(fmt.Sprintf("%s: %d pods at once, %d times", side.isolation, o.burst, o.rounds), side.burst, plain.burst)
	}
	return nil
}

// side is one isolation's pods, and what was measured.
type side struct {
	series
	figures
	isolation v1alpha1.Isolation
	profile   *v1alpha1.FargateProfile
}

// makeSides makes a profile for each isolation.
func makeSides(ctx context.Context, c *bench.Cluster, o settings) ([]*side, error) {
	isolations, err := c.Isolations(ctx)
	if err != nil {
		return nil, err
	}
	if o.isolations != "" {
		isolations = nil
		for name := range strings.SplitSeq(o.isolations, ",") {
			isolations = append(isolations, v1alpha1.Isolation(name))
		}
	}
	if len(isolations) == 0 {
		return nil, errors.New("the host can run no isolation; `berth status` says why")
	}
	var out []*side
	for _, i := range isolations {
		p, err := c.Profile(ctx, profile+"-"+string(i), v1alpha1.SizingTable, i)
		if err != nil {
			return nil, err
		}
		out = append(out, &side{series: series{client: c, kube: c.Kube, image: o.image, profile: p.Name}, isolation: i, profile: p})
	}
	return out, nil
}

// idle is an error if a pod runs: the plain kubelet would end it.
func idle(ctx context.Context, c client.Client) error {
	var pods corev1.PodList
	if err := c.List(ctx, &pods); err != nil {
		return fmt.Errorf("list pods: %w", err)
	}
	for _, p := range pods.Items {
		if p.Spec.NodeName != "" {
			return fmt.Errorf("pod %s/%s runs, which a plain kubelet would end: remove it (CoreDNS: bin/kubectl -n kube-system scale deployment coredns --replicas 0), or compare with none (-kubelet '')", p.Namespace, p.Name)
		}
	}
	return nil
}

// series starts pods and takes the time. With plain set they are the plain kubelet's.
type series struct {
	client client.Client
	kube   kubernetes.Interface
	image  string
	// profile of the pods.
	profile string
	plain   *plainNode
}

// take adds n pods one by one and a burst to f. One pod goes ahead and is not counted: it brings the image.
func (b series) take(ctx context.Context, f *figures, n, burst int) error {
	for i := range n + 1 {
		s, err := b.measure(ctx, 1)
		if err != nil {
			return err
		}
		if i > 0 {
			f.single = append(f.single, s...)
		}
	}
	s, err := b.measure(ctx, burst)
	f.burst = append(f.burst, s...)
	return err
}

func (b series) plainSeries(ctx context.Context, f *figures, n, burst int, kubelet string) (err error) {
	if b.plain, err = startPlain(ctx, b.client, kubelet); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.plain.stop(context.WithoutCancel(ctx))) }()
	return b.take(ctx, f, n, burst)
}

func (b series) pod() *corev1.Pod {
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "bench-", Namespace: "default", Labels: map[string]string{"bench": b.profile}},
		Spec: corev1.PodSpec{TerminationGracePeriodSeconds: new(int64), Containers: []corev1.Container{{
			Name: "c", Image: b.image, ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"sleep", "3600"}}}}}
	if b.plain != nil {
		pod.Labels = map[string]string{"bench": plainName}
		b.plain.place(pod)
	}
	return pod
}

// measure starts n pods at once, waits until all run, and removes them.
func (b series) measure(ctx context.Context, n int) ([]sample, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	w, err := b.kube.CoreV1().Pods("default").Watch(ctx, metav1.ListOptions{LabelSelector: "bench=" + b.pod().Labels["bench"]})
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	created, running := map[string]time.Time{}, map[string]time.Time{}
	var pods []*corev1.Pod
	for range n {
		pod := b.pod()
		at := time.Now()
		if err := b.client.Create(ctx, pod); err != nil {
			return nil, err
		}
		created[pod.Name] = at
		pods = append(pods, pod)
		if b.plain != nil {
			if err := b.plain.connect(pod); err != nil {
				return nil, err
			}
		}
	}
	for len(running) < n {
		event, ok := <-w.ResultChan()
		if !ok {
			return nil, errors.New("the pods did not all run within two minutes")
		}
		pod, ok := event.Object.(*corev1.Pod)
		if !ok || len(pod.Status.ContainerStatuses) == 0 || pod.Status.ContainerStatuses[0].State.Running == nil {
			continue
		}
		if _, seen := running[pod.Name]; !seen && !created[pod.Name].IsZero() {
			running[pod.Name] = time.Now()
		}
	}
	collect, gone := b.collect, b.gone
	if b.plain != nil {
		collect, gone = b.collectPlain, b.plain.gone
	}
	samples, err := collect(ctx, created, running)
	for _, pod := range pods {
		err = errors.Join(err, b.client.Delete(ctx, pod, client.GracePeriodSeconds(0)))
	}
	return samples, errors.Join(err, gone(ctx, pods))
}

func (b series) collectPlain(ctx context.Context, created, running map[string]time.Time) ([]sample, error) {
	var out []sample
	for name, at := range created {
		started, err := b.plain.started(ctx, name)
		if err != nil {
			return nil, err
		}
		var s sample
		s[containerStarted], s[runningSeen] = started.Sub(at).Seconds(), running[name].Sub(at).Seconds()
		out = append(out, s)
	}
	return out, nil
}

// collect reads the stages off the Berths once the agent has written them.
func (b series) collect(ctx context.Context, created, running map[string]time.Time) ([]sample, error) {
	for {
		var list v1alpha1.BerthList
		if err := b.client.List(ctx, &list, client.MatchingLabels{"eks.amazonaws.com/fargate-profile": b.profile}); err != nil {
			return nil, err
		}
		var out []sample
		for _, made := range list.Items {
			at, mine := created[made.Spec.Pod.Name]
			line := made.Status.Timeline
			if !mine || line.ContainerStarted == nil || line.NodeRegistered == nil || line.SandboxStarted == nil {
				continue
			}
			var s sample
			for i, m := range []*metav1.MicroTime{line.Admitted, line.Placed, line.Accepted, line.KubeletStarted, line.NodeRegistered, line.SandboxStarted, line.ContainerStarted} {
				if m != nil {
					s[i] = m.Sub(at).Seconds()
				}
			}
			s[runningSeen] = running[made.Spec.Pod.Name].Sub(at).Seconds()
			out = append(out, s)
		}
		if len(out) == len(created) {
			return out, nil
		}
		if err := pause(ctx); err != nil {
			return nil, err
		}
	}
}

// gone waits until no Berth of the bench is left, so that one measurement does not disturb the next.
func (b series) gone(ctx context.Context, _ []*corev1.Pod) error {
	for {
		var list v1alpha1.BerthList
		if err := b.client.List(ctx, &list, client.MatchingLabels{"eks.amazonaws.com/fargate-profile": b.profile}); err != nil || len(list.Items) == 0 {
			return err
		}
		if err := pause(ctx); err != nil {
			return err
		}
	}
}

func pause(ctx context.Context) error {
	select {
	case <-time.After(50 * time.Millisecond):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func show(title string, berth, plain []sample) {
	if len(berth) == 0 {
		return
	}
	fmt.Printf("\n%s: seconds from the pod's creation\n", title)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "stage\tmin\tmedian\tmax\t")
	medians := map[string]float64{}
	row := func(name string, stage int, samples []sample) {
		var column []float64
		for _, s := range samples {
			column = append(column, s[stage])
		}
		slices.Sort(column)
		medians[name] = column[len(column)/2]
		fmt.Fprintf(w, "%s\t%.3f\t%.3f\t%.3f\t\n", name, column[0], medians[name], column[len(column)-1])
	}
	for i, name := range stages {
		row(name, i, berth)
	}
	if len(plain) > 0 {
		for i := containerStarted; i <= runningSeen; i++ {
			row("plain kubelet: "+stages[i], i, plain)
		}
	}
	w.Flush()
	if len(plain) > 0 {
		name := stages[runningSeen]
		fmt.Printf("Berth's median, with a new node each, is %.2f times the plain kubelet's on a node that exists.\n", medians[name]/medians["plain kubelet: "+name])
	}
}
