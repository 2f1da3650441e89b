// Package ipam hands out the addresses of one subnet. It lives in memory and is rebuilt from what is in use; nothing but
// the scheduler's own process may hand out addresses at the same time. Pure: the caller brings the clock.
package ipam

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// ReusePause is how long an address rests after its release, so that nobody talks to a new pod meaning the old one.
const ReusePause = 60 * time.Second

// reservedFirst addresses at the start of a subnet, and the last one, are never given, as in an Amazon VPC.
const reservedFirst = 4

// ErrExhausted says that no address is free now.
var ErrExhausted = errors.New("no address is free")

// Allocator hands out the addresses of one IPv4 subnet. It is safe for concurrent use.
type Allocator struct {
	mu       sync.Mutex
	prefix   netip.Prefix
	size     int
	next     int
	used     map[netip.Addr]bool
	released map[netip.Addr]time.Time
}

// New makes an allocator for an IPv4 network of /16 to /28.
func New(cidr netip.Prefix) (*Allocator, error) {
	if !cidr.IsValid() || !cidr.Addr().Is4() || cidr.Masked() != cidr || cidr.Bits() < 16 || cidr.Bits() > 28 {
		return nil, fmt.Errorf("subnet %s is not an IPv4 network address with a prefix of /16 to /28", cidr)
	}
	return &Allocator{prefix: cidr, size: Size(cidr), used: map[netip.Addr]bool{}, released: map[netip.Addr]time.Time{}}, nil
}

func (a *Allocator) at(i int) netip.Addr {
	b := a.prefix.Addr().As4()
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	n += uint32(i + reservedFirst)
	return netip.AddrFrom4([4]byte{byte(n >> 24), byte(n >> 16), byte(n >> 8), byte(n)})
}

// Take hands out the next address that is neither used nor resting at now. The error is ErrExhausted.
func (a *Allocator) Take(now time.Time) (netip.Addr, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for range a.size {
		addr := a.at(a.next)
		a.next = (a.next + 1) % a.size
		if a.used[addr] || a.resting(addr, now) {
			continue
		}
		delete(a.released, addr)
		a.used[addr] = true
		return addr, nil
	}
	return netip.Addr{}, ErrExhausted
}

// Scatter lets the next Take begin at an address that the caller drew, any number that is not negative, so that two processes
// that meet do not go on side by side.
func (a *Allocator) Scatter(drawn int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.next = drawn % a.size
}

func (a *Allocator) resting(addr netip.Addr, now time.Time) bool {
	at, ok := a.released[addr]
	return ok && now.Sub(at) < ReusePause
}

// Reserve marks an address as used, as found on a Berth. Doing so twice changes nothing.
func (a *Allocator) Reserve(addr netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.prefix.Contains(addr) {
		a.used[addr] = true
		delete(a.released, addr)
	}
}

// Release gives an address back; it rests for ReusePause from now.
func (a *Allocator) Release(addr netip.Addr, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.used[addr] {
		delete(a.used, addr)
		a.released[addr] = now
	}
}

// Rest lets an address rest for ReusePause from now, unless it is used or rests already.
func (a *Allocator) Rest(addr netip.Addr, now time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.prefix.Contains(addr) && !a.used[addr] && !a.resting(addr, now) {
		a.released[addr] = now
	}
}

// Forget frees an address at once: nobody used it.
func (a *Allocator) Forget(addr netip.Addr) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.used, addr)
}

// Held lists the addresses that are used and those that rest at now, in no order; wait is until the first of them is free,
// 0 if none rests.
func (a *Allocator) Held(now time.Time) (held []netip.Addr, wait time.Duration) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for addr := range a.used {
		held = append(held, addr)
	}
	for addr, at := range a.released {
		if left := ReusePause - now.Sub(at); left > 0 {
			held = append(held, addr)
			if wait == 0 || left < wait {
				wait = left
			}
		}
	}
	return held, wait
}

// Free is how many addresses Take could hand out at now.
func (a *Allocator) Free(now time.Time) int {
	a.mu.Lock()
	defer a.mu.Unlock()
	free := a.size - len(a.used)
	for addr := range a.released {
		if a.resting(addr, now) {
			free--
		} else {
			delete(a.released, addr)
		}
	}
	return free
}

// Used is how many addresses are handed out.
func (a *Allocator) Used() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.used)
}
