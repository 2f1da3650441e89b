package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/yaml"
)

// world is the matrix of upstream's network policy tests: pods a, b and c (label pod) in namespaces x, y and z (label ns),
// each serving 80 and 81 by TCP and UDP under the names of serve. 10.9.9.9 is outside.
func world() (map[string]map[string]string, []Pod) {
	namespaces := map[string]map[string]string{}
	var pods []Pod
	for i, ns := range []string{"x", "y", "z"} {
		namespaces[ns] = map[string]string{"ns": ns}
		for j, name := range []string{"a", "b", "c"} {
			p := Pod{NamespacedName: types.NamespacedName{Namespace: ns, Name: name}, UID: types.UID(ns + "/" + name), Labels: map[string]string{"pod": name},
				Addr: netip.AddrFrom4([4]byte{10, 0, byte(i), byte(j + 1)}), Local: true}
			for _, protocol := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
				for _, port := range []uint16{80, 81} {
					p.Ports = append(p.Ports, NamedPort{fmt.Sprintf("serve-%d-%s", port, strings.ToLower(string(protocol))), protocol, port})
				}
			}
			pods = append(pods, p)
		}
	}
	return namespaces, pods
}

var outside = Endpoint{Addr: netip.MustParseAddr("10.9.9.9")}

// policies reads the specs of policies, as namespace x's; "ns: spec" is that of another namespace.
func policies(t *testing.T, specs ...string) []networking.NetworkPolicy {
	t.Helper()
	var out []networking.NetworkPolicy
	for i, spec := range specs {
		np := networking.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: fmt.Sprintf("p%d", i+1)}}
		if ns, rest, found := strings.Cut(spec, ": {"); found && len(ns) == 1 {
			np.Namespace, spec = ns, "{"+rest
		}
		if err := yaml.UnmarshalStrict([]byte(spec), &np.Spec); err != nil {
			t.Fatalf("%s: %v", spec, err)
		}
		out = append(out, np)
	}
	return out
}

