package scheduler

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/ipam"
)

// Addresses knows which address of which subnet is taken by which berth. It is built from the Berths and from what Subnets
// say is held, and follows both from then on. Each process has one; if two of them place pods at the same time, Commit keeps
// them from giving the same address.
type Addresses struct {
	mu      sync.Mutex
	subnets map[string]*book
	held    map[types.UID]hold // by pod
}

type hold struct {
	subnet string
	addr   netip.Addr
	// seen: a Berth with this address has been in the cache, so its absence means that it is gone.
	seen bool
}

// errTaken says that another process gave the address away first.
var errTaken = errors.New("another controller has taken the address")

// NewAddresses makes an empty record.
func NewAddresses() *Addresses {
	return &Addresses{subnets: map[string]*book{}, held: map[types.UID]hold{}}
}

// Sync takes over the subnets and berths of the cache: addresses of new berths are reserved, those of vanished berths
// released. What a Subnet says is held, and nobody here knows of, rests: its berth is gone, or is just being made elsewhere.
func (a *Addresses) Sync(ctx context.Context, r client.Reader, now time.Time) error {
	var subnets v1alpha1.SubnetList
	if err := r.List(ctx, &subnets); err != nil {
		return fmt.Errorf("list subnets: %w", err)
	}
	var berths v1alpha1.BerthList
	if err := r.List(ctx, &berths, uncopied); err != nil {
		return fmt.Errorf("list berths: %w", err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	for i := range subnets.Items {
		if err := a.open(&subnets.Items[i]); err != nil {
			return fmt.Errorf("subnet %s: %w", subnets.Items[i].Name, err)
		}
	}
	alive := map[types.UID]bool{}
	for i := range berths.Items {
		b := &berths.Items[i]
		alive[b.Spec.Pod.UID] = true
		addr, err := netip.ParseAddr(b.Spec.IP)
		if err != nil || a.subnets[b.Spec.SubnetName] == nil {
			continue
		}
		a.subnets[b.Spec.SubnetName].Reserve(addr)
		a.held[b.Spec.Pod.UID] = hold{b.Spec.SubnetName, addr, true}
	}
	for i := range subnets.Items {
		if b := a.subnets[subnets.Items[i].Name]; b != nil {
			b.adopt(subnets.Items[i].Status.HeldIPs, now)
		}
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
	if err != nil || s.Spec.Type == v1alpha1.SubnetPublic {
		return err
	}
	if b := a.subnets[s.Name]; b != nil && b.prefix == prefix {
		return nil
	}
	b, err := newBook(s.Name, prefix)
	if err == nil {
		a.subnets[s.Name] = b
	}
	return err
}

// Take gives the pod an address of the subnet; a pod that holds one of it already keeps it.
func (a *Addresses) Take(subnet string, pod types.UID, now time.Time) (netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	b := a.subnets[subnet]
	if b == nil {
		return netip.Addr{}, fmt.Errorf("subnet %s does not exist", subnet)
	}
	if h, ok := a.held[pod]; ok && h.subnet == subnet && b.prefix.Contains(h.addr) {
		return h.addr, nil
	}
	addr, err := b.take(now)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("subnet %s: %w", subnet, err)
	}
	a.held[pod] = hold{subnet: subnet, addr: addr}
	return addr, nil
}

// Commit writes the address that the pod took into its Subnet, before anything is made with it. The error is errTaken if
// another process was faster; the pod then has to take another one. Pods that commit at the same time share one write.
func (a *Addresses) Commit(ctx context.Context, live client.Reader, c client.StatusClient, pod types.UID, now time.Time) error {
	a.mu.Lock()
	h := a.held[pod]
	b := a.subnets[h.subnet]
	a.mu.Unlock()
	if b == nil {
		return fmt.Errorf("subnet %s does not exist", h.subnet)
	}
	return b.commit(ctx, live, c, h.addr, now)
}

// Settle strikes the addresses that have rested off the Subnet, so that they can be given again, and says when it is to be
// called again because others have (0: when a berth goes).
func (a *Addresses) Settle(ctx context.Context, live client.Reader, c client.StatusClient, subnet string, now time.Time) (time.Duration, error) {
	a.mu.Lock()
	b := a.subnets[subnet]
	a.mu.Unlock()
	if b == nil {
		return 0, nil
	}
	return b.settle(ctx, live, c, now)
}

// GiveBack releases what a pod took and did not come to use.
func (a *Addresses) GiveBack(pod types.UID, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if h, ok := a.held[pod]; ok && !h.seen {
		a.subnets[h.subnet].giveBack(h.addr, now)
		delete(a.held, pod)
	}
}

// Usage is how many addresses of a subnet are free, and how many are used or rest before they are used again.
func (a *Addresses) Usage(subnet string, now time.Time) (free, used int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if b := a.subnets[subnet]; b != nil {
		free = b.free(now)
		return free, ipam.Size(b.prefix) - free
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
