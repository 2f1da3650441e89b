package loadbalancer

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
)

// What users write. The annotations are those of the AWS Load Balancer Controller.
const (
	// ClassNLB is the loadBalancerClass of Services that Berth serves; ClassNLBAWS is AWS's.
	ClassNLB    = "berth.run/nlb"
	ClassNLBAWS = "service.k8s.aws/nlb"
	// IngressController is the spec.controller of the IngressClasses berth and alb; those that charts make for AWS's
	// controller are served, too.
	IngressController    = "berth.run/ingress"
	ingressControllerAWS = "ingress.k8s.aws/alb"

	annotationType       = "service.beta.kubernetes.io/aws-load-balancer-type"
	annotationTargetType = "service.beta.kubernetes.io/aws-load-balancer-nlb-target-type"
	annotationProxy      = "service.beta.kubernetes.io/aws-load-balancer-proxy-protocol"
	annotationRedirect   = "alb.ingress.kubernetes.io/ssl-redirect"
	annotationVersion    = "alb.ingress.kubernetes.io/backend-protocol-version"
	annotationClass      = "kubernetes.io/ingress.class"
	protocolH2C          = "kubernetes.io/h2c"

	toHTTPS = "to-https"
)

// Cluster is what the configuration follows from.
type Cluster struct {
	// Default: Berth serves what names no class.
	Default   bool
	Services  []corev1.Service
	Slices    []discovery.EndpointSlice
	Ingresses []networking.Ingress
	Classes   []networking.IngressClass
	Secrets   []corev1.Secret
	// Gateways are those of Berth's classes only; the other lists are whole.
	GatewayClasses []gateway.GatewayClass
	Gateways       []gateway.Gateway
	HTTPRoutes     []gateway.HTTPRoute
	Grants         []gateway.ReferenceGrant
	Namespaces     []corev1.Namespace
	// Addr is the address of a Service, GatewayAddr that of a Gateway, and Web that of all Ingresses.
	Addr, GatewayAddr map[client.ObjectKey]netip.Addr
	Web               netip.Addr
	// Pods are the ranges of private subnets: nothing else is a target. Who may write EndpointSlices could otherwise have the
	// host connect to itself. Public are those of load balancers.
	Pods, Public []netip.Prefix
	// Accepts judges a certificate and its key (PEM), beyond their being a pair.
	Accepts func(pem []byte) error
}

func within(addr netip.Addr, ranges []netip.Prefix) bool {
	return slices.ContainsFunc(ranges, func(p netip.Prefix) bool { return p.Contains(addr) })
}

// public tells whether the text is an address of a public subnet.
func (c Cluster) public(text string) bool {
	addr, err := netip.ParseAddr(text)
	return err == nil && within(addr, c.Public)
}

// Problem is what is wrong with an object; the rest keeps being served.
type Problem struct {
	Object  client.Object
	Reason  string
	Message string
}

// Cert is a certificate with its key (PEM).
type Cert struct {
	Name string
	PEM  []byte
}

// Wants tells whether the Service asks for one of Berth's load balancers; why not, if it names a kind that cannot be had. One that names no kind
// asks for the cluster's own, which byDefault says is Berth's.
func Wants(s *corev1.Service, byDefault bool) (bool, string) {
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return false, ""
	}
	kind, target, class := s.Annotations[annotationType], s.Annotations[annotationTargetType], ptr.Deref(s.Spec.LoadBalancerClass, "")
	switch {
	case class == ClassNLB, class == "" && kind == "nlb-ip", class == "" && kind == "" && byDefault:
		target = cmp.Or(target, "ip")
	case class == ClassNLBAWS, class == "" && (kind == "external" || byDefault):
	default:
		return false, ""
	}
	if target != "ip" {
		return false, fmt.Sprintf("instance targets cannot work: a pod's own node has no node port. Set annotation %s: ip", annotationTargetType)
	}
	switch {
	case !byKubeProxy(s):
	case s.Annotations[annotationProxy] == "*":
		return false, "the PROXY protocol is for TCP: put its TCP ports into a Service of their own, or remove annotation " + annotationProxy
	case len(s.Spec.LoadBalancerSourceRanges) == 0 && s.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey] != "":
		return false, "it has ports that are not TCP, for which source ranges are taken from spec.loadBalancerSourceRanges, not from annotation " +
			corev1.AnnotationLoadBalancerSourceRangesKey
	}
	return true, ""
}

