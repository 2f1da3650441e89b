package patch

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	corev1 "k8s.io/api/core/v1"
	policy "k8s.io/api/policy/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/patching"
)

// Reasons of the events that a pod's owner sees.
const (
	reasonNotified  = "PatchNotification"
	reasonScheduled = "ScheduledTermination"
)

// recycle does for one pod what is due: tell its owner, evict it if its zone's turn has come, or terminate it. It says after
// how long something is due again.
func (r *Reconciler) recycle(ctx context.Context, p *v1alpha1.Patch, s patching.Subject, zone string, now time.Time) (time.Duration, error) {
	if err := r.notify(ctx, p, s); err != nil {
		return 0, err
	}
	at := s.Termination()
	if s.Pod.DeletionTimestamp != nil || at.IsZero() && s.Berth.Spec.Zone != zone {
		return 0, nil
	}
	due, pause := !at.IsZero() && !now.Before(at), evictAgain
	if at.IsZero() {
		pause = evictSoon
	}
	tries := attempts{now, now}
	if before, ok := r.tried.Load(s.Pod.UID); ok {
		tries.first = before.(attempts).first
		if wait := before.(attempts).last.Add(pause).Sub(now); wait > 0 && !due {
			return soonest(wait, at, now), nil
		}
	}
	r.tried.Store(s.Pod.UID, tries)
	said, err := r.evict(ctx, s.Pod)
	switch {
	case err != nil:
		return 0, err
	case said == "":
		return 0, nil
	case due:
		return 0, r.terminate(ctx, s.Pod)
	case at.IsZero() && now.Sub(tries.first) >= patience:
		at, pause = patching.Termination(p.Spec.Window, delay(p), now), evictAgain
		if err := r.schedule(ctx, s, said, at); err != nil {
			return 0, err
		}
	}
	return soonest(pause, at, now), nil
}

// soonest of the next try and the scheduled termination.
func soonest(wait time.Duration, at, now time.Time) time.Duration {
	if until := at.Sub(now); !at.IsZero() && until < wait {
		return max(until, atOnce)
	}
	return wait
}

// notify tells the pod's owner once in a round that the pod is subject to eviction.
func (r *Reconciler) notify(ctx context.Context, p *v1alpha1.Patch, s patching.Subject) error {
	round := p.Status.StartedAt.UTC().Format(time.RFC3339)
	if s.Berth.Annotations[v1alpha1.AnnotationPatchNotified] == round {
		return nil
	}
	if err := r.annotate(ctx, s.Berth, v1alpha1.AnnotationPatchNotified, round); err != nil {
		return err
	}
	r.Recorder.Event(s.Pod, corev1.EventTypeNormal, reasonNotified, patching.Notification(s, p.Status.StartedAt.Time))
	return nil
}

// evict asks for the pod's eviction. said is why it was refused; empty: the pod goes.
func (r *Reconciler) evict(ctx context.Context, pod *corev1.Pod) (said string, err error) {
	eviction := &policy.Eviction{
		ObjectMeta:    metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name},
		DeleteOptions: &metav1.DeleteOptions{Preconditions: &metav1.Preconditions{UID: &pod.UID}},
	}
	err = r.Client.SubResource("eviction").Create(ctx, pod, eviction)
	var refused apierrors.APIStatus
	switch {
	case client.IgnoreNotFound(err) == nil, apierrors.IsConflict(err): // gone, or another pod has its name
		return "", nil
	case apierrors.IsTooManyRequests(err) && errors.As(err, &refused):
		return refused.Status().Message, nil
	case errors.As(err, &refused) && refused.Status().Code == http.StatusInternalServerError && refused.Status().Reason == "":
		return eks.MessageMultipleBudgets, nil // the one failure for which the API server has no reason
	}
	return "", fmt.Errorf("evict pod %s/%s: %w", pod.Namespace, pod.Name, err)
}

// schedule announces the pod's termination, once.
func (r *Reconciler) schedule(ctx context.Context, s patching.Subject, said string, at time.Time) error {
	if err := r.annotate(ctx, s.Berth, v1alpha1.AnnotationScheduledTermination, at.UTC().Format(time.RFC3339Nano)); err != nil {
		return err
	}
	notice := patching.NoticeOf(r.Cluster, s, said, at)
	r.Recorder.AnnotatedEventf(s.Pod, map[string]string{v1alpha1.AnnotationNotice: notice.JSON()}, corev1.EventTypeWarning, reasonScheduled, "%s", notice)
	return nil
}

// terminate deletes a pod whose budget did not let it go in time.
func (r *Reconciler) terminate(ctx context.Context, pod *corev1.Pod) error {
	if err := r.Client.Delete(ctx, pod, client.Preconditions{UID: &pod.UID}); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("terminate pod %s/%s: %w", pod.Namespace, pod.Name, err)
	}
	return nil
}

func (r *Reconciler) annotate(ctx context.Context, berth *v1alpha1.Berth, key, value string) error {
	before := berth.DeepCopy()
	metav1.SetMetaDataAnnotation(&berth.ObjectMeta, key, value)
	if err := r.Client.Patch(ctx, berth, client.MergeFrom(before)); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("note in berth %s/%s that its pod is patched: %w", berth.Namespace, berth.Name, err)
	}
	return nil
}
