package loadbalancer

import (
	"cmp"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/yaml"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/kit/testkit"
)

// loopback is the host of load balancers whose public subnet is in 127.0.0.0/8: it has all addresses already.
type loopback struct{}

func (loopback) publish(context.Context, []netip.Addr, []netip.AddrPort) error { return nil }

// cluster is a real API server with a reconciler that feeds a real HAProxy.
type cluster struct {
	*testing.T
	client client.Client
	r      *reconciler
	events *record.FakeRecorder
}

func newCluster(t *testing.T) cluster {
	t.Helper()
	env, err := testkit.Start(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := env.Stop(); err != nil {
			t.Error(err)
		}
	})
	scheme := runtime.NewScheme()
	if err := errors.Join(clientscheme.AddToScheme(scheme), v1alpha1.AddToScheme(scheme), gateway.Install(scheme)); err != nil {
		t.Fatal(err)
	}
	c, err := client.New(env.Config, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	p, err := newProxy(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	run(t, p)
	events := record.NewFakeRecorder(100)
	return cluster{t, c, &reconciler{client: c, recorder: events, proxy: p, host: loopback{}, pool: newPool(), said: map[string]string{}}, events}
}

// reconcile once; what follows from that must be there after it.
func (c cluster) reconcile() {
	c.Helper()
	if _, err := c.r.Reconcile(c.Context(), reconcile.Request{}); err != nil {
		c.Fatal(err)
	}
}

// create makes the objects of a YAML text.
func (c cluster) create(texts string) {
	c.Helper()
	for _, text := range strings.Split(texts, "\n---\n") {
		var meta metav1.TypeMeta
		if err := yaml.Unmarshal([]byte(text), &meta); err != nil {
			c.Fatal(err)
		}
		o, err := c.client.Scheme().New(meta.GroupVersionKind())
		if err == nil {
			err = yaml.UnmarshalStrict([]byte(text), o)
		}
		if err == nil {
			err = c.client.Create(c.Context(), o.(client.Object))
		}
		if err != nil {
			c.Fatalf("%v in:\n%s", err, text)
		}
	}
}

func (c cluster) secret(namespace, name string, cert, key []byte) {
	c.Helper()
	o := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Type: corev1.SecretTypeTLS, Data: map[string][]byte{corev1.TLSCertKey: cert, corev1.TLSPrivateKeyKey: key}}
	if err := c.client.Create(c.Context(), o); err != nil {
		c.Fatal(err)
	}
}

// fetch reads an object by its name in namespace shops, or by namespace/name.
func fetch[T client.Object](c cluster, o T, name string) T {
	c.Helper()
	key := client.ObjectKey{Namespace: "shops", Name: name}
	if namespace, rest, ok := strings.Cut(name, "/"); ok {
		key = client.ObjectKey{Namespace: namespace, Name: rest}
	}
	if _, ok := any(o).(*gateway.GatewayClass); ok {
		key.Namespace = ""
	}
	if err := c.client.Get(c.Context(), key, o); err != nil {
		c.Fatal(err)
	}
	return o
}

// short are conditions in short: those that are true as they should be are left out.
func short(o client.Object, conditions []metav1.Condition) string {
	var out []string
	for _, c := range conditions {
		good := c.Status == metav1.ConditionTrue && c.Reason == c.Type
		if c.Type == string(gateway.ListenerConditionConflicted) {
			good = c.Status == metav1.ConditionFalse && c.Reason == string(gateway.ListenerReasonNoConflicts)
		}
		if c.ObservedGeneration != o.GetGeneration() {
			out = append(out, fmt.Sprintf("%s of generation %d, not %d", c.Type, c.ObservedGeneration, o.GetGeneration()))
		}
		if !good {
			out = append(out, fmt.Sprintf("%s=%s %s", c.Type, c.Status, c.Reason))
		}
	}
	return cmp.Or(strings.Join(out, ", "), "good")
}

// gatewayIs compares a Gateway's conditions, and its listeners' with the number of their routes.
func (c cluster) gatewayIs(name, want string, listeners ...string) *gateway.Gateway {
	c.Helper()
	g := fetch(c, &gateway.Gateway{}, name)
	if got := short(g, g.Status.Conditions); got != want {
		c.Errorf("Gateway %s: %s, want %s", name, got, want)
	}
	var got []string
	for _, l := range g.Status.Listeners {
		got = append(got, fmt.Sprintf("%s %d: %s", l.Name, l.AttachedRoutes, short(g, l.Conditions)))
	}
	if !slices.Equal(got, listeners) {
		c.Errorf("listeners of Gateway %s:\n%s\nwant:\n%s", name, strings.Join(got, "\n"), strings.Join(listeners, "\n"))
	}
	return g
}