// byKubeProxy says that HAProxy, which knows TCP only, cannot serve the Service: its address is led to its pods by kube-proxy,
// for all of its ports, since a load balancer's address is kube-proxy's as a whole or not at all (status ipMode).
func byKubeProxy(s *corev1.Service) bool {
	return slices.ContainsFunc(s.Spec.Ports, func(p corev1.ServicePort) bool { return p.Protocol != corev1.ProtocolTCP && p.Protocol != "" })
}

// Build makes the configuration, and the certificates that it names.
func Build(c Cluster) Built {
	b := builder{Cluster: c, backends: map[string]Backend{}, certs: map[string]Cert{}}
	b.listeners()
	b.ingresses()
	b.gateways()
	for _, name := range slices.Sorted(maps.Keys(b.backends)) {
		b.Config.Backends = append(b.Config.Backends, b.backends[name])
	}
	for _, name := range slices.Sorted(maps.Keys(b.certs)) {
		b.Certs = append(b.Certs, b.certs[name])
	}
	return b.Built
}

// Built is what follows from a cluster.
type Built struct {
	Config   Config
	Certs    []Cert
	Problems []Problem
	// GatewayStatus and RouteStatus are what Berth says of the Gateways and HTTPRoutes, without times.
	GatewayStatus map[client.ObjectKey]gateway.GatewayStatus
	RouteStatus   map[client.ObjectKey][]gateway.RouteParentStatus
}

type builder struct {
	Cluster
	Built
	backends map[string]Backend
	certs    map[string]Cert
}

func (b *builder) problem(o client.Object, reason, format string, args ...any) {
	b.Problems = append(b.Problems, Problem{o, reason, fmt.Sprintf(format, args...)})
}

func older[T client.Object](x, y T) int {
	return cmp.Or(x.GetCreationTimestamp().Compare(y.GetCreationTimestamp().Time), cmp.Compare(x.GetNamespace(), y.GetNamespace()), cmp.Compare(x.GetName(), y.GetName()))
}

func (b *builder) listeners() {
	slices.SortFunc(b.Services, func(x, y corev1.Service) int { return older(&x, &y) })
	for i := range b.Services {
		s := &b.Services[i]
		wanted, why := Wants(s, b.Default)
		if why != "" {
			b.problem(s, "UnsupportedLoadBalancer", "%s", why)
		}
		addr, known := b.Addr[client.ObjectKeyFromObject(s)]
		if !wanted || !known {
			continue
		}
		b.Config.Held = append(b.Config.Held, addr)
		if byKubeProxy(s) {
			continue
		}
		sources, err := sourceRanges(s)
		if err != nil {
			b.problem(s, "InvalidSourceRanges", "%v; it is not served until that is mended", err)
			continue
		}
		for _, p := range s.Spec.Ports {
			b.Config.Listeners = append(b.Config.Listeners, Listener{Name: fmt.Sprintf("nlb.%s_%s:%d", s.Namespace, s.Name, p.Port), Addr: addr, Port: p.Port,
				Sources: sources, ProxyProtocol: s.Annotations[annotationProxy] == "*", Targets: b.targets(s, p)})
		}
	}
}

