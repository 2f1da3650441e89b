package main

import (
	"context"
	"fmt"
	"iter"
	"os"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/podnet"
	"github.com/berth-run/berth/test/bench"
)

func mapKeys(s sums) iter.Seq[string] {
	return func(yield func(string) bool) {
		for k := range s {
			if !yield(k) {
				return
			}
		}
	}
}

// end deletes some pods one by one and the rest at once, and takes the time until nothing of them is left.
func (h *holder) end(ctx context.Context) error {
	one := min(singles, len(h.pods))
	var took []float64
	for _, pod := range h.pods[:one] {
		began := time.Now()
		if err := h.Delete(ctx, pod); err != nil {
			return fmt.Errorf("delete pod %s: %w", pod.Name, err)
		}
		if err := h.gone(ctx, pod); err != nil {
			return err
		}
		took = append(took, time.Since(began).Seconds())
	}
	slices.Sort(took)
	fmt.Printf("\nfrom a pod's deletion until its process, node, berth, cgroup, link and files are gone, %d one after another: min %.2f s, median %.2f s, max %.2f s\n",
		one, took[0], took[one/2], took[one-1])
	rest := h.pods[one:]
	if len(rest) == 0 {
		return nil
	}
	began := time.Now()
	if err := h.clean(ctx); err != nil {
		return fmt.Errorf("delete the pods: %w", err)
	}
	for _, pod := range rest {
		if err := h.gone(ctx, pod); err != nil {
			return err
		}
	}
	all := time.Since(began).Seconds()
	fmt.Printf("%d at once: all gone after %.1f s (%.1f pods/s)\n", len(rest), all, float64(len(rest))/all)
	return nil
}

// gone waits until nothing of the pod is left in the cluster and on this machine.
func (h *holder) gone(ctx context.Context, pod *corev1.Pod) error {
	left := ""
	err := bench.Until(ctx, func() (done bool, err error) {
		left, err = h.left(ctx, pod)
		return left == "", err
	})
	if err != nil {
		return fmt.Errorf("pod %s: its %s is still there: %w", pod.Name, left, err)
	}
	return nil
}

// left names something that is left of the pod.
func (h *holder) left(ctx context.Context, pod *corev1.Pod) (string, error) {
	uid := string(pod.UID)
	for what, path := range map[string]string{"cgroup": podDirectory(uid), "run directory": layout.Default.NodeRun(uid), "directory": layout.Default.Node(uid)} {
		if _, err := os.Stat(path); err == nil {
			return what, nil
		}
	}
	if _, err := netlink.LinkByName(podnet.HostLink(uid)); err == nil {
		return "link", nil
	}
	for what, object := range map[string]client.Object{"pod": &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name}},
		"node": &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: h.nodes[pod.Name]}}} {
		if err := h.Get(ctx, client.ObjectKeyFromObject(object), object); err == nil {
			return what, nil
		} else if !apierrors.IsNotFound(err) {
			return what, err
		}
	}
	var berths v1alpha1.BerthList
	if err := h.List(ctx, &berths, client.InNamespace(pod.Namespace)); err != nil {
		return "berth", err
	}
	for _, b := range berths.Items {
		if b.Spec.Pod.UID == pod.UID {
			return "berth", nil
		}
	}
	return "", nil
}
