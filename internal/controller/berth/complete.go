package berth

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
)

// noteCompletion tells the host agent, which writes the status, that the pod has Succeeded or Failed, and when.
func (r *Reconciler) noteCompletion(ctx context.Context, pod *corev1.Pod, berth *v1alpha1.Berth) error {
	over := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	if !over || berth.Annotations[v1alpha1.AnnotationCompleted] != "" {
		return nil
	}
	before := berth.DeepCopy()
	metav1.SetMetaDataAnnotation(&berth.ObjectMeta, v1alpha1.AnnotationCompleted, r.completedAt(pod).UTC().Format(time.RFC3339Nano))
	if err := r.Client.Patch(ctx, berth, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("note the end of pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// completedAt is when the last container ended (whole seconds, from the kubelet), or now if none ever ran.
func (r *Reconciler) completedAt(pod *corev1.Pod) time.Time {
	var last time.Time
	for _, list := range [][]corev1.ContainerStatus{pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses} {
		for _, s := range list {
			if t := s.State.Terminated; t != nil && t.FinishedAt.After(last) {
				last = t.FinishedAt.Time
			}
		}
	}
	if last.IsZero() {
		return r.Now()
	}
	return last
}
