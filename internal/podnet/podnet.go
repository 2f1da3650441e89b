// Package podnet makes a pod's link: a veth whose host end is routed, not bridged, so that a pod sees one neighbour, the
// host. The host agent writes a Config per pod; the CNI plugin (cmd/berth-cni) reads and applies it when containerd asks.
package podnet

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/layout"
)

// PodLink is the name of the pod's end of the link.
const PodLink = "eth0"

// Config is a pod's network.
type Config struct {
	IP      string `json:"ip"`
	Gateway string `json:"gateway"`
	MTU     int    `json:"mtu"`
	// Subnet that the address is from (10.90.0.0/19), for chains with another main plugin, whose links are not routed.
	Subnet string `json:"subnet,omitempty"`
	// Ingress and Egress limit the link, in bits per second; 0 is no limit.
	Ingress uint64 `json:"ingress,omitempty"`
	Egress  uint64 `json:"egress,omitempty"`
}

// Write keeps a pod's configuration where the CNI plugin looks for it.
func Write(path string, c Config) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("make the directory of network configurations: %w", err)
	}
	data, err := json.Marshal(c)
	if err != nil {
		return fmt.Errorf("encode the pod's network: %w", err)
	}
	if err := os.WriteFile(path, data, 0o644); err != nil {
		return fmt.Errorf("write the pod's network: %w", err)
	}
	return nil
}

// Read is the opposite of Write.
func Read(path string) (Config, error) {
	var c Config
	data, err := os.ReadFile(path)
	if err != nil {
		return c, fmt.Errorf("the host agent has not prepared a network for this pod: %w", err)
	}
	if err := json.Unmarshal(data, &c); err != nil {
		return c, fmt.Errorf("%s is not a pod's network configuration: %w", path, err)
	}
	return c, nil
}

// HostLink is the name of the host's end of a pod's link; 15 characters are the kernel's limit.
func HostLink(podUID string) string {
	sum := sha256.Sum256([]byte(podUID))
	return layout.VethPrefix + hex.EncodeToString(sum[:])[:11]
}

// MAC of the pod's end: locally administered and the same for a pod each time.
func MAC(podUID string) net.HardwareAddr {
	sum := sha256.Sum256([]byte(podUID))
	return append(net.HardwareAddr{0x02}, sum[:5]...)
}

// Add makes the link of the pod into the network namespace at path and gives both ends their addresses and routes. What an
// earlier try left is replaced.
func Add(podUID, netnsPath string, c Config) error {
	ip, gateway := net.ParseIP(c.IP).To4(), net.ParseIP(c.Gateway).To4()
	if ip == nil || gateway == nil {
		return fmt.Errorf("pod network has no valid IPv4 address (%q) or gateway (%q)", c.IP, c.Gateway)
	}
	if err := Del(podUID); err != nil {
		return err
	}
	ns, err := netns.GetFromPath(netnsPath)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", netnsPath, err)
	}
	defer ns.Close()
	name := HostLink(podUID)
	veth := &netlink.Veth{
		LinkAttrs: netlink.LinkAttrs{Name: name, MTU: c.MTU, Flags: net.FlagUp},
		PeerName:  PodLink, PeerHardwareAddr: MAC(podUID), PeerNamespace: netlink.NsFd(int(ns)), PeerMTU: uint32(c.MTU),
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("make link %s: %w", name, err)
	}
	if err := withoutIPv6(name); err != nil {
		return err
	}
	host, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(host); err != nil {
		return fmt.Errorf("bring link %s up: %w", name, err)
	}
	if err := podEnd(ns, ip, gateway, host.Attrs().HardwareAddr); err != nil {
		return err
	}
	if err := limit(ns, host, c); err != nil {
		return err
	}
	route := &netlink.Route{LinkIndex: host.Attrs().Index, Dst: hostNet(ip), Scope: netlink.SCOPE_LINK, Src: gateway}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("route %s to %s: %w", ip, name, err)
	}
	return nil
}

// withoutIPv6 keeps a pod from reaching the host by the link's IPv6 address, which the kernel gives it by itself: the host's
// rules are those of IPv4.
func withoutIPv6(link string) error {
	err := os.WriteFile(filepath.Join("/proc/sys/net/ipv6/conf", link, "disable_ipv6"), []byte("1"), 0o644)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // a kernel without IPv6
		return fmt.Errorf("switch IPv6 off on link %s: %w", link, err)
	}
	return nil
}

func hostNet(ip net.IP) *net.IPNet { return &net.IPNet{IP: ip, Mask: net.CIDRMask(32, 32)} }

// podEnd gives the pod's end its address and its one way out. The gateway is outside the pod's /32, so it gets a route of
// its own, and its hardware address is written down: gVisor copies it, and nobody needs to ask.
func podEnd(ns netns.NsHandle, ip, gateway net.IP, hostMAC net.HardwareAddr) error {
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return fmt.Errorf("enter the pod's network namespace: %w", err)
	}
	defer h.Close()
	if lo, err := h.LinkByName("lo"); err == nil {
		if err := h.LinkSetUp(lo); err != nil {
			return fmt.Errorf("bring the pod's loopback up: %w", err)
		}
	}
	link, err := h.LinkByName(PodLink)
	if err != nil {
		return fmt.Errorf("find the pod's %s: %w", PodLink, err)
	}
	if err := h.AddrReplace(link, &netlink.Addr{IPNet: hostNet(ip)}); err != nil {
		return fmt.Errorf("give the pod %s: %w", ip, err)
	}
	if err := h.LinkSetUp(link); err != nil {
		return fmt.Errorf("bring the pod's %s up: %w", PodLink, err)
	}
	index := link.Attrs().Index
	if err := h.NeighSet(&netlink.Neigh{LinkIndex: index, IP: gateway, HardwareAddr: hostMAC, State: netlink.NUD_PERMANENT}); err != nil {
		return fmt.Errorf("tell the pod its gateway's hardware address: %w", err)
	}
	if err := h.RouteReplace(&netlink.Route{LinkIndex: index, Dst: hostNet(gateway), Scope: netlink.SCOPE_LINK}); err != nil {
		return fmt.Errorf("route the pod to its gateway: %w", err)
	}
	all := &net.IPNet{IP: net.IPv4zero.To4(), Mask: net.CIDRMask(0, 32)}
	if err := h.RouteReplace(&netlink.Route{LinkIndex: index, Dst: all, Gw: gateway}); err != nil {
		return fmt.Errorf("give the pod a default route: %w", err)
	}
	return nil
}

// Del removes the pod's link, and its routes with it. Doing so twice is no error.
func Del(podUID string) error {
	link, err := netlink.LinkByName(HostLink(podUID))
	if err != nil {
		var gone netlink.LinkNotFoundError
		if errors.As(err, &gone) {
			return nil
		}
		return fmt.Errorf("find link %s: %w", HostLink(podUID), err)
	}
	if err := netlink.LinkDel(link); err != nil && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("remove link %s: %w", HostLink(podUID), err)
	}
	return nil
}
