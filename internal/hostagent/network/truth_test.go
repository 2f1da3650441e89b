package network

import (
	"fmt"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/vishvananda/netns"
	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"

	"github.com/berth-run/berth/internal/policy"
)

// Pods of the truth table: x/server, x/client, and away/other in another namespace.
var truthPods = []string{"server", "client", "other"}

// truths has a row for each thing that a policy can say of x/server (0: pods' addresses are 10.90.0.10, .11, .12), and which
// of the probes it lets through: c and o are client and other, 80 has the name web, 53 is UDP.
var truths = []struct{ name, spec, passes string }{
	{"no policy", "", "c80 c81 c53 o80 o81 o53"},
	{"no rule", `{podSelector: {}, policyTypes: [Ingress]}`, ""},
	{"a rule that says nothing allows all", `{podSelector: {}, ingress: [{}]}`, "c80 c81 c53 o80 o81 o53"},
	{"pods of another label are not selected", `{podSelector: {matchLabels: {pod: nobody}}, policyTypes: [Ingress]}`, "c80 c81 c53 o80 o81 o53"},
	{"selected by expression", `{podSelector: {matchExpressions: [{key: pod, operator: NotIn, values: [client, other]}]}, policyTypes: [Ingress]}`, ""},
	{"pods are those of the same namespace", `{podSelector: {}, ingress: [{from: [{podSelector: {}}]}]}`, "c80 c81 c53"},
	{"pods by label", `{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: other}}}]}]}`, ""},
	{"namespaces", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: away}}}]}]}`, "o80 o81 o53"},
	{"all namespaces", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}`, "c80 c81 c53 o80 o81 o53"},
	{"pods of namespaces", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {}, podSelector: {matchLabels: {pod: client}}}]}]}`, "c80 c81 c53"},
	{"pods of namespaces that have none", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: away}}, podSelector: {matchLabels: {pod: client}}}]}]}`, ""},
	{"either of two peers", `{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {team: away}}}, {podSelector: {matchLabels: {pod: client}}}]}]}`, "c80 c81 c53 o80 o81 o53"},
	{"a block", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.90.0.12/32}}]}]}`, "o80 o81 o53"},
	{"a block with an exception", `{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.90.0.0/16, except: [10.90.0.12/31]}}]}]}`, "c80 c81 c53"},
	{"a port is TCP unless it says otherwise", `{podSelector: {}, ingress: [{ports: [{port: 53}, {port: 80}]}]}`, "c80 o80"},
	{"UDP", `{podSelector: {}, ingress: [{ports: [{port: 53, protocol: UDP}]}]}`, "c53 o53"},
	{"a protocol without a port", `{podSelector: {}, ingress: [{ports: [{protocol: TCP}]}]}`, "c80 c81 o80 o81"},
	{"a range", `{podSelector: {}, ingress: [{ports: [{port: 81, endPort: 90}]}]}`, "c81 o81"},
	{"a named port", `{podSelector: {}, ingress: [{ports: [{port: web}]}]}`, "c80 o80"},
	{"a named port that no pod has", `{podSelector: {}, ingress: [{ports: [{port: nothing}]}]}`, ""},
	{"peer and port in one rule", `{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: client}}}], ports: [{port: 81}]}]}`, "c81"},
	{"peer and port in two rules", `{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: client}}}]}, {ports: [{port: 81}]}]}`, "c80 c81 c53 o81"},
	{"egress of another pod", `{podSelector: {matchLabels: {pod: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {pod: server}}}], ports: [{port: 53, protocol: UDP}]}]}`, "c53 o80 o81 o53"},
	{"egress to a named port", `{podSelector: {matchLabels: {pod: client}}, policyTypes: [Egress], egress: [{ports: [{port: web}]}]}`, "c80 o80 o81 o53"},
	{"egress to a block", `{podSelector: {matchLabels: {pod: client}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.90.0.12/32}}]}]}`, "o80 o81 o53"},
	{"egress alone isolates no ingress", `{podSelector: {}, policyTypes: [Egress], egress: [{}]}`, "c80 c81 c53 o80 o81 o53"},
}

// TestTruthTable probes each row with real packets, and asks `berth explain connection` the same.
func TestTruthTable(t *testing.T) {
	s := newSite(t, truthPods...)
	namespaces := map[string]map[string]string{"x": {"team": "x"}, "away": {"team": "away"}}
	pods := map[string]*policy.Pod{}
	for name, labels := range namespaces {
		s.table.SetNamespace(name, labels)
	}
	for i, name := range truthPods {
		namespace := "x"
		if name == "other" {
			namespace = "away"
		}
		pods[name] = &policy.Pod{NamespacedName: types.NamespacedName{Namespace: namespace, Name: name}, UID: types.UID(name), Labels: map[string]string{"pod": name},
			Addr: netip.MustParseAddr(address(i)), Local: true, Ports: []policy.NamedPort{{Name: "web", Protocol: corev1.ProtocolTCP, Port: 80}}}
		s.table.SetPod(*pods[name])
	}
	s.serve("server", 80)
	s.serve("server", 81)
	s.serveUDP("server", 53)
	for _, row := range truths {
		var specs []string
		cluster := policy.Cluster{Namespaces: namespaces}
		if row.spec != "" {
			specs = append(specs, row.spec)
			np := networking.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "p0"}}
			s.must(yaml.UnmarshalStrict([]byte(row.spec), &np.Spec))
			cluster.Policies = append(cluster.Policies, np)
		}
		s.set(specs...)
		var passed, explained []string
		for i, got := range s.probe() {
			p := probes[i]
			if got {
				passed = append(passed, p.name)
			}
			if cluster.Explain(policy.Endpoint{Pod: pods[p.from]}, policy.Endpoint{Pod: pods["server"]}, policy.Port{Protocol: p.protocol, Number: p.port}).Allowed {
				explained = append(explained, p.name)
			}
		}
		if got := strings.Join(passed, " "); got != row.passes {
			t.Errorf("%s: %q pass, want %q", row.name, got, row.passes)
		}
		if got := strings.Join(explained, " "); got != row.passes {
			t.Errorf("%s: explained as %q, want %q", row.name, got, row.passes)
		}
	}
}

var probes = []struct {
	name, from string
	protocol   corev1.Protocol
	port       uint16
}{
	{"c80", "client", corev1.ProtocolTCP, 80}, {"c81", "client", corev1.ProtocolTCP, 81}, {"c53", "client", corev1.ProtocolUDP, 53},
	{"o80", "other", corev1.ProtocolTCP, 80}, {"o81", "other", corev1.ProtocolTCP, 81}, {"o53", "other", corev1.ProtocolUDP, 53},
}

// probe tries all of them at once.
func (s *site) probe() []bool {
	out := make([]bool, len(probes))
	var g sync.WaitGroup
	for i, p := range probes {
		g.Go(func() {
			runtime.LockOSThread() // the thread is in another namespace, and ends with the goroutine
			if netns.Set(s.pods[p.from]) == nil {
				out[i] = answers(strings.ToLower(string(p.protocol)), fmt.Sprintf("%s:%d", s.addr("server"), p.port))
			}
		})
	}
	g.Wait()
	return out
}

// answers says whether a line comes back.
func answers(network, address string) bool {
	c, err := (&net.Dialer{Timeout: silence}).Dial(network, address)
	if err != nil {
		return false
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(silence)); err != nil {
		return false
	}
	line := make([]byte, 2)
	_, werr := c.Write([]byte("x\n"))
	n, rerr := c.Read(line)
	return werr == nil && rerr == nil && n > 0
}

func (s *site) serveUDP(pod string, port int) {
	s.Helper()
	s.at(pod, func() {
		l, err := net.ListenPacket("udp4", fmt.Sprintf(":%d", port))
		s.must(err)
		s.Cleanup(func() { l.Close() })
		go func() {
			for data := make([]byte, 16); ; {
				n, from, err := l.ReadFrom(data)
				if err != nil {
					return
				}
				l.WriteTo(data[:n], from) //nolint:errcheck // the reader notices
			}
		}()
	})
}
