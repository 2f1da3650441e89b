package hostagent

import (
	"context"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/api/resource"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/handler"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/hostagent/network"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/profile"
	"github.com/berth-run/berth/internal/runtimeconf"
)

// subnetNetwork is the host as subnets concern it.
type subnetNetwork interface {
	SetSubnets(ctx context.Context, subnets []network.Subnet) error
}

// subnets keeps the host in line with the cluster's Subnets.
type subnets struct {
	client client.Reader
	live   client.Reader // the API server itself
	net    subnetNetwork
	// taken are networks that the host is in: a subnet that overlaps one is none of this host's, whatever its condition says by now.
	taken func() ([]netip.Prefix, error)

	mu    sync.Mutex
	known map[string]network.Subnet // by name; nil: nothing is in the kernel yet
}

func newSubnets(mgr ctrl.Manager, net subnetNetwork, dirs layout.Dirs) (*subnets, error) {
	s := &subnets{client: mgr.GetClient(), live: mgr.GetAPIReader(), net: net, taken: func() ([]netip.Prefix, error) { return networks(dirs) }}
	one := handler.EnqueueRequestsFromMapFunc(func(context.Context, client.Object) []reconcile.Request { return []reconcile.Request{{}} })
	if err := ctrl.NewControllerManagedBy(mgr).Named("subnets").Watches(&v1alpha1.Subnet{}, one).Complete(s); err != nil {
		return nil, fmt.Errorf("watch subnets: %w", err)
	}
	return s, nil
}

// Reconcile tells the host of all subnets.
func (s *subnets) Reconcile(ctx context.Context, _ reconcile.Request) (reconcile.Result, error) {
	_, err := s.update(ctx, s.client)
	return reconcile.Result{}, err
}

// cover returns when the host knows the subnet, so that a pod of it meets its rules with its first packet.
func (s *subnets) cover(ctx context.Context, name string) (netip.Prefix, error) {
	s.mu.Lock()
	found, ok := s.known[name]
	s.mu.Unlock()
	if ok {
		return found.CIDR, nil
	}
	known, err := s.update(ctx, s.live)
	if err != nil {
		return netip.Prefix{}, err
	}
	if found, ok = known[name]; !ok {
		return netip.Prefix{}, fmt.Errorf("subnet %s does not exist, or collides with a network of this host (`kubectl describe subnet %s`)", name, name)
	}
	return found.CIDR, nil
}

func (s *subnets) update(ctx context.Context, from client.Reader) (map[string]network.Subnet, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var list v1alpha1.SubnetList
	if err := from.List(ctx, &list); err != nil {
		return nil, fmt.Errorf("list subnets: %w", err)
	}
	taken, err := s.taken()
	if err != nil {
		return nil, err
	}
	now := map[string]network.Subnet{}
	for i := range list.Items {
		n := &list.Items[i]
		cidr, err := netip.ParsePrefix(n.Spec.CIDR)
		if err != nil || profile.Conflict(n, list.Items) != "" || slices.ContainsFunc(taken, cidr.Overlaps) {
			continue
		}
		now[n.Name] = network.Subnet{CIDR: cidr, Public: n.Spec.Type == v1alpha1.SubnetPublic, NAT: n.Spec.NATGateway == nil || *n.Spec.NATGateway}
	}
	if s.known != nil && maps.Equal(now, s.known) {
		return now, nil
	}
	if err := s.net.SetSubnets(ctx, slices.Collect(maps.Values(now))); err != nil {
		return nil, err
	}
	s.known = now
	return now, nil
}

// networks are those that no subnet may overlap. With a CNI chain of the operator's own, subnets describe networks of the
// host: they may.
func networks(dirs layout.Dirs) ([]netip.Prefix, error) {
	if runtimeconf.OwnChain(dirs) {
		return nil, nil
	}
	return network.Networks()
}

// bits per second of a limit; 0 is none.
func bits(q *resource.Quantity) uint64 {
	if q == nil {
		return 0
	}
	return uint64(max(q.Value(), 1))
}