// routeIs compares a route's conditions of Berth's, by parent.
func (c cluster) routeIs(name string, want ...string) {
	c.Helper()
	r := fetch(c, &gateway.HTTPRoute{}, name)
	var got []string
	for _, p := range r.Status.Parents {
		if p.ControllerName == GatewayController {
			got = append(got, short(r, p.Conditions))
		}
	}
	if !slices.Equal(got, want) {
		c.Errorf("HTTPRoute %s: %q, want %q", name, got, want)
	}
}

// TestGateways: what the API server is told of Gateways and HTTPRoutes, and what HAProxy then serves.
func TestGateways(t *testing.T) {
	c := newCluster(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	cert, keyPEM := selfSigned(t, key)
	plain, safe := freePort(t), freePort(t)
	c.create(`
apiVersion: v1
kind: Namespace
metadata: {name: shops}
---
apiVersion: v1
kind: Namespace
metadata: {name: stalls}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: others}
spec: {controllerName: example.com/other}
---
apiVersion: gateway.networking.k8s.io/v1
kind: GatewayClass
metadata: {name: with-parameters}
spec: {controllerName: berth.run/gateway, parametersRef: {group: "", kind: ConfigMap, name: parameters, namespace: shops}}
---
` + fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {namespace: shops, name: front}
spec:
  gatewayClassName: berth
  listeners:
  - {name: web, port: %d, protocol: HTTP}
  - {name: safe, port: %d, protocol: HTTPS, hostname: "*.example", tls: {certificateRefs: [{name: good}]}}
  - {name: missing, port: 1001, protocol: HTTPS, tls: {certificateRefs: [{name: missing}]}}
  - {name: garbled, port: 1002, protocol: HTTPS, tls: {certificateRefs: [{name: garbled}]}}
  - {name: foreign, port: 1003, protocol: HTTPS, tls: {certificateRefs: [{name: foreign, namespace: stalls}]}}
  - {name: again, port: %[2]d, protocol: HTTP}
`, plain, safe) + `
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {namespace: shops, name: others}
spec: {gatewayClassName: others, listeners: [{name: web, port: 80, protocol: HTTP}]}`)
	c.secret("shops", "good", cert, keyPEM)
	c.secret("stalls", "foreign", cert, keyPEM)
	c.secret("shops", "garbled", []byte("none"), []byte("none"))

	c.reconcile()
	c.gatewayIs("front", "Accepted=True ListenersNotValid, Programmed=False AddressNotAssigned", "web 0: Programmed=False Invalid", "safe 0: Programmed=False Invalid",
		"missing 0: ResolvedRefs=False InvalidCertificateRef, Programmed=False Invalid", "garbled 0: ResolvedRefs=False InvalidCertificateRef, Programmed=False Invalid",
		"foreign 0: ResolvedRefs=False RefNotPermitted, Programmed=False Invalid", "again 0: Conflicted=True ProtocolConflict, Accepted=False ProtocolConflict, Programmed=False Invalid")
	select {
	case said := <-c.events.Events:
		if !strings.Contains(said, "NoAddress no public subnet has a free address") {
			t.Error(said)
		}
	default:
		t.Error("no event says that there is no address")
	}
	for name, want := range map[string]string{"berth": "good", "with-parameters": "Accepted=False InvalidParameters", "others": "Accepted of generation 0, not 1, Accepted=Unknown Pending"} {
		class := fetch(c, &gateway.GatewayClass{}, name)
		if got := short(class, class.Status.Conditions); got != want {
			t.Errorf("GatewayClass %s: %s, want %s", name, got, want)
		}
		features := class.Status.SupportedFeatures
		if sorted := slices.IsSortedFunc(features, func(a, b gateway.SupportedFeature) int { return cmp.Compare(a.Name, b.Name) }); !sorted || (len(features) > 0) != (name != "others") {
			t.Errorf("GatewayClass %s has features %v", name, features)
		}
	}
	if s := fetch(c, &gateway.Gateway{}, "others").Status; len(s.Addresses) > 0 || len(s.Listeners) > 0 {
		t.Errorf("the Gateway of another class has status %v", s)
	}

	c.create(`
apiVersion: berth.run/v1alpha1
kind: Subnet
metadata: {name: public}
spec: {cidr: 127.0.96.0/28, zone: local-1a, type: public}
---
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {namespace: stalls, name: certificates}
spec: {from: [{group: gateway.networking.k8s.io, kind: Gateway, namespace: shops}], to: [{group: "", kind: Secret, name: foreign}]}
---
apiVersion: v1
kind: Service
metadata: {namespace: stalls, name: web}
spec: {ports: [{port: 80}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {namespace: shops, name: moved}
spec:
  parentRefs: [{name: front, sectionName: web}, {name: front, sectionName: safe}, {name: front, sectionName: nothing}, {name: others}]
  hostnames: [shop.example, shop.invalid]
  rules: [{filters: [{type: RequestRedirect, requestRedirect: {hostname: new.example, statusCode: 308}}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {namespace: shops, name: backends}
spec:
  parentRefs: [{name: front, sectionName: web}]
  rules: [{backendRefs: [{name: web, namespace: stalls, port: 80}]}]
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {namespace: shops, name: nowhere}
spec: {parentRefs: [{name: front, sectionName: web}], hostnames: [nowhere.example], rules: [{backendRefs: [{name: nowhere, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {namespace: shops, name: host}
spec: {parentRefs: [{name: front, sectionName: safe}], hostnames: [example.org], rules: [{backendRefs: [{name: nowhere, port: 80}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {namespace: shops, name: regular}
spec: {parentRefs: [{name: front}], rules: [{matches: [{path: {type: RegularExpression, value: "/a+"}}]}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {namespace: stalls, name: stranger}
spec: {parentRefs: [{name: front, namespace: shops}], rules: [{backendRefs: [{name: web, port: 80}]}]}`)
	theirs := fetch(c, &gateway.HTTPRoute{}, "moved")
	theirs.Status.Parents = []gateway.RouteParentStatus{{ParentRef: theirs.Spec.ParentRefs[3], ControllerName: "example.com/other",
		Conditions: []metav1.Condition{{Type: "Accepted", Status: metav1.ConditionTrue, Reason: "Accepted", LastTransitionTime: metav1.Now()}}}}
	if err := c.client.Status().Update(t.Context(), theirs); err != nil {
		t.Fatal(err)
	}
	c.reconcile()
	g := c.gatewayIs("front", "Accepted=True ListenersNotValid", "web 3: good", "safe 1: good",
		"missing 0: ResolvedRefs=False InvalidCertificateRef, Programmed=False Invalid", "garbled 0: ResolvedRefs=False InvalidCertificateRef, Programmed=False Invalid",
		"foreign 0: good", "again 0: Conflicted=True ProtocolConflict, Accepted=False ProtocolConflict, Programmed=False Invalid")
	if len(g.Status.Addresses) != 1 || !strings.HasPrefix(g.Status.Addresses[0].Value, "127.0.96.") {
		t.Fatalf("the Gateway's addresses are %v", g.Status.Addresses)
	}
	address := g.Status.Addresses[0].Value
	c.routeIs("moved", "good", "good", "Accepted=False NoMatchingParent")
	c.routeIs("backends", "ResolvedRefs=False RefNotPermitted")
	c.routeIs("nowhere", "ResolvedRefs=False BackendNotFound")
	c.routeIs("host", "Accepted=False NoMatchingListenerHostname, ResolvedRefs=False BackendNotFound")
	c.routeIs("regular", "Accepted=False UnsupportedValue")
	c.routeIs("stalls/stranger", "Accepted=False NotAllowedByListeners")

	before := c.versions()
	c.reconcile()
	if after := c.versions(); before != after {
		t.Errorf("a second reconcile writes: %s became %s", before, after)
	}

	for url, want := range map[string]string{
		fmt.Sprintf("http://%s:%d/a?b=c", address, plain): fmt.Sprintf("308 http://new.example:%d/a?b=c", plain),
		fmt.Sprintf("https://%s:%d/a", address, safe):     fmt.Sprintf("308 https://new.example:%d/a", safe),
	} {
		for host, want := range map[string]string{"shop.example": want, "nowhere.example": "500 ", "other.example": "404 "} {
			if host == "nowhere.example" && strings.HasPrefix(url, "https") {
				want = "404 " // its route is not at that listener
			} else if host == "other.example" && !strings.HasPrefix(url, "https") {
				want = "500 " // of route backends, which has no right to its backend
			}
			if got := answer(t, url, host); got != want {
				t.Errorf("%s of %s answers %q, want %q", url, host, got, want)
			}
		}
	}

	c.create(`
apiVersion: gateway.networking.k8s.io/v1
kind: ReferenceGrant
metadata: {namespace: stalls, name: services}
spec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shops}], to: [{group: "", kind: Service}]}`)
	if err := c.client.Delete(t.Context(), &gateway.ReferenceGrant{ObjectMeta: metav1.ObjectMeta{Namespace: "stalls", Name: "certificates"}}); err != nil {
		t.Fatal(err)
	}
	g.Spec.Listeners = g.Spec.Listeners[:5]
	g.Spec.Listeners[2].TLS = nil
	g.Spec.Listeners[3].TLS.CertificateRefs[0].Name = "good"
	g.Spec.TLS = &gateway.GatewayTLSConfig{Frontend: &gateway.FrontendTLSConfig{PerPort: []gateway.TLSPortConfig{{Port: 1002, TLS: gateway.TLSConfig{
		Validation: &gateway.FrontendTLSValidation{CACertificateRefs: []gateway.ObjectReference{{Kind: "ConfigMap", Name: "clients"}}}}}}}}
	if err := c.client.Update(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	c.reconcile()
	c.routeIs("backends", "good")
	g = c.gatewayIs("front", "Accepted=True ListenersNotValid", "web 3: good", "safe 1: good", "missing 0: ResolvedRefs=False InvalidCertificateRef, Programmed=False Invalid",
		"garbled 0: Accepted=False UnsupportedValue, Programmed=False Invalid", "foreign 0: ResolvedRefs=False RefNotPermitted, Programmed=False Invalid")
	if g.Status.Addresses[0].Value != address {
		t.Errorf("its address changed from %s to %v", address, g.Status.Addresses)
	}

	if err := c.client.Delete(t.Context(), g); err != nil {
		t.Fatal(err)
	}
	c.create(fmt.Sprintf(`
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {namespace: shops, name: next}
spec: {gatewayClassName: berth, listeners: [{name: web, port: %d, protocol: HTTP}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {namespace: shops, name: asks}
spec: {gatewayClassName: berth, addresses: [{value: 127.0.96.9}], listeners: [{name: web, port: 80, protocol: HTTP}]}`, plain))
	c.reconcile()
	if got := c.gatewayIs("next", "good", "web 0: good").Status.Addresses; got[0].Value == address {
		t.Errorf("address %s was given again at once", address)
	}
	c.gatewayIs("asks", "Accepted=False UnsupportedAddress, Programmed=False Invalid", "web 0: Programmed=False Invalid")
	c.routeIs("moved")
	if parents := fetch(c, &gateway.HTTPRoute{}, "moved").Status.Parents; len(parents) != 1 || parents[0].ControllerName != "example.com/other" {
		t.Errorf("what another controller says of the route became %v", parents)
	}
	if got := answer(t, fmt.Sprintf("http://%s:%d/", address, plain), "shop.example"); !strings.Contains(got, "refused") {
		t.Errorf("a Gateway that is gone answers %q", got)
	}
}

// versions of all objects that have a status of Berth's.
func (c cluster) versions() string {
	c.Helper()
	var classes gateway.GatewayClassList
	var gateways gateway.GatewayList
	var routes gateway.HTTPRouteList
	var out []string
	for _, list := range []client.ObjectList{&classes, &gateways, &routes} {
		if err := c.client.List(c.Context(), list); err != nil {
			c.Fatal(err)
		}
	}
	for _, o := range classes.Items {
		out = append(out, o.Name+" "+o.ResourceVersion)
	}
	for _, o := range gateways.Items {
		out = append(out, o.Name+" "+o.ResourceVersion)
	}
	for _, o := range routes.Items {
		out = append(out, o.Name+" "+o.ResourceVersion)
	}
	return strings.Join(out, ", ")
}

// answer is the status that a host has at the URL, and where it leads, over a new connection.
func answer(t *testing.T, url, host string) string {
	t.Helper()
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: host}},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Host = host
	resp, err := client.Do(req)
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	return fmt.Sprintf("%d %s", resp.StatusCode, resp.Header.Get("Location"))
}
