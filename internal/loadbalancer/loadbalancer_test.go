package loadbalancer

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/apimachinery/pkg/types"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gateway "sigs.k8s.io/gateway-api/apis/v1"

	discovery "k8s.io/api/discovery/v1"

	"github.com/berth-run/berth/api/v1alpha1"
	chart "github.com/berth-run/berth/charts/berth"
)

var update = flag.Bool("update", false, "write the golden file")

// read decodes the objects of a file.
func read(t *testing.T, file string) Cluster {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	scheme := runtime.NewScheme()
	if err := errors.Join(clientscheme.AddToScheme(scheme), gateway.Install(scheme)); err != nil {
		t.Fatal(err)
	}
	codecs, c := serializer.NewCodecFactory(scheme), Cluster{}
	for _, doc := range strings.Split(string(data), "\n---\n") {
		o, _, err := codecs.UniversalDeserializer().Decode([]byte(doc), nil, nil)
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
	case *gateway.Gateway:
		c.Gateways = append(c.Gateways, *o)
	case *gateway.HTTPRoute:
		c.HTTPRoutes = append(c.HTTPRoutes, *o)
	case *gateway.ReferenceGrant:
		c.Grants = append(c.Grants, *o)
	case *corev1.Namespace:
		c.Namespaces = append(c.Namespaces, *o)
	default:
		t.Fatalf("unexpected %T", o)
	}
}

var public = []v1alpha1.Subnet{{Spec: v1alpha1.SubnetSpec{CIDR: "10.90.96.0/28", Type: v1alpha1.SubnetPublic}}, {Spec: v1alpha1.SubnetSpec{CIDR: "10.90.0.0/19", Type: v1alpha1.SubnetPrivate}}}

// TestWants: which Services are Berth's, and what is wrong with one that would be.
func TestWants(t *testing.T) {
	const instance = "instance targets cannot work: a pod's own node has no node port. Set annotation service.beta.kubernetes.io/aws-load-balancer-nlb-target-type: ip"
	for name, c := range map[string]struct {
		class, kind, target string
		byDefault, want     bool
		why                 string
	}{
		"of our class":                        {class: ClassNLB, want: true},
		"of our class, instances":             {class: ClassNLB, target: "instance", why: instance},
		"of another class":                    {class: "metallb", byDefault: true},
		"as for AWS":                          {kind: "external", target: "ip", want: true},
		"as for AWS, instances":               {kind: "external", why: instance},
		"of no class":                         {},
		"of no class, by default":             {byDefault: true, want: true},
		"of no class, by default, instances":  {byDefault: true, target: "instance", why: instance},
		"AWS's own NLB":                       {kind: "nlb"},
		"AWS's own NLB, by default":           {kind: "nlb", byDefault: true, why: instance},
		"AWS's own NLB, by default, with IPs": {kind: "nlb", target: "ip", byDefault: true, want: true},
	} {
		t.Run(name, func(t *testing.T) {
			s := &corev1.Service{ObjectMeta: metav1.ObjectMeta{Annotations: map[string]string{annotationType: c.kind, annotationTargetType: c.target}}, Spec: corev1.ServiceSpec{Type: corev1.ServiceTypeLoadBalancer}}
			if c.class != "" {
				s.Spec.LoadBalancerClass = &c.class
			}
			if got, why := Wants(s, c.byDefault); got != c.want || why != c.why {
				t.Errorf("%t, %q; want %t, %q", got, why, c.want, c.why)
			}
			s.Spec.Type = corev1.ServiceTypeClusterIP
			if got, why := Wants(s, c.byDefault); got || why != "" {
				t.Errorf("of type ClusterIP: %t, %q", got, why)
			}
		})
	}
}

// TestBuild renders clusters with everything in them; HAProxy itself must accept the result.
func TestBuild(t *testing.T) {
	for _, name := range []string{"cluster", "gateways"} {
		t.Run(name, func(t *testing.T) { build(t, "testdata/"+name) })
	}
}

func build(t *testing.T, file string) {
	t.Helper()
	c := read(t, file+".yaml")
	if problems := newPool().assign(&c, public, time.Now()); len(problems) > 0 {
		t.Fatal(problems)
	}
	c.Pods = []netip.Prefix{netip.MustParsePrefix("10.90.0.0/17")}
	c.Accepts = func([]byte) error { return nil }
	built := Build(c)
	if len(built.Certs) != 0 {
		t.Errorf("certificates %v from Secrets that are none", built.Certs)
	}
	built.Config.Socket = "/run/berth/lb/haproxy.sock"
	got, err := built.Config.Render()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range built.Problems {
		got += "# " + p.Object.GetName() + ": " + p.Reason + ": " + p.Message + "\n"
	}
	got += said(c, built)
	golden := file + ".golden"
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil || string(want) != got {
		t.Errorf("the configuration is not that of %s (%v); if it should be: go test ./internal/loadbalancer -update\n%s", golden, err, got)
	}
	config := filepath.Join(t.TempDir(), "haproxy.cfg")
	if err := os.WriteFile(config, []byte(got), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := check(t.Context(), config); err != nil {
		t.Error(err)
	}
}

// said is, as comments, what Gateways and HTTPRoutes are told.
func said(c Cluster, built Built) string {
	var b strings.Builder
	tell := func(who string, conditions []metav1.Condition) {
		for _, c := range conditions {
			fmt.Fprintf(&b, "# %s: %s %s %s: %s\n", who, c.Type, c.Status, c.Reason, c.Message)
		}
	}
	for i := range c.Gateways {
		s := built.GatewayStatus[client.ObjectKeyFromObject(&c.Gateways[i])]
		tell(c.Gateways[i].Name, s.Conditions)
		for _, l := range s.Listeners {
			tell(fmt.Sprintf("%s/%s (%d routes)", c.Gateways[i].Name, l.Name, l.AttachedRoutes), l.Conditions)
		}
	}
	for i := range c.HTTPRoutes {
		for _, p := range built.RouteStatus[client.ObjectKeyFromObject(&c.HTTPRoutes[i])] {
			tell(c.HTTPRoutes[i].Name, p.Conditions)
		}
	}
	return b.String()
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
		{Route{Host: ".a.b", Path: "/"}, `{ var(txn.host) -m end '.a.b' }`},
		{Route{Path: "/", Method: "GET", Headers: []Pair{{"x-a", "it's"}}, Queries: []Pair{{"q", "1"}}, Part: 1, Of: 4},
			`{ method GET } { req.fhdr(x-a) -m str -- 'it'\''s' } { url_param(q),url_dec -m str -- '1' } { rand(4) lt 1 }`},
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
		c := Cluster{Services: services}
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

// TestCopiedTypes: the Gateway API's types in the chart are those of the module whose Go types are used.
func TestCopiedTypes(t *testing.T) {
	dir, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/gateway-api").Output()
	if err != nil {
		t.Fatal(err)
	}
	copies, err := fs.Glob(chart.Files, "crds/gateway.*.yaml")
	if err != nil || len(copies) == 0 {
		t.Fatalf("the chart has no types of the Gateway API: %v", err)
	}
	for _, name := range copies {
		got, err := chart.Files.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		want, err := os.ReadFile(filepath.Join(strings.TrimSpace(string(dir)), "config", "crd", "standard", filepath.Base(name)))
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("%s is not the module's (%v): make generate", name, err)
		}
	}
}
