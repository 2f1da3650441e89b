package ipam

import (
	"errors"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// TestRoundRobin: an address that came back is not the next one, even after it rested, while others were never used.
func TestRoundRobin(t *testing.T) {
	a, err := New(netip.MustParsePrefix("10.0.0.0/28"))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1000, 0)
	first, _ := a.Take(now)
	a.Release(first, now)
	second, err := a.Take(now.Add(2 * ReusePause))
	if err != nil || second != first.Next() {
		t.Fatalf("got %v, %v after %v, want the next one", second, err, first)
	}
}

func TestReleaseOfWhatIsNotUsed(t *testing.T) {
	a, err := New(netip.MustParsePrefix("10.0.0.0/28"))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1000, 0)
	for _, addr := range []string{"10.0.0.5", "10.0.1.5", "::1"} {
		a.Release(netip.MustParseAddr(addr), now)
	}
	a.Release(netip.Addr{}, now)
	a.Reserve(netip.MustParseAddr("10.0.1.5"))
	if a.Free(now) != 11 || a.Used() != 0 {
		t.Fatalf("free %d, used %d, want 11 and 0", a.Free(now), a.Used())
	}
}

// TestConcurrentTakes is for the race detector: many takers get different addresses.
func TestConcurrentTakes(t *testing.T) {
	a, err := New(netip.MustParsePrefix("10.0.0.0/24"))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1000, 0)
	got := make(chan netip.Addr, 400)
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 50 {
				if addr, err := a.Take(now); err == nil {
					got <- addr
				}
				a.Free(now)
			}
		})
	}
	group.Wait()
	close(got)
	seen := map[netip.Addr]bool{}
	for addr := range got {
		if seen[addr] {
			t.Fatalf("%v was given twice", addr)
		}
		seen[addr] = true
	}
	if len(seen) != 251 {
		t.Fatalf("%d addresses of a /24 were given, want 251", len(seen))
	}
}

// FuzzAllocator plays takes, releases and pauses, and checks each answer against a plain model.
func FuzzAllocator(f *testing.F) {
	f.Add([]byte{0, 0, 1, 0, 2, 0})
	f.Add([]byte{0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 5, 9, 2, 0, 0})
	f.Fuzz(func(t *testing.T, steps []byte) {
		prefix := netip.MustParsePrefix("10.0.0.0/28")
		a, err := New(prefix)
		if err != nil {
			t.Fatal(err)
		}
		now := time.Unix(1000, 0)
		held, rested := map[netip.Addr]bool{}, map[netip.Addr]time.Time{}
		for _, step := range steps {
			free := a.Free(now)
			switch addr := a.at(int(step/4) % a.size); step % 4 {
			case 0:
				addr, err := a.Take(now)
				if (err != nil) != (free == 0) || err != nil && !errors.Is(err, ErrExhausted) {
					t.Fatalf("took %v, %v with %d free", addr, err, free)
				}
				if err != nil {
					continue
				}
				last := addr.As4()[3]
				if held[addr] || !prefix.Contains(addr) || last < 4 || last == 15 || now.Sub(rested[addr]) < ReusePause {
					t.Fatalf("took %v, which nobody may have now", addr)
				}
				held[addr] = true
			case 1:
				if held[addr] {
					rested[addr] = now
				}
				a.Release(addr, now)
				delete(held, addr)
			case 2:
				now = now.Add(time.Duration(step) * time.Second)
			case 3:
				a.Reserve(addr)
				held[addr] = true
			}
			if a.Used() != len(held) {
				t.Fatalf("used %d, want %d", a.Used(), len(held))
			}
		}
	})
}
