package scheduler

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/ipam"
)

// book holds the addresses of one subnet. An address goes round: free -> taken here -> written into the Subnet (status.heldIPs)
// -> used by a berth -> resting -> struck off the Subnet -> free. Only what the Subnet does not hold may be taken, and it is
// written under a lock of the Subnet's version. So of two processes that take the same address one finds it there.
type book struct {
	*ipam.Allocator
	name   string
	prefix netip.Prefix

	// writing is held while the Subnet is written: those who wait find their address written, too.
	writing sync.Mutex

	mu sync.Mutex
	// written are the addresses that the Subnet holds, as far as is known here.
	written map[netip.Addr]bool
	// taken here and not yet written; lost are those of them that another process had written first.
	taken, lost map[netip.Addr]bool
	// seen is what the Subnet was last seen to hold.
	seen []string
}

func newBook(name string, prefix netip.Prefix) (*book, error) {
	a, err := ipam.New(prefix)
	if err != nil {
		return nil, err
	}
	return &book{Allocator: a, name: name, prefix: prefix, written: map[netip.Addr]bool{}, taken: map[netip.Addr]bool{}, lost: map[netip.Addr]bool{}}, nil
}

// adopt lets addresses rest that the Subnet holds and nobody here knows of.
func (b *book) adopt(ranges []string, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if slices.Equal(ranges, b.seen) {
		return
	}
	held, err := ipam.ParseRanges(b.prefix, ranges)
	if err != nil {
		return // somebody else wrote into it; the next write mends that
	}
	b.seen = ranges
	for _, addr := range held {
		if !b.written[addr] && !b.taken[addr] {
			b.written[addr] = true
			b.Rest(addr, now)
		}
	}
}

// take takes an address that the Subnet does not hold.
func (b *book) take(now time.Time) (netip.Addr, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	var skipped []netip.Addr
	defer func() {
		for _, addr := range skipped {
			b.Forget(addr)
		}
	}()
	for {
		addr, err := b.Take(now)
		if err != nil {
			return addr, err
		}
		if !b.written[addr] {
			b.taken[addr] = true
			delete(b.lost, addr)
			return addr, nil
		}
		skipped = append(skipped, addr) // it has rested, and is about to be struck off
	}
}

func (b *book) giveBack(addr netip.Addr, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.taken, addr)
	b.Release(addr, now)
}

// free is how many addresses take could give at now.
func (b *book) free(now time.Time) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	free := b.Free(now)
	held, _ := b.Held(now)
	known := map[netip.Addr]bool{}
	for _, addr := range held {
		known[addr] = true
	}
	for addr := range b.written {
		if !known[addr] {
			free--
		}
	}
	return free
}

// commit returns when the Subnet holds the address.
func (b *book) commit(ctx context.Context, live client.Reader, c client.StatusClient, addr netip.Addr, now time.Time) error {
	b.writing.Lock()
	defer b.writing.Unlock()
	if !b.is(b.written, addr) {
		if err := b.write(ctx, live, c, now); err != nil {
			return err
		}
	}
	if b.is(b.lost, addr) {
		return fmt.Errorf("%s: %w", addr, errTaken)
	}
	return nil
}

func (b *book) is(in map[netip.Addr]bool, addr netip.Addr) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return in[addr]
}

// settle strikes off what has rested.
func (b *book) settle(ctx context.Context, live client.Reader, c client.StatusClient, now time.Time) (time.Duration, error) {
	b.writing.Lock()
	defer b.writing.Unlock()
	held, wait := b.Held(now)
	if b.upToDate(held) {
		return wait, nil
	}
	return wait, b.write(ctx, live, c, now)
}

func (b *book) upToDate(held []netip.Addr) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(held) == len(b.written) && !slices.ContainsFunc(held, func(addr netip.Addr) bool { return !b.written[addr] })
}

// write brings the Subnet in line with what is held here, and leaves alone what others hold.
func (b *book) write(ctx context.Context, live client.Reader, c client.StatusClient, now time.Time) error {
	for {
		s := &v1alpha1.Subnet{}
		if err := live.Get(ctx, client.ObjectKey{Name: b.name}, s); err != nil {
			return fmt.Errorf("read subnet %s: %w", b.name, err)
		}
		there, err := ipam.ParseRanges(b.prefix, s.Status.HeldIPs)
		if err != nil {
			there = nil
		}
		next, lost := b.merge(there, now)
		before := s.DeepCopy()
		s.Status.HeldIPs = ipam.Ranges(next)
		if !slices.Equal(before.Status.HeldIPs, s.Status.HeldIPs) {
			err := c.Status().Patch(ctx, s, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
			if apierrors.IsConflict(err) {
				continue
			}
			if err != nil {
				return fmt.Errorf("write the held addresses of subnet %s: %w", b.name, err)
			}
		}
		b.wrote(next, lost, s.Status.HeldIPs, now)
		return nil
	}
}

// merge is what the Subnet is to hold when it holds there now, and which of the addresses taken here another process took.
func (b *book) merge(there []netip.Addr, now time.Time) (next, lost []netip.Addr) {
	held, _ := b.Held(now)
	b.mu.Lock()
	defer b.mu.Unlock()
	mine := map[netip.Addr]bool{}
	for _, addr := range held {
		mine[addr] = true
	}
	for _, addr := range there {
		switch {
		case b.taken[addr]:
			lost = append(lost, addr)
			delete(mine, addr)
			next = append(next, addr)
		case mine[addr] || !b.written[addr]: // ours, or of another process and not known yet
			delete(mine, addr)
			next = append(next, addr)
		}
	}
	for addr := range mine {
		next = append(next, addr)
	}
	return next, lost
}

func (b *book) wrote(next, lost []netip.Addr, seen []string, now time.Time) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.seen = seen
	known := b.written
	b.written = map[netip.Addr]bool{}
	for _, addr := range lost {
		delete(b.taken, addr)
		b.lost[addr] = true
		b.Release(addr, now)
		b.Scatter(rand.Int())
	}
	for _, addr := range next {
		if !known[addr] && !b.taken[addr] {
			b.Rest(addr, now) // another process's, seen for the first time; what is used stays used
		}
		b.written[addr] = true
	}
	for addr := range b.taken {
		if b.written[addr] {
			delete(b.taken, addr)
		}
	}
}
