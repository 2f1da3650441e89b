package ipam

import (
	"errors"
	"net/netip"
	"testing"
	"time"
)

func TestLifeOfAddresses(t *testing.T) {
	a, err := New(netip.MustParsePrefix("10.0.0.0/28"))
	if err != nil {
		t.Fatal(err)
	}
	now := time.Unix(1000, 0)
	a.Reserve(netip.MustParseAddr("10.0.0.5"))
	seen := map[netip.Addr]bool{}
	for range 10 {
		addr, err := a.Take(now)
		if err != nil || seen[addr] || addr == netip.MustParseAddr("10.0.0.5") || addr.As4()[3] < 4 || addr.As4()[3] == 15 {
			t.Fatalf("bad address %v, %v", addr, err)
		}
		seen[addr] = true
	}
	if _, err := a.Take(now); !errors.Is(err, ErrExhausted) {
		t.Fatalf("got %v, want ErrExhausted", err)
	}
	back := netip.MustParseAddr("10.0.0.5")
	a.Release(back, now)
	if _, err := a.Take(now.Add(ReusePause - 1)); !errors.Is(err, ErrExhausted) {
		t.Fatal("an address was given again before it had rested")
	}
	if got := a.Free(now.Add(ReusePause)); got != 1 {
		t.Fatalf("free %d, want 1", got)
	}
	if got, err := a.Take(now.Add(ReusePause)); err != nil || got != back {
		t.Fatalf("got %v, %v, want %v", got, err, back)
	}
}

func TestBadSubnets(t *testing.T) {
	for _, cidr := range []string{"10.0.0.0/15", "10.0.0.0/29", "10.0.0.1/24", "fd00::/64"} {
		if _, err := New(netip.MustParsePrefix(cidr)); err == nil {
			t.Errorf("%s was accepted", cidr)
		}
	}
}
