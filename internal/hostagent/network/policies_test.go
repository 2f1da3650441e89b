package network

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/knftables"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/podnet"
	"github.com/berth-run/berth/internal/policy"
)

// site is a host with pods, in network namespaces of their own: real links, rules and connections.
type site struct {
	testing.TB
	host     *Host
	hostNS   netns.NsHandle
	pods     map[string]netns.NsHandle
	addrs    map[string]string
	table    *policy.Table
	policies *Policies
}

const apiServer = "10.90.255.1:6443"

func newSite(t testing.TB, pods ...string) *site {
	t.Helper()
	runtime.LockOSThread() // never unlocked: the thread is in another namespace and ends with the test
	s := &site{TB: t, pods: map[string]netns.NsHandle{}, addrs: map[string]string{}, table: policy.NewTable()}
	for _, p := range pods {
		s.pods[p] = namespace(t)
	}
	s.hostNS = namespace(t)
	lo, err := netlink.LinkByName("lo")
	s.must(err)
	s.must(netlink.LinkSetUp(lo))
	s.host, err = Up(t.Context(), "10.96.0.1:443", apiServer)
	s.must(err)
	s.policies, err = NewPolicies()
	s.must(err)
	s.must(s.policies.Apply(t.Context(), s.table.All()))
	for i, name := range pods {
		s.addrs[name] = address(i)
		s.must(podnet.Add(name, fmt.Sprintf("/proc/self/fd/%d", int(s.pods[name])), podnet.Config{IP: address(i), Gateway: layout.GatewayIP, MTU: 1400}))
		s.must(s.host.AddPod(t.Context(), podnet.HostLink(name), address(i), "10.90.240.1"))
		s.table.SetPod(policy.Pod{NamespacedName: types.NamespacedName{Namespace: "x", Name: name}, UID: types.UID(name), Labels: map[string]string{"pod": name},
			Addr: netip.MustParseAddr(address(i)), Local: true, Ports: []policy.NamedPort{{Name: "web", Protocol: corev1.ProtocolTCP, Port: 80}}})
	}
	return s
}

// address of the i-th pod of a site.
func address(i int) string { return fmt.Sprintf("10.90.0.%d", 10+i) }

func (s *site) must(err error) {
	s.Helper()
	if err != nil {
		s.Fatal(err)
	}
}

// at runs f where the pod is, or, without a name, on the host.
func (s *site) at(pod string, f func()) {
	s.Helper()
	if pod != "" {
		enter(s.TB, s.pods[pod])
		defer enter(s.TB, s.hostNS)
	}
	f()
}

// set replaces all policies of namespace x by these specs.
func (s *site) set(specs ...string) {
	s.Helper()
	for _, key := range s.table.Policies() {
		s.table.DeletePolicy(key)
	}
	for i, spec := range specs {
		np := &networking.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: fmt.Sprintf("p%d", i)}}
		s.must(yaml.UnmarshalStrict([]byte(spec), &np.Spec))
		s.must(s.table.SetPolicy(np))
	}
	s.must(s.policies.Apply(s.Context(), s.table.Take()))
}

func (s *site) check(what, from, to string, want bool) {
	s.Helper()
	s.at(from, func() {
		if got := connects("", to); got != want {
			s.Errorf("%s: connection from %q to %s is %v, want %v", what, from, to, got, want)
		}
	})
}

// serve echoes lines by TCP at the pod's port, until the test ends.
func (s *site) serve(pod string, port int) (address string) {
	s.Helper()
	s.at(pod, func() {
		l, err := net.Listen("tcp", fmt.Sprintf(":%d", port))
		s.must(err)
		s.Cleanup(func() { l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					for lines := bufio.NewReader(c); ; {
						line, err := lines.ReadString('\n')
						if err != nil {
							return
						}
						c.Write([]byte(line)) //nolint:errcheck // the reader notices
					}
				}()
			}
		}()
	})
	return s.addr(pod) + fmt.Sprintf(":%d", port)
}

func (s *site) addr(pod string) string { return s.addrs[pod] }

const (
	denyIngress = `{podSelector: {matchLabels: {pod: server}}}`
	allowClient = `{podSelector: {matchLabels: {pod: server}}, ingress: [{from: [{podSelector: {matchLabels: {pod: client}}}], ports: [{port: web}, {port: 53, protocol: UDP}]}]}`
)