// TestTruth holds a column of policies against who may connect to x/a at 80/TCP, and against further connections.
func TestTruth(t *testing.T) {
	const everyone = "x/b x/c y/a y/b y/c z/a z/b z/c 10.9.9.9"
	for name, c := range map[string]struct {
		policies []string
		// toXA may connect to x/a at 80/TCP; x/a itself always may.
		toXA string
		// more connections "from to port[/protocol]", with a leading ! if denied.
		more []string
	}{
		"none": {nil, everyone, nil},
		"default deny ingress": {[]string{`{podSelector: {}}`}, "",
			[]string{"x/a y/a 80", "!y/a x/b 80", "y/a z/a 80", "x/a 10.9.9.9 80", "!x/b x/c 81/UDP", "x/a x/a 80", "!x/b x/a 80/SCTP"}},
		"deny by policyTypes": {[]string{`{podSelector: {}, policyTypes: [Ingress]}`}, "", nil},
		"default deny egress": {[]string{`{podSelector: {}, policyTypes: [Egress]}`}, "y/a y/b y/c z/a z/b z/c 10.9.9.9",
			[]string{"!x/a y/a 80", "!x/a 10.9.9.9 80", "y/a x/b 80"}},
		"deny both":                           {[]string{`{podSelector: {}, policyTypes: [Ingress, Egress]}`}, "", []string{"!x/a y/a 80", "x/b x/b 80/UDP"}},
		"policyTypes default with egress":     {[]string{`{podSelector: {}, egress: [{}]}`}, "", []string{"x/a y/a 80"}},
		"empty egress does not isolate it":    {[]string{`{podSelector: {}, egress: []}`}, "", []string{"x/a y/a 80"}},
		"ingress rules without their type":    {[]string{`{podSelector: {}, policyTypes: [Egress], ingress: [{}]}`}, "y/a y/b y/c z/a z/b z/c 10.9.9.9", nil},
		"allow all":                           {[]string{`{podSelector: {}, ingress: [{}]}`}, everyone, []string{"x/b x/a 80/SCTP"}},
		"allow all pods, not outside":         {[]string{`{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}`}, "x/b x/c y/a y/b y/c z/a z/b z/c", nil},
		"only selected pods are isolated":     {[]string{`{podSelector: {matchLabels: {pod: b}}}`}, everyone, []string{"!x/a x/b 80", "!y/a x/b 80"}},
		"another namespace's does not matter": {[]string{`y: {podSelector: {}}`}, everyone, []string{"!x/a y/a 80"}},
		"from pods of its namespace":          {[]string{`{podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}`}, "x/b", []string{"!x/a x/c 80"}},
		"from a namespace":                    {[]string{`{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: "y"}}}]}]}`}, "y/a y/b y/c", nil},
		"from a pod of a namespace": {[]string{
			`{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: "y"}}, podSelector: {matchLabels: {pod: b}}}]}]}`}, "y/b", nil},
		"from pod or namespace": {[]string{
			`{podSelector: {}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: "y"}}}, {podSelector: {matchLabels: {pod: b}}}]}]}`}, "x/b y/a y/b y/c", nil},
		"expressions": {[]string{`{podSelector: {matchExpressions: [{key: pod, operator: In, values: [a, b]}]}, ingress: [{from: [
			{namespaceSelector: {matchExpressions: [{key: ns, operator: NotIn, values: [x]}]}, podSelector: {matchExpressions: [{key: pod, operator: NotIn, values: [c]}]}}]}]}`},
			"y/a y/b z/a z/b", []string{"y/c x/c 80", "!y/c x/b 80"}},
		"union of policies": {[]string{`{podSelector: {}}`, `{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{podSelector: {matchLabels: {pod: b}}}]}]}`,
			`{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {matchLabels: {ns: z}}}]}]}`}, "x/b z/a z/b z/c", []string{"!x/b x/c 80"}},
		"block":                      {[]string{`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.9.0.0/16}}]}]}`}, "10.9.9.9", nil},
		"block matches pods as well": {[]string{`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.1.0/24}}]}]}`}, "y/a y/b y/c", nil},
		"block of everything":        {[]string{`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 0.0.0.0/0}}]}]}`}, everyone, nil},
		"block with exceptions": {[]string{
			`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.1.0/24, 10.0.1.0/30, 10.9.0.0/16]}}]}]}`}, "x/b x/c z/a z/b z/c", nil},
		"block that excepts itself":          {[]string{`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/24, except: [10.0.0.0/16]}}]}]}`}, "", nil},
		"what one block excepts another has": {[]string{`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.1.0/24]}}, {ipBlock: {cidr: 10.0.1.2/32}}]}]}`}, "x/b x/c y/b z/a z/b z/c 10.9.9.9", nil},
		"block of IPv6":                      {[]string{`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: "::/0"}}]}]}`}, "", nil},
		"port":                               {[]string{`{podSelector: {}, ingress: [{ports: [{port: 80}]}]}`}, everyone, []string{"!x/b x/a 81", "!x/b x/a 80/UDP"}},
		"other port":                         {[]string{`{podSelector: {}, ingress: [{ports: [{port: 81}]}]}`}, "", []string{"x/b x/a 81"}},
		"port of a protocol":                 {[]string{`{podSelector: {}, ingress: [{ports: [{port: 80, protocol: UDP}]}]}`}, "", []string{"x/b x/a 80/UDP"}},
		"all ports of a protocol":            {[]string{`{podSelector: {}, ingress: [{ports: [{protocol: SCTP}, {port: 7, protocol: SCTP}]}]}`}, "", []string{"x/b x/a 80/SCTP", "!x/b x/a 80/UDP"}},
		"range":                              {[]string{`{podSelector: {}, ingress: [{ports: [{port: 79, endPort: 80}, {port: 80, endPort: 90}, {port: 100, endPort: 65535}]}]}`}, everyone, []string{"x/b x/a 90", "!x/b x/a 91", "!x/b x/a 78", "x/b x/a 65535", "!x/b x/a 80/UDP"}},
		"named port":                         {[]string{`{podSelector: {}, ingress: [{ports: [{port: serve-80-tcp}]}]}`}, everyone, []string{"!x/b x/a 81", "!x/b x/a 80/UDP"}},
		"named port of another protocol":     {[]string{`{podSelector: {}, ingress: [{ports: [{port: serve-80-tcp, protocol: UDP}]}]}`}, "", []string{"!x/b x/a 80/UDP"}},
		"named port with peers":              {[]string{`{podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: serve-81-udp, protocol: UDP}]}]}`}, "", []string{"x/b x/a 81/UDP", "!y/b x/a 81/UDP"}},
		"egress to a named port":             {[]string{`{podSelector: {}, egress: [{to: [{namespaceSelector: {matchLabels: {ns: "y"}}}], ports: [{port: serve-81-tcp}]}], policyTypes: [Egress]}`}, "y/a y/b y/c z/a z/b z/c 10.9.9.9", []string{"x/a y/a 81", "!x/a y/a 80", "!x/a z/a 81", "!x/a 10.9.9.9 81"}},
		"peers and ports of one rule":        {[]string{`{podSelector: {}, ingress: [{from: [{podSelector: {}}], ports: [{port: 81}]}, {from: [{namespaceSelector: {matchLabels: {ns: "y"}}}], ports: [{port: 80}]}]}`}, "y/a y/b y/c", []string{"x/b x/a 81", "!y/b x/a 81"}},
		"both sides must allow": {[]string{`{podSelector: {matchLabels: {pod: a}}, ingress: [{from: [{namespaceSelector: {}}]}]}`, `y: {podSelector: {matchLabels: {pod: b}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}`},
			"x/b x/c y/a y/c z/a z/b z/c", []string{"y/b y/a 80", "!y/b z/a 80"}},
		"egress block": {[]string{`{podSelector: {}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.2.0/24]}}], ports: [{port: 80}, {port: 53, protocol: UDP}]}]}`},
			everyone, []string{"x/a y/a 80", "!x/a z/a 80", "x/a 10.9.9.9 53/UDP", "!x/a 10.9.9.9 53"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := newChecked(t, policies(t, c.policies...))
			for _, from := range strings.Fields(everyone) {
				w.check(from, "x/a", "80", slices.Contains(strings.Fields(c.toXA), from))
			}
			for _, more := range append(c.more, "x/a x/a 80") {
				f := strings.Fields(strings.TrimPrefix(more, "!"))
				w.check(f[0], f[1], f[2], more[0] != '!')
			}
		})
	}
}