// sourceRanges are the Service's field or, as upstream has it, else its annotation.
func sourceRanges(s *corev1.Service) ([]netip.Prefix, error) {
	texts, where := s.Spec.LoadBalancerSourceRanges, "spec.loadBalancerSourceRanges"
	if annotated := s.Annotations[corev1.AnnotationLoadBalancerSourceRangesKey]; len(texts) == 0 && annotated != "" {
		texts, where = strings.Split(annotated, ","), "annotation "+corev1.AnnotationLoadBalancerSourceRangesKey
	}
	var out []netip.Prefix
	for _, text := range texts {
		p, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return nil, fmt.Errorf("%s: %w", where, err)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}

// targets are the ready pods behind a Service's port, in order of address.
func (b *builder) targets(s *corev1.Service, port corev1.ServicePort) []Target {
	var out []Target
	for _, slice := range b.Slices {
		if slice.Namespace != s.Namespace || slice.Labels[discovery.LabelServiceName] != s.Name || slice.AddressType != discovery.AddressTypeIPv4 {
			continue
		}
		for _, p := range slice.Ports {
			if ptr.Deref(p.Name, "") != port.Name || p.Port == nil {
				continue
			}
			for _, e := range slice.Endpoints {
				if !ptr.Deref(e.Conditions.Ready, true) {
					continue
				}
				for _, text := range e.Addresses {
					if addr, err := netip.ParseAddr(text); err == nil && within(addr, b.Pods) {
						out = append(out, Target{addr, *p.Port})
					}
				}
			}
		}
	}
	slices.SortFunc(out, func(x, y Target) int { return cmp.Or(x.Addr.Compare(y.Addr), cmp.Compare(x.Port, y.Port)) })
	return slices.Compact(out)
}

// Ours tells whether the Ingress is of one of Berth's classes.
func Ours(i *networking.Ingress, classes []networking.IngressClass) bool {
	name := ptr.Deref(i.Spec.IngressClassName, i.Annotations[annotationClass])
	for _, c := range classes {
		byDefault := name == "" && c.Annotations[networking.AnnotationIsDefaultIngressClass] == "true"
		if (c.Spec.Controller == IngressController || c.Spec.Controller == ingressControllerAWS) && (c.Name == name || byDefault) {
			return true
		}
	}
	return false
}

// ingresses are served at one address, by HTTP and, if one of them has a certificate, by HTTPS.
func (b *builder) ingresses() {
	slices.SortFunc(b.Ingresses, func(x, y networking.Ingress) int { return older(&x, &y) })
	plain, safe := Frontend{Name: "http", Addr: b.Web, Port: 80}, Frontend{Name: "https", Addr: b.Web, Port: 443}
	if !b.Web.IsValid() {
		return
	}
	b.Config.Held = append(b.Config.Held, b.Web)
	b.backends[toHTTPS] = Backend{Name: toHTTPS, Rules: []string{"http-request redirect scheme https code 301"}}
	for n := range b.Ingresses {
		i := &b.Ingresses[n]
		if !Ours(i, b.Classes) {
			continue
		}
		safe.Certs = append(safe.Certs, b.tls(i)...)
		for _, r := range b.routes(i) {
			safe.Routes = append(safe.Routes, r)
			if i.Annotations[annotationRedirect] != "" { // also while there is no certificate to serve HTTPS with
				r.Backend = toHTTPS
			}
			plain.Routes = append(plain.Routes, r)
		}
	}
	b.frontend(plain)
	if slices.Sort(safe.Certs); len(safe.Certs) > 0 {
		safe.Certs = slices.Compact(safe.Certs)
		b.frontend(safe)
	}
}

func (b *builder) frontend(f Frontend) {
	sortRoutes(f.Routes)
	b.Config.Frontends = append(b.Config.Frontends, f)
}

func (b *builder) routes(i *networking.Ingress) []Route {
	var out []Route
	for _, rule := range i.Spec.Rules {
		if rule.HTTP == nil {
			continue
		}
		for _, p := range rule.HTTP.Paths {
			out = append(out, b.route(i, rule.Host, p)...)
		}
	}
	if i.Spec.DefaultBackend != nil {
		out = append(out, b.route(i, "", networking.HTTPIngressPath{Path: "/", PathType: ptr.To(networking.PathTypePrefix), Backend: *i.Spec.DefaultBackend})...)
	}
	return out
}

// plain are the characters that may be in a path: those of RFC 3986 that mean nothing to HAProxy's quotes.
var plain = regexp.MustCompile(`^/[A-Za-z0-9/._~!&()+,;=:@%*?|\[\]^-]*$`)

// route is one or, where the path cannot be had, none.
func (b *builder) route(i *networking.Ingress, host string, p networking.HTTPIngressPath) []Route {
	path := cmp.Or(p.Path, "/")
	if !plain.MatchString(path) {
		b.problem(i, "InvalidPath", "path %q of host %q has characters that a path cannot have: write them as %%xx", path, host)
		return nil
	}
	backend, err := b.ingressBackend(i, p.Backend)
	if err != nil {
		b.problem(i, "InvalidBackend", "host %q, path %s: %v; such requests are answered 503", host, path, err)
	}
	b.backends[backend.Name] = backend
	r := Route{Host: strings.ToLower(host), Path: path, Backend: backend.Name}
	switch kind := ptr.Deref(p.PathType, networking.PathTypeImplementationSpecific); {
	case kind == networking.PathTypeExact:
		r.Match = Exact
	case kind == networking.PathTypeImplementationSpecific && strings.ContainsAny(path, "*?"):
		r.Match = Pattern
	}
	return []Route{r}
}

// ingressBackend is that of an Ingress; one that does not exist has no targets.
func (b *builder) ingressBackend(i *networking.Ingress, wanted networking.IngressBackend) (Backend, error) {
	if wanted.Service == nil {
		return Backend{Name: "nothing"}, errors.New("only backends of kind Service are served")
	}
	port := wanted.Service.Port
	backend, err := b.backend(client.ObjectKey{Namespace: i.Namespace, Name: wanted.Service.Name}, port.Name, port.Number)
	version := strings.ToUpper(i.Annotations[annotationVersion])
	backend.HTTP2 = backend.HTTP2 || err == nil && (version == "GRPC" || version == "HTTP2")
	return backend, err
}

// errNoService says that there is no such Service, or that it has no such port.
var errNoService = errors.New("there is no Service")

// backend is a Service's port, by name or number.
func (b *builder) backend(key client.ObjectKey, portName string, portNumber int32) (Backend, error) {
	backend := Backend{Name: fmt.Sprintf("%s_%s:%s", key.Namespace, key.Name, cmp.Or(portName, fmt.Sprint(portNumber)))}
	s := b.service(key)
	if s == nil {
		return backend, fmt.Errorf("%w %s in namespace %s", errNoService, key.Name, key.Namespace)
	}
	for _, p := range s.Spec.Ports {
		if portName != "" && p.Name == portName || p.Port == portNumber {
			backend.Targets, backend.HTTP2 = b.targets(s, p), ptr.Deref(p.AppProtocol, "") == protocolH2C
			return backend, nil
		}
	}
	return backend, fmt.Errorf("%w %s in namespace %s that has such a port", errNoService, key.Name, key.Namespace)
}

func (b *builder) service(key client.ObjectKey) *corev1.Service {
	for i := range b.Services {
		if client.ObjectKeyFromObject(&b.Services[i]) == key {
			return &b.Services[i]
		}
	}
	return nil
}

// tls are the names of an Ingress's certificates.
func (b *builder) tls(i *networking.Ingress) []string {
	var out []string
	for _, t := range i.Spec.TLS {
		if t.SecretName == "" {
			continue
		}
		name, err := b.certificate(client.ObjectKey{Namespace: i.Namespace, Name: t.SecretName})
		if err != nil {
			b.problem(i, "InvalidCertificate", "%v; HTTPS is served without it", err)
			continue
		}
		out = append(out, name)
	}
	return out
}

// certificate takes that of a Secret in and returns its name.
func (b *builder) certificate(key client.ObjectKey) (string, error) {
	var secret *corev1.Secret
	for n := range b.Secrets {
		if client.ObjectKeyFromObject(&b.Secrets[n]) == key {
			secret = &b.Secrets[n]
		}
	}
	if secret == nil {
		return "", fmt.Errorf("there is no Secret %s of type kubernetes.io/tls in namespace %s", key.Name, key.Namespace)
	}
	cert, secretKey := secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey]
	if _, err := tls.X509KeyPair(cert, secretKey); err != nil {
		return "", fmt.Errorf("Secret %s: %w", key.Name, err) //nolint:staticcheck // the kind's name
	}
	pem := slices.Concat(cert, []byte("\n"), secretKey)
	if err := b.Accepts(pem); err != nil {
		return "", fmt.Errorf("Secret %s: %w", key.Name, err) //nolint:staticcheck // the kind's name
	}
	name := key.Namespace + "_" + key.Name
	b.certs[name] = Cert{Name: name, PEM: pem}
	return name, nil
}
