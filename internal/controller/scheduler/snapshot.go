package scheduler

import (
	"context"
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/placement"
	"github.com/berth-run/berth/internal/topology"
)

// uncopied lists of all Berths, one for each placement, share their parts with the cache: whoever asks for one only reads.
const uncopied = client.UnsafeDisableDeepCopy

// New makes the reconciler.
func New(c client.Client, recorder record.EventRecorder, addresses *Addresses, region string) *Reconciler {
	return &Reconciler{Client: c, Recorder: recorder, Addresses: addresses, Region: region, Now: time.Now, pending: map[types.UID]v1alpha1.Berth{}}
}

// snapshot is what placement sees: the cache, and what was decided here a moment ago.
func (r *Reconciler) snapshot(ctx context.Context, pod *corev1.Pod, profile *v1alpha1.FargateProfile, now time.Time) (placement.Input, error) {
	var in placement.Input
	var berths v1alpha1.BerthList
	if err := r.Client.List(ctx, &berths, uncopied); err != nil {
		return in, fmt.Errorf("list berths: %w", err)
	}
	for i := range berths.Items {
		delete(r.pending, berths.Items[i].Spec.Pod.UID)
	}
	all := berths.Items
	for _, b := range r.pending {
		all = append(all, b)
	}
	var subnets v1alpha1.SubnetList
	if err := r.Client.List(ctx, &subnets); err != nil {
		return in, fmt.Errorf("list subnets: %w", err)
	}
	var hosts v1alpha1.HostList
	if err := r.Client.List(ctx, &hosts); err != nil {
		return in, fmt.Errorf("list hosts: %w", err)
	}
	in = placement.Snapshot(profile, subnets.Items, hosts.Items, all, func(s *v1alpha1.Subnet) int {
		free, _ := r.Addresses.Usage(s.Name, now)
		return free
	})
	var err error
	in.Topology, err = r.topology(ctx, pod, all)
	return in, err
}

// topology judges by the other pods of this scheduler; nil if there is nothing to judge, which is so for most pods.
func (r *Reconciler) topology(ctx context.Context, pod *corev1.Pod, berths []v1alpha1.Berth) (placement.Topology, error) {
	var pods corev1.PodList
	if err := r.Client.List(ctx, &pods, client.UnsafeDisableDeepCopy); err != nil {
		return nil, fmt.Errorf("list pods: %w", err)
	}
	if !topology.Concerns(pod, pods.Items) {
		return nil, nil
	}
	var namespaces corev1.NamespaceList
	if err := r.Client.List(ctx, &namespaces); err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	return topology.New(r.Region, topology.Of(pods.Items, berths), namespaces.Items), nil
}
