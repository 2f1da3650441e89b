package network

import (
	"errors"
	"fmt"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"sigs.k8s.io/knftables"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/podnet"
)

const (
	pod     = "bd995fc7-4e47-4578-9e7f-1f074f0e0191"
	podIP   = "10.90.0.5"
	foreign = "10.90.0.99" // an address that is another pod's
	kubelet = "10.90.240.1"
	// silence is how long a dropped connection attempt is watched: an allowed one whose first packet is lost is made again after a second.
	silence = 1500 * time.Millisecond
)

// publish does what a load balancer does: it holds the address, and opens one port of it to pods.
func publish(t *testing.T, h *Host, addr, port string) {
	t.Helper()
	link, err := netlink.LinkByName(layout.GatewayLink)
	if err != nil {
		t.Fatal(err)
	}
	full, err := netlink.ParseAddr(addr + "/32")
	if err != nil {
		t.Fatal(err)
	}
	tx := h.nft.NewTransaction()
	tx.Add(&knftables.Element{Set: layout.PublishedSet, Key: []string{addr, port}})
	if err := errors.Join(netlink.AddrAdd(link, full), h.nft.Run(t.Context(), tx)); err != nil {
		t.Fatal(err)
	}
}

// TestRules sets a host and a pod up in network namespaces of their own, with real nftables and real connections.
func TestRules(t *testing.T) {
	runtime.LockOSThread()                      // never unlocked: the thread is in another namespace and ends with the test
	podNS, hostNS := namespace(t), namespace(t) // the thread is in the latest
	if lo, err := netlink.LinkByName("lo"); err != nil || netlink.LinkSetUp(lo) != nil {
		t.Fatal("bring loopback up")
	}
	h, err := Up(t.Context(), "10.96.0.1:443", fmt.Sprintf("%s:%d", layout.GatewayIP, layout.APIServerPort))
	if err != nil {
		t.Fatal(err)
	}
	if err := podnet.Add(pod, fmt.Sprintf("/proc/self/fd/%d", int(podNS)), podnet.Config{IP: podIP, Gateway: layout.GatewayIP, MTU: 1400}); err != nil {
		t.Fatal(err)
	}
	link := podnet.HostLink(pod)
	if err := h.AddPod(t.Context(), link, podIP, kubelet); err != nil {
		t.Fatal(err)
	}
	lend(t, link, podNS, hostNS)
	listen(t, fmt.Sprintf("%s:%d", layout.GatewayIP, layout.APIServerPort))
	listen(t, layout.GatewayIP+":23447") // a port of the host's own
	listen(t, kubelet+":10250")
	publish(t, h, "10.90.96.4", "80")
	listen(t, "10.90.96.4:80")
	listen(t, "10.90.96.4:81")

	check := func(what, from, to string, want bool) {
		t.Helper()
		if got := connects(from, to); got != want {
			t.Errorf("%s: connection from %q to %s is %v, want %v", what, from, to, got, want)
		}
	}
	check("the host reaches the pod's kubelet at the pod's address", "", podIP+":10250", true)
	enter(t, podNS)
	check("the pod reaches the API server", podIP, fmt.Sprintf("%s:%d", layout.GatewayIP, layout.APIServerPort), true)
	check("Service kubernetes leads to the API server", podIP, "10.96.0.1:443", true)
	check("a load balancer's port", podIP, "10.90.96.4:80", true)
	check("another port of a load balancer's address", podIP, "10.90.96.4:81", false)
	check("the pod reaches no other port of the host", podIP, layout.GatewayIP+":23447", false)
	check("link-local addresses, where clouds keep their metadata", podIP, "169.254.169.254:80", false)
	check("a foreign source address is dropped", foreign, fmt.Sprintf("%s:%d", layout.GatewayIP, layout.APIServerPort), false)

	enter(t, hostNS)
	if err := h.AddPod(t.Context(), link, foreign, kubelet); err != nil {
		t.Fatal(err)
	}
	enter(t, podNS)
	check("the same address passes once it is the pod's own", foreign, fmt.Sprintf("%s:%d", layout.GatewayIP, layout.APIServerPort), true)

	enter(t, hostNS)
	for range 2 { // a second time is no error
		if err := h.RemovePod(t.Context(), link, foreign); err != nil {
			t.Fatal(err)
		}
		if err := Down(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if links, err := netlink.LinkList(); err != nil || len(links) != 1 {
		t.Errorf("links are left behind: %v, %v", links, err)
	}
}

func namespace(t testing.TB) netns.NsHandle {
	t.Helper()
	ns, err := netns.New()
	if err != nil {
		t.Fatalf("make a network namespace (this test needs root): %v", err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

func enter(t testing.TB, ns netns.NsHandle) {
	t.Helper()
	if err := netns.Set(ns); err != nil {
		t.Fatal(err)
	}
}

// lend gives the pod's end the foreign address too, and the host a route back, so that only the rules can stop it.
func lend(t *testing.T, link string, podNS, hostNS netns.NsHandle) {
	t.Helper()
	one := func(ip string) *net.IPNet { return &net.IPNet{IP: net.ParseIP(ip).To4(), Mask: net.CIDRMask(32, 32)} }
	host, err := netlink.LinkByName(link)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: host.Attrs().Index, Dst: one(foreign), Scope: netlink.SCOPE_LINK}); err != nil {
		t.Fatal(err)
	}
	enter(t, podNS)
	defer enter(t, hostNS)
	eth0, err := netlink.LinkByName(podnet.PodLink)
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(eth0, &netlink.Addr{IPNet: one(foreign)}); err != nil {
		t.Fatal(err)
	}
}

func listen(t testing.TB, address string) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
}

// connects reports whether a connection from the address (empty: any) can be made in the thread's namespace.
func connects(from, to string) bool {
	d := net.Dialer{Timeout: silence}
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	conn, err := d.Dial("tcp", to)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}