// TestPolicies checks what passes under policies; whatever a policy can say is in the tables of internal/policy.
func TestPolicies(t *testing.T) {
	s := newSite(t, "server", "client", "other")
	web, alt, client := s.serve("server", 80), s.serve("server", 81), s.serve("client", 80)
	s.check("no policy", "client", web, true)
	s.set(denyIngress)
	s.check("ingress denied", "client", web, false)
	s.check("the host's probes pass", "", web, true)
	s.check("replies pass", "server", client, true)
	s.check("a pod reaches itself", "server", web, true)
	listen(t, apiServer)
	s.check("a pod reaches the API server on its host", "server", apiServer, true)
	s.set(denyIngress, allowClient)
	s.check("allowed by label and named port", "client", web, true)
	s.check("another port", "client", alt, false)
	s.check("another pod", "other", web, false)
	s.set(`{podSelector: {matchLabels: {pod: server}}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0, except: [10.90.0.11/32]}}], ports: [{port: 79, endPort: 80}, {port: 90}]}]}`)
	s.check("block and range", "other", web, true)
	s.check("out of range", "other", alt, false)
	s.check("excepted from the block", "client", web, false)
	s.set(`{podSelector: {}, policyTypes: [Ingress, Egress]}`, allowClient)
	s.check("egress denied although ingress is allowed", "client", web, false)
	s.set(`{podSelector: {}, policyTypes: [Ingress, Egress]}`, allowClient, `{podSelector: {}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {pod: server}}}], ports: [{port: web}]}]}`)
	s.check("egress and ingress allowed", "client", web, true)
	s.check("egress to another port", "client", alt, false)
	s.check("egress to another pod", "server", client, false)
	s.set()
	s.check("no policy any more", "other", alt, true)
}

// TestCut checks that what is no longer allowed ends, in both directions, and that nothing else does.
func TestCut(t *testing.T) {
	s := newSite(t, "server", "client", "other")
	web := s.serve("server", 80)
	dial := func(pod string) (c net.Conn) {
		s.at(pod, func() {
			var err error
			c, err = net.DialTimeout("tcp", web, 5*time.Second)
			s.must(err)
			s.Cleanup(func() { c.Close() })
		})
		return c
	}
	client, other := dial("client"), dial("other")
	echo(t, client)
	echo(t, other)
	server, datagrams := s.datagrams("server", "client")
	exchange(t, server, datagrams)
	s.set(denyIngress, allowClient)
	echo(t, client)
	exchange(t, server, datagrams)
	if err := tryEcho(other); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("the connection of a pod that is no longer allowed got %v, want a reset", err)
	}
	s.set(denyIngress)
	if err := tryEcho(client); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("a connection that is no longer allowed got %v, want a reset", err)
	}
	if passes(t, datagrams, server) || passes(t, server, datagrams) {
		t.Error("datagrams go on after they are denied")
	}
	s.set(denyIngress, allowClient)
	exchange(t, server, datagrams)
}

// datagrams are two sockets that know each other; the client's is heard on port 53 of the server.
func (s *site) datagrams(server, client string) (at, from *net.UDPConn) {
	s.Helper()
	there, here := netip.AddrPortFrom(netip.MustParseAddr(s.addr(server)), 53), netip.AddrPortFrom(netip.MustParseAddr(s.addr(client)), 5353)
	open := func(pod string, local, remote netip.AddrPort) (c *net.UDPConn) {
		s.at(pod, func() {
			var err error
			c, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(local), net.UDPAddrFromAddrPort(remote))
			s.must(err)
			s.Cleanup(func() { c.Close() })
		})
		return c
	}
	return open(server, there, here), open(client, here, there)
}

// exchange is a datagram each way; the client's goes first.
func exchange(t *testing.T, server, client *net.UDPConn) {
	t.Helper()
	if !passes(t, client, server) || !passes(t, server, client) {
		t.Fatal("allowed datagrams do not arrive")
	}
}

func passes(t *testing.T, from, to *net.UDPConn) bool {
	t.Helper()
	if _, err := from.Write([]byte("x")); err != nil {
		t.Fatal(err)
	}
	if err := to.SetReadDeadline(time.Now().Add(silence)); err != nil {
		t.Fatal(err)
	}
	_, err := to.Read(make([]byte, 16))
	return err == nil
}

func echo(t *testing.T, c net.Conn) {
	t.Helper()
	if err := tryEcho(c); err != nil {
		t.Fatalf("an allowed connection ended: %v", err)
	}
}

func tryEcho(c net.Conn) error {
	if err := c.SetDeadline(time.Now().Add(5 * time.Second)); err != nil {
		return err
	}
	if _, err := c.Write([]byte("hello\n")); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 16))
	return err
}

