// Command start measures how long pods take from their creation to a running container, node included, by stage: some one
// after another, then some at once. It needs a running cluster (make up); the image is there after the first pod.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"text/tabwriter"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/localcluster"
)

const (
	profile = "bench-start"
	limit   = 2 * time.Minute
)

// stages of a start, in order, each measured from the pod's creation, in seconds.
var stages = []string{"admitted", "placed", "accepted by the agent", "kubelet configured", "node registered", "sandbox started", "container started", "Running seen by a watch"}

type sample [8]float64

func main() {
	count := flag.Int("n", 10, "pods one after another")
	burst := flag.Int("burst", 5, "pods at once")
	image := flag.String("image", "busybox", "image of the pods")
	flag.Parse()
	if err := run(*count, *burst, *image); err != nil {
		fmt.Fprintln(os.Stderr, "bench-start:", err)
		os.Exit(1)
	}
}

func run(count, burst int, image string) error {
	ctx := context.Background()
	c, config, err := localcluster.Client(layout.Default.AdminKubeconfig())
	if err != nil {
		return err
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return err
	}
	p := &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: profile}, Spec: v1alpha1.FargateProfileSpec{
		Selectors: []v1alpha1.Selector{{Namespace: "default", Labels: map[string]string{"bench": profile}}}}}
	if err := c.Create(ctx, p); err != nil {
		return fmt.Errorf("create profile %s (is another bench running?): %w", profile, err)
	}
	defer c.Delete(ctx, p) //nolint:errcheck // best effort; the next run says so if it is still there
	for p.Status.Status != v1alpha1.ProfileActive {
		if err := c.Get(ctx, client.ObjectKeyFromObject(p), p); err != nil {
			return err
		}
	}
	if _, err := measure(ctx, c, kube, image, 1); err != nil { // brings the image
		return err
	}
	var single []sample
	for range count {
		s, err := measure(ctx, c, kube, image, 1)
		if err != nil {
			return err
		}
		single = append(single, s...)
	}
	show(fmt.Sprintf("%d pods one after another", count), single)
	many, err := measure(ctx, c, kube, image, burst)
	if err != nil {
		return err
	}
	show(fmt.Sprintf("%d pods at once", burst), many)
	return nil
}

// measure starts n pods at once, waits until all run, and removes them.
func measure(ctx context.Context, c client.Client, kube kubernetes.Interface, image string, n int) ([]sample, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	w, err := kube.CoreV1().Pods("default").Watch(ctx, metav1.ListOptions{LabelSelector: "bench=" + profile, FieldSelector: fields.Everything().String()})
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	created, running := map[string]time.Time{}, map[string]time.Time{}
	var pods []*corev1.Pod
	for range n {
		pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{GenerateName: "bench-", Namespace: "default", Labels: map[string]string{"bench": profile}},
			Spec: corev1.PodSpec{TerminationGracePeriodSeconds: new(int64), Containers: []corev1.Container{{
				Name: "c", Image: image, ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"sleep", "3600"}}}}}
		at := time.Now()
		if err := c.Create(ctx, pod); err != nil {
			return nil, err
		}
		created[pod.Name] = at
		pods = append(pods, pod)
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
	samples, err := collect(ctx, c, created, running)
	for _, pod := range pods {
		err = errors.Join(err, c.Delete(ctx, pod, client.GracePeriodSeconds(0)))
	}
	return samples, errors.Join(err, gone(ctx, c))
}

// collect reads the stages off the Berths once the agent has written them.
func collect(ctx context.Context, c client.Client, created, running map[string]time.Time) ([]sample, error) {
	for {
		var list v1alpha1.BerthList
		if err := c.List(ctx, &list, client.MatchingLabels{"eks.amazonaws.com/fargate-profile": profile}); err != nil {
			return nil, err
		}
		var out []sample
		for _, b := range list.Items {
			at, mine := created[b.Spec.Pod.Name]
			line := b.Status.Timeline
			if !mine || line.ContainerStarted == nil || line.NodeRegistered == nil || line.SandboxStarted == nil {
				continue
			}
			var s sample
			for i, m := range []*metav1.MicroTime{line.Admitted, line.Placed, line.Accepted, line.KubeletStarted, line.NodeRegistered, line.SandboxStarted, line.ContainerStarted} {
				if m != nil {
					s[i] = m.Sub(at).Seconds()
				}
			}
			s[7] = running[b.Spec.Pod.Name].Sub(at).Seconds()
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
func gone(ctx context.Context, c client.Client) error {
	for {
		var list v1alpha1.BerthList
		if err := c.List(ctx, &list, client.MatchingLabels{"eks.amazonaws.com/fargate-profile": profile}); err != nil || len(list.Items) == 0 {
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

func show(title string, samples []sample) {
	fmt.Printf("\n%s: seconds from the pod's creation\n", title)
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "stage\tmin\tmedian\tmax\t")
	for i, name := range stages {
		var column []float64
		for _, s := range samples {
			column = append(column, s[i])
		}
		slices.Sort(column)
		fmt.Fprintf(w, "%s\t%.3f\t%.3f\t%.3f\t\n", name, column[0], column[len(column)/2], column[len(column)-1])
	}
	w.Flush()
}
