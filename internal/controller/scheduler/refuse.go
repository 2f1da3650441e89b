package scheduler

import (
	"context"
	"fmt"
	"slices"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/internal/eks"
)

// refuse tells the pod's owner why it waits, for what and since when: as an event and as condition PodScheduled=False.
func (r *Reconciler) refuse(ctx context.Context, pod *corev1.Pod, no refusal) error {
	now := r.Now()
	name := client.ObjectKeyFromObject(pod)
	if last, ok := r.said.Load(name); ok && last.(saying).pod == pod.UID && last.(saying).key == no.key() && now.Sub(last.(saying).at) < repeatAfter {
		return nil
	}
	podsRefused.WithLabelValues(no.reason).Inc()
	r.said.Store(name, saying{pod.UID, no.key(), now})
	since := waitingSince(pod, now)
	message := eks.MessageWaits(no.message, no.waitsFor, since.Time)
	r.Recorder.Event(pod, corev1.EventTypeWarning, eks.EventFailedScheduling, message)
	want := corev1.PodCondition{Type: corev1.PodScheduled, Status: corev1.ConditionFalse, Reason: no.reason, Message: message, LastTransitionTime: since}
	before := pod.DeepCopy()
	i := slices.IndexFunc(pod.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodScheduled })
	switch {
	case i < 0:
		pod.Status.Conditions = append(pod.Status.Conditions, want)
	case pod.Status.Conditions[i].Status == want.Status && pod.Status.Conditions[i].Reason == want.Reason && pod.Status.Conditions[i].Message == want.Message:
		return nil
	default:
		pod.Status.Conditions[i] = want
	}
	if err := r.Client.Status().Patch(ctx, pod, client.StrategicMergeFrom(before)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("say why pod %s/%s waits: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

// waitingSince is when the pod was first refused, whatever the reasons since then.
func waitingSince(pod *corev1.Pod, now time.Time) metav1.Time {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && !c.LastTransitionTime.IsZero() {
			return c.LastTransitionTime
		}
	}
	return metav1.NewTime(now)
}
