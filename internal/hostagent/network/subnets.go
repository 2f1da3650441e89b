package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/berth-run/berth/internal/layout"
)

// Subnet is a range as the host has to know it.
type Subnet struct {
	CIDR netip.Prefix
	// Public holds load balancers, not pods.
	Public bool
	// NAT leads what leaves the cluster out; without it, that is refused.
	NAT bool
}

// Sets in the table, of ranges.
const (
	insideSet   = "inside"  // addresses of the cluster: what goes there is not NATed
	podRangeSet = "pods-of" // private subnets
	noNATSet    = "no-nat"  // private subnets that have no way out
	rangeType   = "ipv4_addr"
)

func rangeSet(name string) *knftables.Set {
	return &knftables.Set{Name: name, Type: rangeType, Flags: []knftables.SetFlag{knftables.IntervalFlag}}
}

// SetSubnets makes the host know all subnets, and no other, in one transaction.
func (h *Host) SetSubnets(ctx context.Context, subnets []Subnet) error {
	vpc := netip.MustParsePrefix(layout.VPCCIDR)
	inside, pods, closed := []netip.Prefix{vpc}, []netip.Prefix{}, []netip.Prefix{}
	for _, s := range subnets {
		inside = append(inside, s.CIDR)
		if s.Public {
			continue
		}
		pods = append(pods, s.CIDR)
		if !s.NAT {
			closed = append(closed, s.CIDR)
		}
	}
	if err := routeSubnets(pods, vpc); err != nil {
		return err
	}
	tx := h.nft.NewTransaction()
	for name, ranges := range map[string][]netip.Prefix{insideSet: inside, podRangeSet: pods, noNATSet: closed} {
		tx.Add(rangeSet(name))
		tx.Flush(rangeSet(name))
		for _, p := range outermost(ranges) {
			tx.Add(&knftables.Element{Set: name, Key: []string{p.String()}})
		}
	}
	if err := h.nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("write the subnets to nftables table %s: %w", layout.NFTTable, err)
	}
	return nil
}

// outermost drops ranges that lie in others: elements of a set may not overlap.
func outermost(ranges []netip.Prefix) []netip.Prefix {
	slices.SortFunc(ranges, func(a, b netip.Prefix) int { return a.Bits() - b.Bits() })
	var out []netip.Prefix
	for _, p := range ranges {
		if !slices.ContainsFunc(out, func(o netip.Prefix) bool { return o.Overlaps(p) }) {
			out = append(out, p)
		}
	}
	return out
}

// routeSubnets does for subnets outside the local cluster's range what routeRanges does for that.
func routeSubnets(pods []netip.Prefix, vpc netip.Prefix) error {
	link, err := netlink.LinkByName(layout.GatewayLink)
	if err != nil {
		return fmt.Errorf("find link %s: %w", layout.GatewayLink, err)
	}
	there, err := whole(func() ([]netlink.Route, error) { return netlink.RouteList(link, netlink.FAMILY_V4) })
	if err != nil {
		return fmt.Errorf("list the routes of %s: %w", layout.GatewayLink, err)
	}
	wanted := map[string]bool{layout.VPCCIDR: true, layout.ServiceCIDR: true}
	for _, p := range pods {
		if vpc.Overlaps(p) {
			continue
		}
		wanted[p.String()] = true
		_, dst, err := net.ParseCIDR(p.String())
		if err != nil {
			return err
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Src: net.ParseIP(layout.GatewayIP), Scope: netlink.SCOPE_LINK}
		// A route to somewhere else stays: nothing of the host's own is ever replaced.
		if err := netlink.RouteAdd(route); err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("route %s to %s: %w", p, layout.GatewayLink, err)
		}
	}
	for _, r := range there {
		if r.Dst != nil && !wanted[r.Dst.String()] {
			if err := netlink.RouteDel(&r); err != nil && !errors.Is(err, unix.ESRCH) {
				return fmt.Errorf("remove the route of %s: %w", r.Dst, err)
			}
		}
	}
	return nil
}

// listTries is how often a list is asked for that changes while it is read, as links and routes do where pods come and go.
const listTries = 20

// whole asks for a list until nothing has changed while it was read.
func whole[T any](list func() ([]T, error)) ([]T, error) {
	for try := 1; ; try++ {
		out, err := list()
		if !errors.Is(err, netlink.ErrDumpInterrupted) || try == listTries {
			return out, err
		}
	}
}

// Networks are those that the host is in by itself: a subnet that overlaps one could not be told from it.
func Networks() ([]netip.Prefix, error) {
	routes, err := whole(func() ([]netlink.Route, error) { return netlink.RouteList(nil, netlink.FAMILY_V4) })
	if err != nil {
		return nil, fmt.Errorf("read the machine's routes: %w", err)
	}
	var out []netip.Prefix
	for _, r := range routes {
		if r.Dst == nil || r.Gw != nil || r.Dst.IP.IsUnspecified() || r.Dst.IP.IsLoopback() {
			continue
		}
		link, err := netlink.LinkByIndex(r.LinkIndex)
		if err != nil || link.Attrs().Name == layout.GatewayLink || strings.HasPrefix(link.Attrs().Name, layout.VethPrefix) {
			continue
		}
		if p, err := netip.ParsePrefix(r.Dst.String()); err == nil {
			out = append(out, p)
		}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return strings.Compare(a.String(), b.String()) })
	return slices.Compact(out), nil
}
