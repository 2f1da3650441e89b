package network

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// Try sets a host up in a network namespace that ends with it: an error says what the kernel cannot do.
func Try(ctx context.Context) (err error) {
	runtime.LockOSThread()
	outer, err := netns.Get()
	if err != nil {
		return fmt.Errorf("find the network namespace: %w", err)
	}
	defer outer.Close()
	inner, err := netns.New()
	if err != nil {
		return fmt.Errorf("make a network namespace (kernel option CONFIG_NET_NS): %w", err)
	}
	defer inner.Close()
	defer func() {
		if back := netns.Set(outer); back != nil {
			err = errors.Join(err, back) // the thread stays locked, and ends with its goroutine
			return
		}
		runtime.UnlockOSThread()
	}()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find the loopback link: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("bring the loopback link up: %w", err)
	}
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "try0"}, PeerName: "try1"}); err != nil {
		return fmt.Errorf("make a pair of links (kernel option CONFIG_VETH): %w", err)
	}
	if _, err := Up(ctx, "192.0.2.1:443", "192.0.2.2:6443"); err != nil { // documentation addresses (RFC 5737)
		return err
	}
	return tryPolicies(ctx)
}