// checked asks both the policies as they are written and the filter that is made from them.
type checked struct {
	*testing.T
	ends    map[string]Endpoint
	cluster Cluster
	filter  *filter
}

func newChecked(t *testing.T, list []networking.NetworkPolicy) *checked {
	namespaces, pods := world()
	c := &checked{t, map[string]Endpoint{"10.9.9.9": outside}, Cluster{list, namespaces}, newFilter(t)}
	table := NewTable()
	for name, labels := range namespaces {
		table.SetNamespace(name, labels)
	}
	for i := range pods {
		c.ends[pods[i].String()] = Endpoint{Pod: &pods[i]}
		table.SetPod(pods[i])
	}
	for i := range list {
		if err := table.SetPolicy(&list[i]); err != nil {
			t.Fatal(err)
		}
	}
	c.filter.apply(table.Take())
	return c
}

func (c *checked) check(from, to, port string, want bool) {
	c.Helper()
	number, protocol, found := strings.Cut(port, "/")
	if !found {
		protocol = "TCP"
	}
	p := Port{Protocol: corev1.Protocol(protocol)}
	fmt.Sscan(number, &p.Number) //nolint:errcheck // the table's own numbers
	f, t := c.ends[from], c.ends[to]
	if e := c.cluster.Explain(f, t, p); e.Allowed != want {
		c.Errorf("%s -> %s %s: want %v, but it is %s", from, to, p, want, e.Summary)
	}
	if got := c.filter.allows(f.addr(), t.addr(), p); got != want {
		c.Errorf("%s -> %s %s: the filter says %v, want %v", from, to, p, got, want)
	}
}

