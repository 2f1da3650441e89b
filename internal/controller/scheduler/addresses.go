package scheduler

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/ipam"
)

// Addresses knows which address of which subnet is taken by which berth. It is built from the Berths that exist before
// the first placement, and follows them from then on; there is one per process, and one process leads.
type Addresses struct {
	mu      sync.Mutex
	subnets map[string]*ipam.Allocator
	held    map[types.UID]hold // by pod
}

type hold struct {
	subnet string
	addr   netip.Addr
	// seen: a Berth with this address has been in the cache, so its absence means that it is gone.
	seen bool
}

// NewAddresses makes an empty record.
func NewAddresses() *Addresses {
	return &Addresses{subnets: map[string]*ipam.Allocator{}, held: map[types.UID]hold{}}
}

// Sync takes over the subnets and berths of the cache: addresses of new berths are reserved, those of vanished berths released.
func (a *Addresses) Sync(ctx context.Context, r client.Reader, now time.Time) error {
	var subnets v1alpha1.SubnetList
	if err := r.List(ctx, &subnets); err != nil {
		return fmt.Errorf("list subnets: %w", err)
	}
	var berths v1alpha1.BerthList
	if err := r.List(ctx, &berths); err != nil {
		return fmt.Errorf("list berths: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, s := range subnets.Items {
		if _, known := a.subnets[s.Name]; known || s.Spec.Type == v1alpha1.SubnetPublic {
			continue
		}
		prefix, err := netip.ParsePrefix(s.Spec.CIDR)
		if err != nil {
			return fmt.Errorf("subnet %s: %w", s.Name, err)
		}
		if a.subnets[s.Name], err = ipam.New(prefix); err != nil {
			return fmt.Errorf("subnet %s: %w", s.Name, err)
		}
	}
	alive := map[types.UID]bool{}
	for _, b := range berths.Items {
		alive[b.Spec.Pod.UID] = true
		addr, err := netip.ParseAddr(b.Spec.IP)
		if err != nil || a.subnets[b.Spec.SubnetName] == nil {
			continue
		}
		a.subnets[b.Spec.SubnetName].Reserve(addr)
		a.held[b.Spec.Pod.UID] = hold{b.Spec.SubnetName, addr, true}
	}
	for pod, h := range a.held {
		if h.seen && !alive[pod] {
			a.subnets[h.subnet].Release(h.addr, now)
			delete(a.held, pod)
		}
	}
	return nil
}

// Take gives the pod an address of the subnet; a pod that holds one of it already keeps it.
func (a *Addresses) Take(subnet string, pod types.UID, now time.Time) (netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h, ok := a.held[pod]; ok && h.subnet == subnet {
		return h.addr, nil
	}
	allocator := a.subnets[subnet]
	if allocator == nil {
		return netip.Addr{}, fmt.Errorf("subnet %s does not exist", subnet)
	}
	addr, err := allocator.Take(now)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("subnet %s: %w", subnet, err)
	}
	a.held[pod] = hold{subnet: subnet, addr: addr}
	return addr, nil
}

// GiveBack releases what a pod took and did not come to use.
func (a *Addresses) GiveBack(pod types.UID, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h, ok := a.held[pod]; ok && !h.seen {
		a.subnets[h.subnet].Release(h.addr, now)
		delete(a.held, pod)
	}
}

// Usage is how many addresses of a subnet are free and used.
func (a *Addresses) Usage(subnet string, now time.Time) (free, used int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if allocator := a.subnets[subnet]; allocator != nil {
		return allocator.Free(now), allocator.Used()
	}
	return 0, 0
}
