package podnet

import (
	"fmt"
	"io"
	"net"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// TestBandwidth sends over a limited link in both directions. The volume is far more than what a bucket holds, and the
// bounds are those of its arithmetic: no faster than the rate and what the bucket held before.
func TestBandwidth(t *testing.T) {
	runtime.LockOSThread() // never unlocked: the thread is in another namespace and ends with the test
	pod, err := netns.New()
	if err != nil {
		t.Fatalf("make a network namespace (this test needs root): %v", err)
	}
	defer pod.Close()
	host, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer host.Close()
	gateway(t)
	const ingress, egress = 16_000_000, 8_000_000 // bits per second
	c := Config{IP: "10.9.0.5", Gateway: "10.9.255.1", MTU: 1500, Ingress: ingress, Egress: egress}
	if err := Add(uid, fmt.Sprintf("/proc/self/fd/%d", int(pod)), c); err != nil {
		t.Fatal(err)
	}
	if addrs, err := netlink.AddrList(mustLink(t, HostLink(uid)), netlink.FAMILY_V6); err != nil || len(addrs) > 0 {
		t.Errorf("the host's end has IPv6 addresses, which no rule guards: %v, %v", addrs, err)
	}
	enter(t, pod)
	listener, err := net.Listen("tcp", "10.9.0.5:80")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	const volume = 2 << 20
	result := make(chan time.Duration, 2)
	go func() {
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		began := time.Now()
		_, _ = io.CopyN(io.Discard, conn, volume)
		result <- time.Since(began)
		_, _ = conn.Write(make([]byte, volume))
	}()
	enter(t, host)
	conn, err := net.DialTimeout("tcp", "10.9.0.5:80", 5*time.Second)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(make([]byte, volume)); err != nil {
		t.Fatal(err)
	}
	notFaster(t, "ingress", <-result, volume, ingress)
	began := time.Now()
	if _, err := io.CopyN(io.Discard, conn, volume); err != nil {
		t.Fatal(err)
	}
	notFaster(t, "egress", time.Since(began), volume, egress)
}

// notFaster checks that the volume did not pass in less time than the limit allows.
func notFaster(t *testing.T, what string, took time.Duration, volume, limit float64) {
	t.Helper()
	held := max(burstTime.Seconds()*limit/8, minBurst) + queueTime.Seconds()*limit/8
	least := time.Duration((volume - held) * 8 / limit * float64(time.Second))
	if took < least {
		t.Errorf("%s: %.0f bytes passed in %s, which takes %s at least at %.0f bits per second", what, volume, took, least, limit)
	}
}

// gateway makes the link that holds the pods' next hop.
func gateway(t *testing.T) {
	t.Helper()
	link := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "gw"}}
	if err := netlink.LinkAdd(link); err != nil {
		t.Fatal(err)
	}
	if err := netlink.AddrAdd(link, &netlink.Addr{IPNet: hostNet(net.ParseIP("10.9.255.1").To4())}); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(link); err != nil {
		t.Fatal(err)
	}
}

func mustLink(t *testing.T, name string) netlink.Link {
	t.Helper()
	link, err := netlink.LinkByName(name)
	if err != nil {
		t.Fatal(err)
	}
	return link
}

func enter(t *testing.T, ns netns.NsHandle) {
	t.Helper()
	if err := netns.Set(ns); err != nil {
		t.Fatal(err)
	}
}
