// Package podlink joins a microVM to the network of its pod. Whatever CNI chain made the pod's network namespace, the package takes the
// link that it finds there, gives the guest the same addresses, and hands every packet from the one to the other: the namespace
// itself takes part in nothing. Needs root.
package podlink

import (
	"errors"
	"fmt"
	"net"
	"os"
	"runtime"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

// tapName is the machine's link in the pod's network namespace.
const tapName = "berth-vm"

// Join makes a tap device in the network namespace at path, ties it to the pod's link, and says how the link looks in the guest. The
// caller owns the file, which is the machine's side of the device. The device goes with the namespace; doing so again replaces it.
func Join(path string) (*os.File, guestapi.Link, error) {
	ns, err := netns.GetFromPath(path)
	if err != nil {
		return nil, guestapi.Link{}, fmt.Errorf("open the pod's network namespace: %w", err)
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, guestapi.Link{}, fmt.Errorf("enter the pod's network namespace: %w", err)
	}
	defer h.Close()
	link, err := podLink(h)
	if err != nil {
		return nil, guestapi.Link{}, err
	}
	description, err := describe(h, link)
	if err != nil {
		return nil, guestapi.Link{}, err
	}
	tap, err := makeTap(ns)
	if err != nil {
		return nil, guestapi.Link{}, err
	}
	if err := tie(h, link); err != nil {
		tap.Close()
		return nil, guestapi.Link{}, err
	}
	return tap, description, nil
}

// podLink finds the one link that is not loopback and not ours.
func podLink(h *netlink.Handle) (netlink.Link, error) {
	links, err := h.LinkList()
	if err != nil {
		return nil, fmt.Errorf("list the pod's links: %w", err)
	}
	var found []netlink.Link
	for _, l := range links {
		a := l.Attrs()
		if a.Flags&net.FlagLoopback == 0 && a.Name != tapName && a.Flags&net.FlagUp != 0 {
			found = append(found, l)
		}
	}
	if len(found) != 1 {
		return nil, fmt.Errorf("the pod's network namespace has %d links that are up; a microVM needs exactly one: check the CNI configuration", len(found))
	}
	return found[0], nil
}

func describe(h *netlink.Handle, link netlink.Link) (guestapi.Link, error) {
	a := link.Attrs()
	out := guestapi.Link{Name: a.Name, MAC: a.HardwareAddr.String(), MTU: a.MTU}
	addrs, err := h.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return out, fmt.Errorf("list the pod's addresses: %w", err)
	}
	for _, addr := range addrs {
		if !addr.IP.IsLinkLocalUnicast() {
			out.Addresses = append(out.Addresses, addr.IPNet.String())
		}
	}
	routes, err := h.RouteList(link, netlink.FAMILY_ALL)
	if err != nil {
		return out, fmt.Errorf("list the pod's routes: %w", err)
	}
	for _, r := range routes {
		if r.Protocol == unix.RTPROT_KERNEL || r.Type != unix.RTN_UNICAST {
			continue
		}
		out.Routes = append(out.Routes, describeRoute(r))
	}
	neighbours, err := h.NeighList(a.Index, netlink.FAMILY_ALL)
	if err != nil {
		return out, fmt.Errorf("list the pod's neighbours: %w", err)
	}
	for _, n := range neighbours {
		if n.State&netlink.NUD_PERMANENT != 0 && len(n.HardwareAddr) == 6 && !n.IP.IsMulticast() {
			out.Neighbours = append(out.Neighbours, guestapi.Neighbour{IP: n.IP.String(), MAC: n.HardwareAddr.String()})
		}
	}
	return out, nil
}

func describeRoute(r netlink.Route) guestapi.Route {
	out := guestapi.Route{Destination: "0.0.0.0/0"}
	if r.Family == netlink.FAMILY_V6 {
		out.Destination = "::/0"
	}
	if r.Dst != nil {
		out.Destination = r.Dst.String()
	}
	if r.Gw != nil {
		out.Gateway = r.Gw.String()
	}
	if r.Src != nil {
		out.Source = r.Src.String()
	}
	return out
}

// makeTap makes the device in ns and returns the file of its only queue, without affecting the calling thread's namespace afterwards.
func makeTap(ns netns.NsHandle) (*os.File, error) {
	type result struct {
		file *os.File
		err  error
	}
	done := make(chan result)
	go func() { // on a thread that ends with this function, because it stays in the pod's namespace
		runtime.LockOSThread()
		if err := netns.Set(ns); err != nil {
			done <- result{err: fmt.Errorf("enter the pod's network namespace: %w", err)}
			return
		}
		file, err := openTap()
		done <- result{file, err}
	}()
	r := <-done
	return r.file, r.err
}

func openTap() (*os.File, error) {
	fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open /dev/net/tun (the kernel needs CONFIG_TUN): %w", err)
	}
	request, err := unix.NewIfreq(tapName)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make the machine's tap device: %w", err)
	}
	return os.NewFile(uintptr(fd), tapName), nil
}

// tie hands what arrives at either link to the other, before the namespace's own network sees it.
func tie(h *netlink.Handle, link netlink.Link) error {
	tap, err := h.LinkByName(tapName)
	if err != nil {
		return fmt.Errorf("find the machine's tap device: %w", err)
	}
	if err := errors.Join(h.LinkSetMTU(tap, link.Attrs().MTU), h.LinkSetUp(tap)); err != nil {
		return fmt.Errorf("bring the machine's tap device up: %w", err)
	}
	for _, pair := range [][2]netlink.Link{{link, tap}, {tap, link}} {
		if err := redirect(h, pair[0], pair[1]); err != nil {
			return fmt.Errorf("hand packets of %s to %s: %w", pair[0].Attrs().Name, pair[1].Attrs().Name, err)
		}
	}
	return nil
}

func redirect(h *netlink.Handle, from, to netlink.Link) error {
	index := from.Attrs().Index
	ingress := &netlink.Ingress{QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_INGRESS}}
	if err := h.QdiscReplace(ingress); err != nil {
		return fmt.Errorf("add the ingress queue: %w", err)
	}
	filter := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: ingress.Handle, Priority: 1, Protocol: unix.ETH_P_ALL},
		Actions: []netlink.Action{&netlink.MirredAction{
			ActionAttrs: netlink.ActionAttrs{Action: netlink.TC_ACT_STOLEN}, MirredAction: netlink.TCA_EGRESS_REDIR, Ifindex: to.Attrs().Index,
		}},
	}
	if err := h.FilterReplace(filter); err != nil {
		return fmt.Errorf("add the redirection: %w", err)
	}
	return nil
}