// TestRestart sets host and policies up again, as an agent does that starts, under datagrams of an allowed and of a denied
// pod: none of the former is lost, and none of the latter arrives.
func TestRestart(t *testing.T) {
	s := newSite(t, "server", "client", "other")
	s.set(denyIngress, allowClient)
	var strangers atomic.Int32
	s.echoDatagrams("server", s.addr("client"), &strangers)
	dial := func(pod string) (c net.Conn) {
		s.at(pod, func() {
			var err error
			c, err = net.Dial("udp", s.addr("server")+":53")
			s.must(err)
			s.Cleanup(func() { c.Close() })
		})
		return c
	}
	client, other := dial("client"), dial("other")
	var ended atomic.Bool
	sent := make(chan int)
	go func() {
		n := 0
		for ; !ended.Load(); n++ {
			other.Write([]byte("x")) //nolint:errcheck // refused or not, it must not arrive
			if err := tryEcho(client); err != nil {
				t.Errorf("an allowed datagram was lost: %v", err)
			}
		}
		sent <- n
	}()
	for range 20 {
		_, err := Up(t.Context(), "10.96.0.1:443", apiServer)
		s.must(err)
		s.policies, err = NewPolicies()
		s.must(err)
		s.must(s.policies.Apply(t.Context(), s.table.All()))
	}
	ended.Store(true)
	if n, arrived := <-sent, strangers.Load(); n < 20 || arrived > 0 {
		t.Errorf("%d of %d denied datagrams arrived; want none of 20 or more", arrived, n)
	}
	// What a restart does not find any more goes.
	empty := policy.NewTable()
	s.must(s.policies.Apply(t.Context(), empty.All()))
	there, err := s.policies.nft.ListAll(t.Context())
	s.must(err)
	for _, name := range append(there["chain"], there["set"]...) {
		if strings.HasPrefix(name, policyPrefix) && name != policy.IsolatedSet && name != policy.SelfSet {
			t.Errorf("%s is left behind", name)
		}
	}
}

// TestHairpin checks that an isolated pod reaches itself through a Service's address.
func TestHairpin(t *testing.T) {
	s := newSite(t, "server", "client")
	s.serve("server", 80)
	nft, err := knftables.New(knftables.IPv4Family, "service")
	s.must(err)
	tx := nft.NewTransaction()
	tx.Add(&knftables.Table{})
	for _, c := range []struct {
		hook     knftables.BaseChainHook
		priority knftables.BaseChainPriority
		rule     string
	}{
		{knftables.PreroutingHook, knftables.DNATPriority, "ip daddr 10.96.0.9 tcp dport 8080 dnat to " + s.addr("server") + ":80"},
		{knftables.PostroutingHook, knftables.SNATPriority, fmt.Sprintf("ip saddr %[1]s ip daddr %[1]s masquerade", s.addr("server"))},
	} {
		kind := knftables.NATType
		tx.Add(&knftables.Chain{Name: string(c.hook), Type: &kind, Hook: &c.hook, Priority: &c.priority})
		tx.Add(&knftables.Rule{Chain: string(c.hook), Rule: c.rule})
	}
	s.must(nft.Run(t.Context(), tx))
	s.check("a Service without policies", "client", "10.96.0.9:8080", true)
	s.set(`{podSelector: {matchLabels: {pod: server}}, policyTypes: [Ingress, Egress]}`)
	s.check("a denied pod through a Service", "client", "10.96.0.9:8080", false)
	s.check("a pod through a Service of its own", "server", "10.96.0.9:8080", true)
	s.set(allowClient)
	s.check("an allowed pod through a Service, by the pod's port", "client", "10.96.0.9:8080", true)
}

// echoDatagrams sends back at port 53 of the pod what comes from friend, and counts what comes from others.
func (s *site) echoDatagrams(pod, friend string, strangers *atomic.Int32) {
	s.Helper()
	s.at(pod, func() {
		conn, err := net.ListenPacket("udp4", ":53")
		s.must(err)
		s.Cleanup(func() { conn.Close() })
		go func() {
			for buffer := make([]byte, 64); ; {
				n, from, err := conn.ReadFrom(buffer)
				if err != nil {
					return
				}
				if host, _, _ := net.SplitHostPort(from.String()); host != friend {
					strangers.Add(1)
					continue
				}
				conn.WriteTo(buffer[:n], from) //nolint:errcheck // the reader notices
			}
		}()
	})
}
