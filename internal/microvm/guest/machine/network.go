package machine

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

func linkUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return fmt.Errorf("find link %s: %w", name, err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		return fmt.Errorf("set link %s up: %w", name, err)
	}
	return nil
}

// configureLinks gives the machine's network devices, in the order that the kernel found them, what the links say.
func configureLinks(wanted []guestapi.Link) error {
	if len(wanted) == 0 {
		return nil
	}
	all, err := netlink.LinkList()
	if err != nil {
		return fmt.Errorf("list links: %w", err)
	}
	var devices []netlink.Link
	for _, link := range all {
		// Links without a device (lo, tunnels' fallbacks) are the kernel's own.
		if _, err := os.Stat("/sys/class/net/" + link.Attrs().Name + "/device"); err == nil {
			devices = append(devices, link)
		}
	}
	if len(devices) < len(wanted) {
		return fmt.Errorf("configure.links has %d links, the machine has %d network devices", len(wanted), len(devices))
	}
	for i, link := range wanted {
		if err := configureLink(devices[i], link); err != nil {
			return fmt.Errorf("configure link %s: %w", link.Name, err)
		}
	}
	return nil
}

func configureLink(device netlink.Link, wanted guestapi.Link) error {
	mac, err := net.ParseMAC(wanted.MAC)
	if err != nil {
		return fmt.Errorf("mac: %w", err)
	}
	if err := netlink.LinkSetDown(device); err != nil {
		return fmt.Errorf("set down: %w", err)
	}
	if err := netlink.LinkSetName(device, wanted.Name); err != nil {
		return fmt.Errorf("rename: %w", err)
	}
	if err := netlink.LinkSetHardwareAddr(device, mac); err != nil {
		return fmt.Errorf("set mac %s: %w", mac, err)
	}
	if err := netlink.LinkSetMTU(device, wanted.MTU); err != nil {
		return fmt.Errorf("set mtu %d: %w", wanted.MTU, err)
	}
	// Addresses and routes are the host's to say, not some router's. A kernel without IPv6 has no such file.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/"+wanted.Name+"/accept_ra", []byte("0"), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("leave routers unasked: %w", err)
	}
	if err := netlink.LinkSetUp(device); err != nil {
		return fmt.Errorf("set up: %w", err)
	}
	for _, address := range wanted.Addresses {
		if err := addAddress(device, address); err != nil {
			return err
		}
	}
	for _, neighbour := range wanted.Neighbours {
		if err := addNeighbour(device, neighbour); err != nil {
			return err
		}
	}
	for _, route := range wanted.Routes {
		if err := addRoute(device, route); err != nil {
			return err
		}
	}
	return nil
}

// addAddress without asking whether somebody else has it: the host gave it to this machine alone.
func addAddress(device netlink.Link, text string) error {
	address, err := netlink.ParseAddr(text)
	if err != nil {
		return fmt.Errorf("address %q: %w", text, err)
	}
	address.Flags |= unix.IFA_F_NODAD
	if err := netlink.AddrReplace(device, address); err != nil {
		return fmt.Errorf("add address %s: %w", text, err)
	}
	return nil
}

func addNeighbour(device netlink.Link, n guestapi.Neighbour) error {
	ip := net.ParseIP(n.IP)
	mac, err := net.ParseMAC(n.MAC)
	if ip == nil || err != nil {
		return fmt.Errorf("neighbour %s with mac %s is no address", n.IP, n.MAC)
	}
	neighbour := &netlink.Neigh{LinkIndex: device.Attrs().Index, State: netlink.NUD_PERMANENT, IP: ip, HardwareAddr: mac}
	if err := netlink.NeighSet(neighbour); err != nil {
		return fmt.Errorf("add neighbour %s: %w", n.IP, err)
	}
	return nil
}

func addRoute(device netlink.Link, r guestapi.Route) error {
	route, err := parseRoute(r)
	if err != nil {
		return err
	}
	route.LinkIndex = device.Attrs().Index
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("add route to %s: %w", r.Destination, err)
	}
	return nil
}

func parseRoute(r guestapi.Route) (*netlink.Route, error) {
	_, destination, err := net.ParseCIDR(r.Destination)
	if err != nil {
		return nil, fmt.Errorf("route's destination %q: %w", r.Destination, err)
	}
	route := &netlink.Route{Dst: destination, Scope: netlink.SCOPE_LINK}
	if r.Gateway != "" {
		route.Scope = netlink.SCOPE_UNIVERSE
		if route.Gw = net.ParseIP(r.Gateway); route.Gw == nil {
			return nil, fmt.Errorf("route's gateway %q is no address", r.Gateway)
		}
		// The gateway need not be inside of an address's prefix: pods have /32.
		route.Flags |= int(netlink.FLAG_ONLINK)
	}
	if r.Source != "" {
		if route.Src = net.ParseIP(r.Source); route.Src == nil {
			return nil, errors.New("route's source " + r.Source + " is no address")
		}
	}
	return route, nil
}
