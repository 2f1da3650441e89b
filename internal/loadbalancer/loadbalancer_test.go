package loadbalancer

import (
	"flag"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"

	discovery "k8s.io/api/discovery/v1"

	"github.com/berth-run/berth/api/v1alpha1"
)

var update = flag.Bool("update", false, "write the golden file")

// read decodes the objects of a file.
func read(t *testing.T, file string) Cluster {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	c := Cluster{Addr: map[client.ObjectKey]netip.Addr{}}
	for _, doc := range strings.Split(string(data), "\n---\n") {
		o, _, err := scheme.Codecs.UniversalDeserializer().Decode([]byte(doc), nil, nil)
		if err != nil {
			t.Fatalf("%v in:\n%s", err, doc)
		}
		c.add(t, o)
	}
	return c
}

func (c *Cluster) add(t *testing.T, o runtime.Object) {
	t.Helper()
	switch o := o.(type) {
	case *corev1.Service:
		c.Services = append(c.Services, *o)
	case *discovery.EndpointSlice:
		c.Slices = append(c.Slices, *o)
	case *networking.Ingress:
		c.Ingresses = append(c.Ingresses, *o)
	case *networking.IngressClass:
		c.Classes = append(c.Classes, *o)
	case *corev1.Secret:
		c.Secrets = append(c.Secrets, *o)
	default:
		t.Fatalf("unexpected %T", o)
	}
}

var public = []v1alpha1.Subnet{{Spec: v1alpha1.SubnetSpec{CIDR: "10.90.96.0/28", Type: v1alpha1.SubnetPublic}}, {Spec: v1alpha1.SubnetSpec{CIDR: "10.90.0.0/19", Type: v1alpha1.SubnetPrivate}}}

// TestBuild renders a cluster with everything in it; HAProxy itself must accept the result.
func TestBuild(t *testing.T) {
	c := read(t, "testdata/cluster.yaml")
	if problems := newPool().assign(&c, public, time.Now()); len(problems) > 0 {
		t.Fatal(problems)
	}
	c.Pods = []netip.Prefix{netip.MustParsePrefix("10.90.0.0/17")}
	config, certs, problems := Build(c)
	if len(certs) != 0 {
		t.Errorf("certificates %v from Secrets that are none", certs)
	}
	config.Socket = "/run/berth/lb/haproxy.sock"
	got, err := config.Render()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range problems {
		got += "# " + p.Object.GetName() + ": " + p.Reason + ": " + p.Message + "\n"
	}
	golden := "testdata/cluster.golden"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || string(want) != got {
		t.Errorf("the configuration is not that of %s (%v); if it should be: go test ./internal/loadbalancer -update\n%s", golden, err, got)
	}
	file := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(file, []byte(got), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := check(t.Context(), file); err != nil {
		t.Error(err)
	}
}

func TestRoutes(t *testing.T) {
	routes := []Route{{Backend: "all", Path: "/"}, {Host: "*.example", Path: "/", Backend: "wild"}, {Host: "a.example", Path: "/x", Backend: "short"},
		{Host: "a.example", Path: "/x/y", Backend: "long"}, {Host: "a.example", Path: "/", Match: Exact, Backend: "exact"}}
	sortRoutes(routes)
	var order []string
	for _, r := range routes {
		order = append(order, r.Backend)
	}
	if got := strings.Join(order, " "); got != "exact long short wild all" {
		t.Errorf("routes are in order %s", got)
	}
	for _, tc := range []struct {
		route Route
		want  string
	}{
		{Route{Path: "/"}, "TRUE"},
		{Route{Path: "/foo/"}, "{ path -m reg '^/foo(/|$)' }"},
		{Route{Path: "/foo", Match: Exact}, "{ path '/foo' }"},
		{Route{Path: "/foo/*", Match: Pattern}, "{ path -m reg '^/foo/.*$' }"},
		{Route{Host: "*.a.b", Path: "/"}, `{ var(txn.host) -m reg '^[^.]+\.a\.b$' }`},
	} {
		if got := tc.route.Condition(); got != tc.want {
			t.Errorf("%+v is %s, want %s", tc.route, got, tc.want)
		}
	}
}

// TestPool: an address stays with who has it, is never given twice, and rests after its release.
func TestPool(t *testing.T) {
	now := time.Now()
	p := newPool()
	service := func(name, ip string) corev1.Service {
		class := ClassNLB
		s := corev1.Service{Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer, LoadBalancerClass: &class, Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}}}
		s.Name, s.UID = name, types.UID(name)
		if ip != "" {
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: ip}}
		}
		return s
	}
	assign := func(services ...corev1.Service) (map[client.ObjectKey]netip.Addr, []Problem) {
		c := Cluster{Services: services, Addr: map[client.ObjectKey]netip.Addr{}}
		problems := p.assign(&c, public, now)
		return c.Addr, problems
	}
	addr := func(m map[client.ObjectKey]netip.Addr, name string) string {
		return m[client.ObjectKey{Name: name}].String()
	}
	got, _ := assign(service("a", "10.90.96.5"), service("b", ""), service("copy", "10.90.96.5"))
	if addr(got, "a") != "10.90.96.5" || addr(got, "b") == "10.90.96.5" || addr(got, "copy") == "10.90.96.5" || addr(got, "b") == addr(got, "copy") {
		t.Errorf("addresses %v", got)
	}
	b := addr(got, "b")
	again, _ := assign(service("a", "10.90.96.5"), service("b", ""), service("copy", "10.90.96.5")) // its status is not read back yet
	if !maps.Equal(got, again) {
		t.Errorf("addresses %v became %v", got, again)
	}
	got, _ = assign(service("c", ""))
	if addr(got, "c") == b || addr(got, "c") == "10.90.96.5" {
		t.Errorf("%s was given again at once", addr(got, "c"))
	}
	var many []corev1.Service
	for _, name := range strings.Split("abcdefghijklmnop", "") {
		many = append(many, service(name, ""))
	}
	now = now.Add(time.Hour)
	got, problems := assign(many...)
	if len(got) != 11 || len(problems) != 5 || problems[0].Reason != "NoAddress" {
		t.Errorf("a /28, which has 11, gave %d addresses and %d problems", len(got), len(problems))
	}
}
