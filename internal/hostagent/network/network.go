// Package network sets the host up for routed pods: the gateway's link, forwarding, and one nftables table with NAT,
// anti-spoofing and the way to each pod's kubelet. Per-pod state is an element of a map or a set, never a rewritten rule.
package network

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/knftables"

	"github.com/berth-run/berth/internal/layout"
)

const (
	forwarding = "/proc/sys/net/ipv4/ip_forward"
	localTable = unix.RT_TABLE_LOCAL
)

// Host is the machine's own part of pod networking.
type Host struct {
	nft knftables.Interface
	// serviceAPI and apiServer are address and port of Service kubernetes and of what it stands for.
	serviceAPI, apiServer string
}

// Up sets the host up; doing so again changes nothing. serviceAPI ("10.96.0.1:443") is led to apiServer ("10.90.255.1:6443").
func Up(ctx context.Context, serviceAPI, apiServer string) (*Host, error) {
	if err := EnsureGateway(); err != nil {
		return nil, err
	}
	if err := os.WriteFile(forwarding, []byte("1"), 0o644); err != nil {
		return nil, fmt.Errorf("switch IPv4 forwarding on: %w", err)
	}
	_, kubelets, err := net.ParseCIDR(layout.KubeletRange)
	if err != nil {
		return nil, err
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return nil, fmt.Errorf("find the loopback link: %w", err)
	}
	if err := routeRanges(); err != nil {
		return nil, err
	}
	local := &netlink.Route{LinkIndex: lo.Attrs().Index, Dst: kubelets, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Table: localTable}
	if err := netlink.RouteReplace(local); err != nil {
		return nil, fmt.Errorf("make %s local to this host: %w", layout.KubeletRange, err)
	}
	nft, err := knftables.New(knftables.IPv4Family, layout.NFTTable)
	if err != nil {
		return nil, fmt.Errorf("use nftables (Debian package nftables; kernel 5.4 or newer with nf_tables): %w", err)
	}
	h := &Host{nft: nft, serviceAPI: serviceAPI, apiServer: apiServer}
	return h, h.rules(ctx)
}

// routeRanges gives the host a way to the addresses of Services and of pods, also where it has no way out, from an address
// that pods can answer. Rules turn the destination into where it is served before anything is sent there: kube-proxy's a
// Service into a pod, ours port 10250 of a pod into its kubelet, which answers for `kubectl logs` when the pod's own link is
// gone with its sandbox. A pod's link has a route of its own, which is more specific.
func routeRanges() error {
	link, err := netlink.LinkByName(layout.GatewayLink)
	if err != nil {
		return fmt.Errorf("find link %s: %w", layout.GatewayLink, err)
	}
	for _, cidr := range []string{layout.ServiceCIDR, layout.VPCCIDR} {
		_, dst, err := net.ParseCIDR(cidr)
		if err != nil {
			return err
		}
		route := &netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst, Src: net.ParseIP(layout.GatewayIP), Scope: netlink.SCOPE_LINK}
		if err := netlink.RouteReplace(route); err != nil {
			return fmt.Errorf("route %s to %s: %w", cidr, layout.GatewayLink, err)
		}
	}
	return nil
}

// EnsureGateway makes the link, a bridge without ports, that holds the pods' next hop.
func EnsureGateway() error {
	link, err := netlink.LinkByName(layout.GatewayLink)
	if err != nil {
		link = &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: layout.GatewayLink}}
		if err := netlink.LinkAdd(link); err != nil {
			return fmt.Errorf("make link %s (kernel option CONFIG_BRIDGE): %w", layout.GatewayLink, err)
		}
	}
	addr := &netlink.Addr{IPNet: &net.IPNet{IP: net.ParseIP(layout.GatewayIP).To4(), Mask: net.CIDRMask(32, 32)}}
	if err := netlink.AddrReplace(link, addr); err != nil {
		return fmt.Errorf("give %s to %s: %w", layout.GatewayIP, layout.GatewayLink, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring %s up: %w", layout.GatewayLink, err)
	}
	return nil
}

// Names in the table.
const (
	kubeletMap = "kubelets" // pod address -> address of its kubelet
	podSet     = "pods"     // link . address of each pod
	anyPod     = layout.VethPrefix + "*"
)

