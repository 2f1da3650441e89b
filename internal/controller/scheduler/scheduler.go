// Package scheduler is fargate-scheduler: it checks, sizes and places each pod that the webhook marked, writes the
// decision down as a Berth and binds the pod to the node that the Berth names.
package scheduler

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/placement"
	"github.com/berth-run/berth/internal/podcheck"
	match "github.com/berth-run/berth/internal/profile"
	"github.com/berth-run/berth/internal/sizing"
)

const (
	// retryInterval: a pod that cannot run now is looked at again then, even if nothing that it waits for was seen to change.
	// All of that is watched (Setup).
	retryInterval = 5 * time.Minute
	// bindRetry: a pod whose binding met a conflict is looked at again then.
	bindRetry = time.Second
	// takeTries is how often another address is tried when another controller has taken the chosen one; each try knows of all
	// that were taken before it.
	takeTries = 10
	// repeatAfter: the same event is said again no sooner.
	repeatAfter = 5 * time.Minute
	// maxPodName is how much of a pod's name is in that of its Berth.
	maxPodName = 200
)

// Reconciler places pods.
type Reconciler struct {
	Client client.Client
	// Live reads past the cache; nil: Client does.
	Live      client.Reader
	Recorder  record.EventRecorder
	Addresses *Addresses
	Region    string
	// Isolation of profiles that name none; empty is auto.
	Isolation v1alpha1.Isolation
	Now       func() time.Time

	// placing makes one decision at a time, so that two pods do not get the same room on a host before the cache shows it.
	placing sync.Mutex
	// pending are berths that were made here and may not be in the cache yet, by pod.
	pending map[types.UID]v1alpha1.Berth
	said    sync.Map // types.NamespacedName of the pod -> saying
}

type saying struct {
	pod types.UID
	key string
	at  time.Time
}

// BerthName is the name of a pod's Berth, the same at every try.
func BerthName(pod *corev1.Pod) string {
	sum := sha256.Sum256([]byte(pod.UID))
	name := pod.Name
	if len(name) > maxPodName {
		name = name[:maxPodName]
	}
	return name + "-" + hex.EncodeToString(sum[:4])
}

// PodName is the name of the pod that a Berth of this name is for; not known if that was too long to be in it.
func PodName(berth string) (name string, known bool) {
	name = berth[:max(0, strings.LastIndexByte(berth, '-'))]
	return name, name != "" && len(name) < maxPodName
}

// Reconcile places one pod.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	var pod corev1.Pod
	if err := r.Client.Get(ctx, req.NamespacedName, &pod); err != nil {
		r.said.Delete(req.NamespacedName)
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	if pod.Spec.NodeName != "" || pod.DeletionTimestamp != nil || len(pod.Spec.SchedulingGates) > 0 ||
		pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed {
		r.said.Delete(req.NamespacedName)
		return reconcile.Result{}, nil
	}
	berth, refusal, err := r.decide(ctx, &pod)
	if err != nil {
		return reconcile.Result{}, err
	}
	if refusal != nil {
		return reconcile.Result{RequeueAfter: retryInterval}, r.refuse(ctx, &pod, *refusal)
	}
	logging, why, err := r.logging(ctx)
	if err != nil {
		return reconcile.Result{}, err
	}
	switch err := r.bind(ctx, &pod, berth, logging); {
	case apierrors.IsNotFound(err): // deleted meanwhile
		return reconcile.Result{}, nil
	case apierrors.IsConflict(err): // bound already, as the cache will soon show, or being deleted
		return reconcile.Result{RequeueAfter: bindRetry}, nil
	case err != nil:
		return reconcile.Result{}, err
	}
	r.said.Delete(req.NamespacedName)
	podsBound.Inc()
	r.Recorder.Event(&pod, corev1.EventTypeWarning, eks.EventLoggingDisabled, why)
	r.Recorder.Event(&pod, corev1.EventTypeNormal, eks.EventScheduled, eks.MessageScheduled(pod.Namespace, pod.Name, berth.Spec.NodeName))
	return reconcile.Result{}, nil
}

// refusal is why a pod cannot run now: the reason of its condition PodScheduled, a sentence, and what would change it, if
// anything does.
type refusal struct {
	reason, message, waitsFor string
	// topology: it is about spread constraints or pod affinity, which other pods change.
	topology bool
}

// unschedulable is a refusal with the reason that kube-scheduler gives.
func unschedulable(message, waitsFor string) *refusal {
	return &refusal{reason: corev1.PodReasonUnschedulable, message: message, waitsFor: waitsFor}
}

// topologyKey is the key of refusals for which the message lists places that come and go.
const topologyKey = "topology"

