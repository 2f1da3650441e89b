package network

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/podnet"
)

const (
	outside  = "203.0.113.9" // documentation addresses (RFC 5737): a machine beyond the host's uplink,
	uplinkIP = "203.0.113.1" // the host's address there,
	metadata = "169.254.169.254"
	otherUID = "7d3c0e5e-1111-4578-9e7f-1f074f0e0191"
	otherIP  = "10.91.0.5" // a subnet that is not of the local cluster's range
)

// TestSubnets has pods of three subnets talk to a machine outside: by NAT, not at all, and as the subnets change.
func TestSubnets(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread is in another namespace and ends with the test
	podNS, otherNS, beyondNS, hostNS := namespace(t), namespace(t), namespace(t), namespace(t)
	h, err := Up(t.Context(), "10.96.0.1:443", fmt.Sprintf("%s:%d", layout.GatewayIP, layout.APIServerPort))
	if err != nil {
		t.Fatal(err)
	}
	uplink(t, beyondNS, hostNS)
	for uid, at := range map[string]struct {
		ns netns.NsHandle
		ip string
	}{pod: {podNS, podIP}, otherUID: {otherNS, otherIP}} {
		if err := podnet.Add(uid, fmt.Sprintf("/proc/self/fd/%d", int(at.ns)), podnet.Config{IP: at.ip, Gateway: layout.GatewayIP, MTU: 1400}); err != nil {
			t.Fatal(err)
		}
		if err := h.AddPod(t.Context(), podnet.HostLink(uid), at.ip, kubelet); err != nil {
			t.Fatal(err)
		}
	}
	enter(t, beyondNS)
	seen := callers(t, outside+":80")
	listen(t, metadata+":80")
	enter(t, hostNS)
	check := func(what string, from netns.NsHandle, ip string, want string) {
		t.Helper()
		enter(t, from)
		defer enter(t, hostNS)
		if got := connects(ip, outside+":80"); got != (want != "") {
			t.Errorf("%s: connection to outside is %v", what, got)
		} else if got {
			if caller := <-seen; caller != want {
				t.Errorf("%s: outside sees %s, want %s", what, caller, want)
			}
		}
		if connects(ip, metadata+":80") {
			t.Errorf("%s: reaches the cloud's metadata", what)
		}
		if !connects(ip, map[string]string{podIP: otherIP, otherIP: podIP}[ip]+":81") {
			t.Errorf("%s: the pods do not reach each other", what)
		}
	}
	for ns, ip := range map[netns.NsHandle]string{podNS: podIP, otherNS: otherIP} {
		enter(t, ns)
		listen(t, ip+":81")
	}
	enter(t, hostNS)
	set := func(first, second bool) {
		t.Helper()
		if err := h.SetSubnets(t.Context(), []Subnet{{CIDR: netip.MustParsePrefix("10.90.0.0/19"), NAT: first}, {CIDR: netip.MustParsePrefix("10.91.0.0/24"), NAT: second},
			{CIDR: netip.MustParsePrefix("10.90.96.0/24"), Public: true, NAT: true}}); err != nil {
			t.Fatal(err)
		}
	}
	set(true, true)
	check("NAT", podNS, podIP, uplinkIP)
	check("NAT, another range", otherNS, otherIP, uplinkIP)
	set(true, false)
	check("NAT", podNS, podIP, uplinkIP)
	check("no NAT", otherNS, otherIP, "")
	set(false, true)
	check("no NAT any more", podNS, podIP, "")
	check("NAT again", otherNS, otherIP, uplinkIP)
	if err := h.SetSubnets(t.Context(), []Subnet{{CIDR: netip.MustParsePrefix("203.0.113.0/24"), NAT: true}}); err != nil {
		t.Fatal(err)
	}
	if routes, err := netlink.RouteGet(net.ParseIP(outside)); err != nil || len(routes) != 1 || !routes[0].Src.Equal(net.ParseIP(uplinkIP)) {
		t.Errorf("a subnet took the route to the host's own network: %v, %v", routes, err)
	}
	networks, err := Networks()
	if err != nil || !slices.Contains(networks, netip.MustParsePrefix("203.0.113.0/24")) || slices.Contains(networks, netip.MustParsePrefix("10.91.0.0/24")) {
		t.Errorf("the host's own networks are %v, %v", networks, err)
	}
	if err := h.SetSubnets(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if routes, err := netlink.RouteList(nil, netlink.FAMILY_V4); err != nil || strings.Contains(fmt.Sprint(routes), "10.91.0.0/24") {
		t.Errorf("the route of a subnet that is gone stays: %v, %v", routes, err)
	}
}

// uplink gives the host a link to the namespace beyond, which has outside's and the metadata's address.
func uplink(t *testing.T, beyond, host netns.NsHandle) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "uplink"}, PeerName: "eth0", PeerNamespace: netlink.NsFd(int(beyond))}))
	at := func(name, cidr string) netlink.Link {
		t.Helper()
		link, err := netlink.LinkByName(name)
		must(err)
		addr, err := netlink.ParseAddr(cidr)
		must(err)
		must(netlink.AddrAdd(link, addr))
		must(netlink.LinkSetUp(link))
		return link
	}
	link := at("uplink", uplinkIP+"/24")
	must(netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Gw: net.ParseIP(outside)}))
	enter(t, beyond)
	defer enter(t, host)
	at("eth0", outside+"/24")
	at("eth0", metadata+"/32")
}

// callers listens at the address and tells who connects.
func callers(t *testing.T, address string) <-chan string {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	seen := make(chan string, 10)
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			host, _, _ := net.SplitHostPort(conn.RemoteAddr().String())
			seen <- host
			conn.Close()
		}
	}()
	return seen
}