// rules writes the table's fixed part in one transaction; elements of pods stay.
func (h *Host) rules(ctx context.Context) error {
	tx := h.nft.NewTransaction()
	tx.Add(&knftables.Table{Comment: knftables.PtrTo("Berth: networking of pods")})
	tx.Add(&knftables.Map{Name: kubeletMap, Type: "ipv4_addr : ipv4_addr"})
	tx.Add(&knftables.Set{Name: podSet, Type: "ifname . ipv4_addr"})
	tx.Add(&knftables.Set{Name: layout.PublishedSet, Type: layout.PublishedType})
	for _, name := range []string{insideSet, podRangeSet, noNATSet} {
		tx.Add(rangeSet(name))
	}
	chain := func(name string, kind knftables.BaseChainType, hook knftables.BaseChainHook, priority knftables.BaseChainPriority, rules ...string) {
		tx.Add(&knftables.Chain{Name: name, Type: &kind, Hook: &hook, Priority: &priority})
		tx.Flush(&knftables.Chain{Name: name})
		for _, r := range rules {
			tx.Add(&knftables.Rule{Chain: name, Rule: r})
		}
	}
	service, port, _ := strings.Cut(h.serviceAPI, ":")
	nat := []string{
		"tcp dport 10250 dnat to ip daddr map @" + kubeletMap,
		fmt.Sprintf("ip daddr %s tcp dport %s dnat to %s", service, port, h.apiServer),
	}
	chain("prerouting", knftables.NATType, knftables.PreroutingHook, knftables.DNATPriority, nat...)
	chain("output", knftables.NATType, knftables.OutputHook, knftables.DNATPriority, nat...)
	chain("postrouting", knftables.NATType, knftables.PostroutingHook, knftables.SNATPriority,
		fmt.Sprintf("ip saddr @%s ip daddr != @%s oifname != \"%s\" masquerade", podRangeSet, insideSet, anyPod))
	// Before anything else a pod's packets must carry the pod's own address.
	chain("antispoof", knftables.FilterType, knftables.PreroutingHook, knftables.RawPriority,
		fmt.Sprintf("iifname \"%s\" iifname . ip saddr != @%s drop", anyPod, podSet))
	chain("input", knftables.FilterType, knftables.InputHook, knftables.FilterPriority,
		// A pod is known by its link or, where another CNI plugin made that, by its address.
		"iifname lo accept",
		fmt.Sprintf("iifname != \"%s\" ip saddr != @%s accept", anyPod, podRangeSet),
		"ct state established,related accept",
		"ct status dnat tcp dport { 10250, "+fmt.Sprint(layout.APIServerPort)+" } accept",
		fmt.Sprintf("ip daddr %s tcp dport %d accept", layout.GatewayIP, layout.APIServerPort),
		fmt.Sprintf("ip daddr %s icmp type echo-request accept", layout.GatewayIP),
		"ip daddr . tcp dport @"+layout.PublishedSet+" accept",
		"drop")
	chain("forward", knftables.FilterType, knftables.ForwardHook, knftables.FilterPriority,
		fmt.Sprintf("iifname \"%s\" ip daddr 169.254.0.0/16 drop", anyPod),
		fmt.Sprintf("ip saddr @%s ip daddr 169.254.0.0/16 drop", podRangeSet),
		fmt.Sprintf("ct direction original ip saddr @%s ip daddr != @%s reject with icmp type admin-prohibited", noNATSet, insideSet))
	if err := h.nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("write nftables table %s (is nf_tables with NAT and sets in this kernel?): %w", layout.NFTTable, err)
	}
	return nil
}

// AddPod lets the pod's own packets pass and leads port 10250 of its address to its kubelet.
func (h *Host) AddPod(ctx context.Context, link, ip, kubelet string) error {
	tx := h.nft.NewTransaction()
	tx.Add(&knftables.Element{Set: podSet, Key: []string{link, ip}})
	tx.Add(&knftables.Element{Map: kubeletMap, Key: []string{ip}, Value: []string{kubelet}})
	if err := h.nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("let pod %s onto the network: %w", ip, err)
	}
	return nil
}

// RemovePod undoes AddPod; a pod that is not there is no error.
func (h *Host) RemovePod(ctx context.Context, link, ip string) error {
	for _, e := range []*knftables.Element{{Set: podSet, Key: []string{link, ip}}, {Map: kubeletMap, Key: []string{ip}}} {
		tx := h.nft.NewTransaction()
		tx.Delete(e)
		if err := h.nft.Run(ctx, tx); err != nil && !knftables.IsNotFound(err) {
			return fmt.Errorf("take pod %s off the network: %w", ip, err)
		}
	}
	return nil
}

// Uplink is the MTU and the address of the link that leads out of the host; a host without one gets 1500 and no address.
func Uplink() (mtu int, address string) {
	mtu = 1500
	routes, err := netlink.RouteGet(net.IPv4(192, 0, 2, 254))
	if err != nil || len(routes) == 0 {
		return mtu, ""
	}
	if link, err := netlink.LinkByIndex(routes[0].LinkIndex); err == nil && link.Attrs().MTU < mtu {
		mtu = link.Attrs().MTU
	}
	return mtu, routes[0].Src.String()
}

// Down removes all that Up and the pods left on the host: links, routes and the nftables table.
func Down(ctx context.Context) error {
	var failed []error
	links, err := whole(netlink.LinkList)
	if err != nil {
		failed = append(failed, fmt.Errorf("list links: %w", err))
	}
	for _, l := range links {
		if name := l.Attrs().Name; name == layout.GatewayLink || strings.HasPrefix(name, layout.VethPrefix) {
			if err := netlink.LinkDel(l); err != nil && !errors.Is(err, unix.ENODEV) {
				failed = append(failed, fmt.Errorf("remove link %s: %w", name, err))
			}
		}
	}
	if _, kubelets, err := net.ParseCIDR(layout.KubeletRange); err == nil {
		route := &netlink.Route{Dst: kubelets, Type: unix.RTN_LOCAL, Scope: netlink.SCOPE_HOST, Table: localTable}
		if err := netlink.RouteDel(route); err != nil && !errors.Is(err, unix.ESRCH) {
			failed = append(failed, fmt.Errorf("remove the route of %s: %w", layout.KubeletRange, err))
		}
	}
	for _, table := range []string{layout.NFTTable, layout.ProxyNFTTable} {
		if err := removeTable(ctx, table); err != nil {
			failed = append(failed, err)
		}
	}
	return errors.Join(failed...)
}

func removeTable(ctx context.Context, table string) error {
	nft, err := knftables.New(knftables.IPv4Family, table)
	if err != nil {
		return nil //nolint:nilerr // without nftables there is no table
	}
	tx := nft.NewTransaction()
	tx.Delete(&knftables.Table{})
	if err := nft.Run(ctx, tx); err != nil && !knftables.IsNotFound(err) {
		return fmt.Errorf("remove nftables table %s: %w", table, err)
	}
	return nil
}
