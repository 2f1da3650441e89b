package loadbalancer

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/berth-run/berth/internal/layout"
)

// host holds the load balancers' addresses on the gateway's link, and lets pods reach them there.
type host struct {
	nft       knftables.Interface
	published []netip.AddrPort
	held      []netip.Addr
	known     bool
}

func newHost() (*host, error) {
	nft, err := knftables.New(knftables.IPv4Family, layout.NFTTable)
	if err != nil {
		return nil, fmt.Errorf("use nftables: %w", err)
	}
	return &host{nft: nft}, nil
}

// publish makes these addresses, and no other, the host's for load balancers; pods reach these ports of them only.
func (h *host) publish(ctx context.Context, addrs []netip.Addr, ports []netip.AddrPort) error {
	slices.SortFunc(ports, netip.AddrPort.Compare)
	slices.SortFunc(addrs, netip.Addr.Compare)
	if h.known && slices.Equal(ports, h.published) && slices.Equal(addrs, h.held) {
		return nil
	}
	if err := hold(addrs); err != nil {
		return err
	}
	tx := h.nft.NewTransaction()
	set := &knftables.Set{Name: layout.PublishedSet, Type: layout.PublishedType}
	tx.Add(set)
	tx.Flush(set)
	for _, p := range ports {
		tx.Add(&knftables.Element{Set: layout.PublishedSet, Key: []string{p.Addr().String(), fmt.Sprint(p.Port())}})
	}
	if err := h.nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("let pods reach the load balancers: %w", err)
	}
	h.published, h.held, h.known = ports, addrs, true
	return nil
}

// hold gives the addresses to the gateway's link, and takes others off it.
func hold(addrs []netip.Addr) error {
	link, err := netlink.LinkByName(layout.GatewayLink)
	if err != nil {
		return fmt.Errorf("find link %s: %w", layout.GatewayLink, err)
	}
	there, err := netlink.AddrList(link, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("list the addresses of %s: %w", layout.GatewayLink, err)
	}
	for _, a := range there {
		addr, _ := netip.AddrFromSlice(a.IP.To4())
		if addr.String() == layout.GatewayIP || slices.Contains(addrs, addr) {
			continue
		}
		if err := netlink.AddrDel(link, &a); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("take %s off %s: %w", addr, layout.GatewayLink, err)
		}
	}
	for _, addr := range addrs {
		full := &net.IPNet{IP: addr.AsSlice(), Mask: net.CIDRMask(32, 32)}
		if err := netlink.AddrReplace(link, &netlink.Addr{IPNet: full}); err != nil {
			return fmt.Errorf("give %s to %s: %w", addr, layout.GatewayLink, err)
		}
	}
	return nil
}