func TestExplain(t *testing.T) {
	w := newChecked(t, policies(t, `{podSelector: {}}`, `{podSelector: {matchLabels: {pod: a}}, ingress: [{ports: [{port: 1}]}, {from: [{podSelector: {}}]}]}`,
		`y: {podSelector: {}, policyTypes: [Egress]}`))
	for connection, want := range map[string]string{
		"x/b x/a":      "allowed: ingress of x/a is allowed by x/p2 (ingress rule 2)",
		"x/a x/b":      "denied: ingress of x/b is isolated by x/p1, and no rule allows it",
		"y/a x/a":      "denied: egress of y/a is isolated by y/p3, and no rule allows it; ingress of x/a is isolated by x/p1, x/p2, and no rule allows it",
		"y/a y/a":      "allowed: a pod always reaches itself",
		"z/a z/b":      "allowed: no policy is for either end",
		"10.9.9.9 x/b": "denied: ingress of x/b is isolated by x/p1, and no rule allows it",
	} {
		f := strings.Fields(connection)
		e := w.cluster.Explain(w.ends[f[0]], w.ends[f[1]], Port{corev1.ProtocolTCP, 80})
		if e.Summary != want {
			t.Errorf("%s: %s; want %s", connection, e.Summary, want)
		}
	}
	var b strings.Builder
	if err := w.cluster.Explain(w.ends["x/b"], w.ends["x/a"], Port{corev1.ProtocolTCP, 80}).Print(&b); err != nil {
		t.Fatal(err)
	}
	want := `x/b -> x/a 80/TCP: allowed: ingress of x/a is allowed by x/p2 (ingress rule 2)
  egress    not isolated
  ingress   allowed, isolated by x/p1, x/p2
            rule 2 of x/p2 allows it
`
	if b.String() != want {
		t.Errorf("printed:\n%s\nwant:\n%s", b.String(), want)
	}
}

// TestPodOf checks which addresses and names count.
func TestPodOf(t *testing.T) {
	always := corev1.ContainerRestartPolicyAlways
	port := func(name string, number int32) corev1.Container {
		return corev1.Container{Ports: []corev1.ContainerPort{{Name: name, ContainerPort: number}, {ContainerPort: number + 1}}}
	}
	sidecar := port("metrics", 9090)
	sidecar.RestartPolicy = &always
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "x", Name: "a"}, Spec: corev1.PodSpec{
		Containers: []corev1.Container{port("http", 80), port("http", 8080)}, InitContainers: []corev1.Container{port("init", 1), sidecar}}}
	addr := netip.MustParseAddr("10.0.0.1")
	got := PodOf(p, addr, true)
	if want := []NamedPort{{"http", corev1.ProtocolTCP, 80}, {"metrics", corev1.ProtocolTCP, 9090}}; !slices.Equal(got.Ports, want) || got.Addr != addr {
		t.Errorf("got %v at %v, want %v at %v", got.Ports, got.Addr, want, addr)
	}
	p.Status.Phase = corev1.PodSucceeded
	if got := PodOf(p, addr, true); got.Addr.IsValid() {
		t.Errorf("a pod that ended has address %v", got.Addr)
	}
}

// TestRefused checks that what cannot be a policy is refused and that the policy stays as it was.
func TestRefused(t *testing.T) {
	table := NewTable()
	good := policies(t, `{podSelector: {}}`)[0]
	if err := table.SetPolicy(&good); err != nil {
		t.Fatal(err)
	}
	table.Take()
	for spec, want := range map[string]string{
		`{podSelector: {matchExpressions: [{key: a, operator: Near}]}}`:                                `x/p1: podSelector`,
		`{podSelector: {}, ingress: [{from: [{ipBlock: {cidr: nowhere}}]}]}`:                           `x/p1: ingress rule 1: ipBlock`,
		`{podSelector: {}, egress: [{}, {to: [{ipBlock: {cidr: 10.0.0.0/8, except: [everything]}}]}]}`: `x/p1: egress rule 2: ipBlock: except`,
		`{podSelector: {}, ingress: [{ports: [{port: 80, endPort: 79}]}]}`:                             `ports 80 to 79`,
		`{podSelector: {}, ingress: [{ports: [{protocol: ICMP}]}]}`:                                    `protocol "ICMP"`,
	} {
		bad := policies(t, spec)[0]
		if err := table.SetPolicy(&bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %s", spec, err, want)
		}
	}
	if d := table.Take(); !d.Empty() {
		t.Errorf("refused policies change the filter: %+v", d)
	}
}