// key is the part of the message that makes it another one: how much room is lacking, and where, changes all the time.
func (r refusal) key() string {
	switch {
	case strings.HasPrefix(r.message, eks.MessageNoCapacity):
		return eks.MessageNoCapacity
	case r.topology:
		return topologyKey
	}
	return r.message
}

// decide finds the pod's Berth or makes it.
func (r *Reconciler) decide(ctx context.Context, pod *corev1.Pod) (*v1alpha1.Berth, *refusal, error) {
	existing := &v1alpha1.Berth{}
	err := r.Client.Get(ctx, client.ObjectKey{Namespace: pod.Namespace, Name: BerthName(pod)}, existing)
	if err == nil && existing.DeletionTimestamp != nil {
		return nil, unschedulable(fmt.Sprintf("The pod's berth %s is being removed; the pod gets another one then", existing.Name), "that berth to go"), nil
	}
	if err == nil {
		return existing, nil, nil
	}
	if !apierrors.IsNotFound(err) {
		return nil, nil, fmt.Errorf("get the pod's berth: %w", err)
	}
	if made := r.remembered(pod); made != nil {
		return made, nil, nil
	}
	profile, no, err := r.profileOf(ctx, pod)
	if no != nil || err != nil {
		return nil, no, err
	}
	isolation, refused := match.IsolationFor(profile, pod, r.runtimeClass(ctx), r.Isolation)
	check := podcheck.Options{PVC: r.claim(ctx), IsolationRefused: refused, AllowPrivileged: match.AllowsPrivileged(profile, isolation.Isolation)}
	if violations := podcheck.Violations(pod, check); len(violations) > 0 {
		return nil, &refusal{reason: eks.ReasonUnsupported, message: eks.MessageUnsupported(violations), waitsFor: podcheck.WaitsFor(pod, check)}, nil
	}
	size, err := sizing.ForPod(&pod.Spec, profile.Spec.Sizing)
	if err != nil {
		return nil, &refusal{reason: eks.ReasonTooLarge, message: err.Error()}, nil //nolint:nilerr // it is the answer
	}
	return r.place(ctx, pod, wanted{profile, size, isolation})
}

// wanted is what a pod is to be given.
type wanted struct {
	profile   *v1alpha1.FargateProfile
	size      v1alpha1.Size
	isolation match.IsolationRequest
}

func (r *Reconciler) claim(ctx context.Context) func(string, string) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume, error) {
	return func(namespace, name string) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume, error) {
		pvc := &corev1.PersistentVolumeClaim{}
		if err := r.Client.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, pvc); err != nil {
			return nil, nil, err
		}
		if pvc.Spec.VolumeName == "" {
			return pvc, nil, nil
		}
		pv := &corev1.PersistentVolume{}
		if err := r.Client.Get(ctx, client.ObjectKey{Name: pvc.Spec.VolumeName}, pv); err != nil {
			return nil, nil, err
		}
		return pvc, pv, nil
	}
}

func (r *Reconciler) runtimeClass(ctx context.Context) func(string) (*nodev1.RuntimeClass, error) {
	return func(name string) (*nodev1.RuntimeClass, error) {
		class := &nodev1.RuntimeClass{}
		return class, r.Client.Get(ctx, client.ObjectKey{Name: name}, class)
	}
}

// remembered is the pod's Berth if it was made here and the cache does not show it yet.
func (r *Reconciler) remembered(pod *corev1.Pod) *v1alpha1.Berth {
	r.placing.Lock()
	defer r.placing.Unlock()
	if made, ok := r.pending[pod.UID]; ok {
		return &made
	}
	return nil
}

// forget drops what is remembered of a Berth that is leaving.
func (r *Reconciler) forget(berth *v1alpha1.Berth) {
	r.placing.Lock()
	defer r.placing.Unlock()
	delete(r.pending, berth.Spec.Pod.UID)
}

// place chooses and writes the decision down.
func (r *Reconciler) place(ctx context.Context, pod *corev1.Pod, want wanted) (*v1alpha1.Berth, *refusal, error) {
	for try := 1; ; try++ {
		berth, no, err := r.choose(ctx, pod, want)
		if no != nil || err != nil {
			return nil, no, err
		}
		err = r.Addresses.Commit(ctx, r.live(), r.Client, pod.UID, r.Now())
		if err == nil {
			err = r.Client.Create(ctx, berth)
		}
		if err == nil {
			return berth, nil, nil
		}
		r.giveUp(pod)
		if try == takeTries || !errors.Is(err, errTaken) {
			return nil, nil, fmt.Errorf("create berth %s: %w", berth.Name, err)
		}
	}
}

func (r *Reconciler) live() client.Reader {
	if r.Live != nil {
		return r.Live
	}
	return r.Client
}

