package podnet

import (
	"fmt"
	"net"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

const uid = "bd995fc7-4e47-4578-9e7f-1f074f0e0191"

func TestNames(t *testing.T) {
	if name := HostLink(uid); len(name) > 15 || name == HostLink(uid+"x") {
		t.Errorf("link name %q is too long for the kernel or not the pod's own", name)
	}
	if mac := MAC(uid); mac[0]&0x03 != 0x02 || len(mac) != 6 {
		t.Errorf("%s is not a locally administered unicast address", mac)
	}
}

func TestConfigSurvives(t *testing.T) {
	path := filepath.Join(t.TempDir(), "network", "x.json")
	want := Config{IP: "10.0.0.5", Gateway: "10.0.0.1", MTU: 1400}
	if err := Write(path, want); err != nil {
		t.Fatal(err)
	}
	if got, err := Read(path); err != nil || got != want {
		t.Fatalf("got %+v, %v", got, err)
	}
}

// TestLink makes a pod's link between two network namespaces of its own and sends real packets over it.
func TestLink(t *testing.T) {
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
	podPath := fmt.Sprintf("/proc/self/fd/%d", int(pod))
	for range 2 { // a second time replaces the first
		if err := Add(uid, podPath, Config{IP: "10.9.0.5", Gateway: "10.9.255.1", MTU: 1400}); err != nil {
			t.Fatal(err)
		}
	}
	if err := netns.Set(pod); err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "10.9.0.5:80")
	if err != nil {
		t.Fatalf("the pod has not its address: %v", err)
	}
	defer listener.Close()
	if err := netns.Set(host); err != nil {
		t.Fatal(err)
	}
	conn, err := net.DialTimeout("tcp", "10.9.0.5:80", 5*time.Second)
	if err != nil {
		t.Fatalf("the host cannot reach the pod: %v", err)
	}
	if from, _, _ := net.SplitHostPort(conn.LocalAddr().String()); from != "10.9.255.1" {
		t.Errorf("the pod sees the host as %s, not as its gateway", from)
	}
	conn.Close()
	for range 2 {
		if err := Del(uid); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := netlink.LinkByName(HostLink(uid)); err == nil {
		t.Fatal("the link is still there")
	}
}
