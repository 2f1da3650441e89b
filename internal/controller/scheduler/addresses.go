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
	subnets map[string]*book
	held    map[types.UID]hold // by pod
}

// book holds the addresses of one subnet; total is how many it has.
type book struct {
	*ipam.Allocator
	prefix netip.Prefix
	total  int
}

type hold struct {
	subnet string
	addr   netip.Addr
	// seen: a Berth with this address has been in the cache, so its absence means that it is gone.
	seen bool
}

// NewAddresses makes an empty record.
func NewAddresses() *Addresses {
	return &Addresses{subnets: map[string]*book{}, held: map[types.UID]hold{}}
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
		if s.Spec.Type == v1alpha1.SubnetPublic {
			continue
		}
		if err := a.open(&s); err != nil {
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

// open opens the subnet's book, or another one if a subnet of that name was made anew with another range.
func (a *Addresses) open(s *v1alpha1.Subnet) error {
	prefix, err := netip.ParsePrefix(s.Spec.CIDR)
	if err != nil {
		return err
	}
	if b := a.subnets[s.Name]; b != nil && b.prefix == prefix {
		return nil
	}
	allocator, err := ipam.New(prefix)
	if err != nil {
		return err
	}
	a.subnets[s.Name] = &book{Allocator: allocator, prefix: prefix, total: allocator.Free(time.Time{})}
	return nil
}

// Take gives the pod an address of the subnet; a pod that holds one of it already keeps it.
func (a *Addresses) Take(subnet string, pod types.UID, now time.Time) (netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	allocator := a.subnets[subnet]
	if allocator == nil {
		return netip.Addr{}, fmt.Errorf("subnet %s does not exist", subnet)
	}
	if h, ok := a.held[pod]; ok && h.subnet == subnet && allocator.prefix.Contains(h.addr) {
		return h.addr, nil
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

// Usage is how many addresses of a subnet are free, and how many are used or rest before they are used again.
func (a *Addresses) Usage(subnet string, now time.Time) (free, used int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if b := a.subnets[subnet]; b != nil {
		free = b.Free(now)
		return free, b.total - free
	}
	return 0, 0
}

// InUse says whether a pod holds an address of the subnet.
func (a *Addresses) InUse(subnet string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	b := a.subnets[subnet]
	return b != nil && b.Used() > 0
}