// giveUp takes a choice back.
func (r *Reconciler) giveUp(pod *corev1.Pod) {
	r.placing.Lock()
	defer r.placing.Unlock()
	delete(r.pending, pod.UID)
	r.Addresses.GiveBack(pod.UID, r.Now())
}

// choose chooses for one pod at a time, and remembers the choice until the cache shows it.
func (r *Reconciler) choose(ctx context.Context, pod *corev1.Pod, want wanted) (*v1alpha1.Berth, *refusal, error) {
	r.placing.Lock()
	defer r.placing.Unlock()
	now := r.Now()
	if err := r.Addresses.Sync(ctx, r.Client, now); err != nil {
		return nil, nil, err
	}
	in, err := r.snapshot(ctx, pod, want.profile, now)
	if err != nil {
		return nil, nil, err
	}
	in.Pod, in.Size, in.ProfileName = pod, want.size, want.profile.Name
	in.Isolation, in.IsolationBy = want.isolation.Isolation, want.isolation.By
	choice, err := placement.Choose(in, r.Region)
	var waits interface {
		error
		WaitsFor() string
	}
	if errors.As(err, &waits) {
		no := unschedulable(err.Error(), waits.WaitsFor())
		_, no.topology = waits.(*placement.TopologyError)
		return nil, no, nil
	}
	if err != nil {
		return nil, nil, err
	}
	addr, err := r.Addresses.Take(choice.Subnet, pod.UID, now)
	if err != nil {
		noRoom := &placement.NoCapacityError{Details: []string{err.Error()}}
		return nil, unschedulable(noRoom.Error(), noRoom.WaitsFor()), nil
	}
	berth := newBerth(pod, want, choice, eks.NodeName(addr, r.Region), addr.String(), now)
	berth.Spec.IsolationReason = placement.IsolationReason(in, choice)
	r.pending[pod.UID] = *berth.DeepCopy()
	return berth, nil, nil
}

func newBerth(pod *corev1.Pod, want wanted, c placement.Choice, node, ip string, now time.Time) *v1alpha1.Berth {
	return &v1alpha1.Berth{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: pod.Namespace, Name: BerthName(pod),
			Labels:     map[string]string{eks.LabelProfile: want.profile.Name},
			Finalizers: []string{v1alpha1.FinalizerPod, v1alpha1.FinalizerHost, v1alpha1.FinalizerNode},
			Annotations: map[string]string{
				v1alpha1.AnnotationAdmitted: pod.Annotations[v1alpha1.AnnotationAdmitted],
				v1alpha1.AnnotationPlaced:   now.UTC().Format(time.RFC3339Nano),
			},
			OwnerReferences: []metav1.OwnerReference{{
				APIVersion: "v1", Kind: "Pod", Name: pod.Name, UID: pod.UID, Controller: ptr.To(true), BlockOwnerDeletion: ptr.To(false),
			}},
		},
		Spec: v1alpha1.BerthSpec{
			Pod:         v1alpha1.PodReference{Name: pod.Name, UID: pod.UID},
			ProfileName: want.profile.Name, HostName: c.Host, SubnetName: c.Subnet, Zone: c.Zone,
			NodeName: node, IP: ip, Size: want.size, Isolation: c.Isolation, Bandwidth: bandwidth(pod),
			AllowPrivileged: match.AllowsPrivileged(want.profile, want.isolation.Isolation),
		},
	}
}

// bandwidth is what the pod's annotations, which podcheck found good, allow it.
func bandwidth(pod *corev1.Pod) *v1alpha1.Bandwidth {
	ingress, egress, err := podcheck.Bandwidth(pod)
	if err != nil || ingress == nil && egress == nil {
		return nil
	}
	return &v1alpha1.Bandwidth{Ingress: ingress, Egress: egress}
}

// bind binds the pod to its node; annotations and label (which a pod without a webhook lacks) travel with the binding, in one write.
func (r *Reconciler) bind(ctx context.Context, pod *corev1.Pod, berth *v1alpha1.Berth, logging string) error {
	binding := &corev1.Binding{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: pod.Name, UID: pod.UID,
			Labels: map[string]string{eks.LabelProfile: berth.Spec.ProfileName},
			Annotations: map[string]string{
				eks.AnnotationCapacityProvisioned: sizing.CapacityProvisioned(berth.Spec.Size), eks.AnnotationLogging: logging,
			}},
		Target: corev1.ObjectReference{Kind: "Node", Name: berth.Spec.NodeName},
	}
	if err := r.Client.SubResource("binding").Create(ctx, pod, binding); err != nil {
		return fmt.Errorf("bind pod %s/%s to %s: %w", pod.Namespace, pod.Name, berth.Spec.NodeName, err)
	}
	return nil
}

var _ reconcile.Reconciler = (*Reconciler)(nil)
