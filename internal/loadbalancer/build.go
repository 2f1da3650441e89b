package loadbalancer

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	discovery "k8s.io/api/discovery/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
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
)

// Cluster is what the configuration follows from.
type Cluster struct {
	Services  []corev1.Service
	Slices    []discovery.EndpointSlice
	Ingresses []networking.Ingress
	Classes   []networking.IngressClass
	Secrets   []corev1.Secret
	// Addr is the address of a Service, and Web that of all Ingresses.
	Addr map[client.ObjectKey]netip.Addr
	Web  netip.Addr
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

// Wants tells whether the Service asks for one of Berth's load balancers; why not, if it names a kind that cannot be had.
func Wants(s *corev1.Service) (bool, string) {
	if s.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return false, ""
	}
	kind, target, class := s.Annotations[annotationType], s.Annotations[annotationTargetType], ptr.Deref(s.Spec.LoadBalancerClass, "")
	switch {
	case class == ClassNLB, class == "" && kind == "nlb-ip":
		target = cmp.Or(target, "ip")
	case class == ClassNLBAWS, class == "" && kind == "external":
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
func Build(c Cluster) (Config, []Cert, []Problem) {
	b := builder{Cluster: c, backends: map[string]Backend{}}
	b.listeners()
	b.web()
	b.config.Web.HTTPS = len(b.certs) > 0
	sortRoutes(b.config.Web.Routes)
	for _, backend := range b.backends {
		b.config.Web.Backends = append(b.config.Web.Backends, backend)
	}
	slices.SortFunc(b.config.Web.Backends, func(x, y Backend) int { return cmp.Compare(x.Name, y.Name) })
	slices.SortFunc(b.certs, func(x, y Cert) int { return cmp.Compare(x.Name, y.Name) })
	return b.config, slices.CompactFunc(b.certs, func(x, y Cert) bool { return x.Name == y.Name }), b.problems
}

type builder struct {
	Cluster
	config   Config
	certs    []Cert
	backends map[string]Backend
	problems []Problem
}

func (b *builder) problem(o client.Object, reason, format string, args ...any) {
	b.problems = append(b.problems, Problem{o, reason, fmt.Sprintf(format, args...)})
}

func older[T client.Object](x, y T) int {
	return cmp.Or(x.GetCreationTimestamp().Compare(y.GetCreationTimestamp().Time), cmp.Compare(x.GetNamespace(), y.GetNamespace()), cmp.Compare(x.GetName(), y.GetName()))
}

func (b *builder) listeners() {
	slices.SortFunc(b.Services, func(x, y corev1.Service) int { return older(&x, &y) })
	for i := range b.Services {
		s := &b.Services[i]
		wanted, why := Wants(s)
		if why != "" {
			b.problem(s, "UnsupportedLoadBalancer", "%s", why)
		}
		addr, known := b.Addr[client.ObjectKeyFromObject(s)]
		if !wanted || !known {
			continue
		}
		b.config.Held = append(b.config.Held, addr)
		if byKubeProxy(s) {
			continue
		}
		sources, err := sourceRanges(s)
		if err != nil {
			b.problem(s, "InvalidSourceRanges", "%v; it is not served until that is mended", err)
			continue
		}
		for _, p := range s.Spec.Ports {
			b.config.Listeners = append(b.config.Listeners, Listener{Name: fmt.Sprintf("nlb.%s_%s:%d", s.Namespace, s.Name, p.Port), Addr: addr, Port: p.Port,
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

func (b *builder) web() {
	slices.SortFunc(b.Ingresses, func(x, y networking.Ingress) int { return older(&x, &y) })
	for n := range b.Ingresses {
		i := &b.Ingresses[n]
		if !Ours(i, b.Classes) || !b.Web.IsValid() {
			continue
		}
		b.config.Web.Addr = b.Web
		b.tls(i)
		for _, rule := range i.Spec.Rules {
			if rule.HTTP == nil {
				continue
			}
			for _, p := range rule.HTTP.Paths {
				b.route(i, rule.Host, p)
			}
		}
		if i.Spec.DefaultBackend != nil {
			b.route(i, "", networking.HTTPIngressPath{Path: "/", PathType: ptr.To(networking.PathTypePrefix), Backend: *i.Spec.DefaultBackend})
		}
	}
}

// plain are the characters that may be in a path: those of RFC 3986 that mean nothing to HAProxy's quotes.
var plain = regexp.MustCompile(`^/[A-Za-z0-9/._~!&()+,;=:@%*?|\[\]^-]*$`)

func (b *builder) route(i *networking.Ingress, host string, p networking.HTTPIngressPath) {
	path := cmp.Or(p.Path, "/")
	if !plain.MatchString(path) {
		b.problem(i, "InvalidPath", "path %q of host %q has characters that a path cannot have: write them as %%xx", path, host)
		return
	}
	backend, err := b.backend(i, p.Backend)
	if err != nil {
		b.problem(i, "InvalidBackend", "host %q, path %s: %v; such requests are answered 503", host, path, err)
	}
	r := Route{Host: strings.ToLower(host), Path: path, Backend: backend, ToHTTPS: i.Annotations[annotationRedirect] != ""}
	switch kind := ptr.Deref(p.PathType, networking.PathTypeImplementationSpecific); {
	case kind == networking.PathTypeExact:
		r.Match = Exact
	case kind == networking.PathTypeImplementationSpecific && strings.ContainsAny(path, "*?"):
		r.Match = Pattern
	}
	b.config.Web.Routes = append(b.config.Web.Routes, r)
}

// backend is the name of the backend for an Ingress's; one that does not exist has no targets.
func (b *builder) backend(i *networking.Ingress, wanted networking.IngressBackend) (string, error) {
	if wanted.Service == nil {
		b.backends["nothing"] = Backend{Name: "nothing"}
		return "nothing", fmt.Errorf("only backends of kind Service are served")
	}
	name := fmt.Sprintf("%s_%s:%s", i.Namespace, wanted.Service.Name, cmp.Or(wanted.Service.Port.Name, fmt.Sprint(wanted.Service.Port.Number)))
	backend := Backend{Name: name}
	s := b.service(client.ObjectKey{Namespace: i.Namespace, Name: wanted.Service.Name})
	err := fmt.Errorf("there is no Service %s in namespace %s", wanted.Service.Name, i.Namespace)
	if s != nil {
		err = fmt.Errorf("Service %s has no such port", s.Name) //nolint:staticcheck // the kind's name
		for _, p := range s.Spec.Ports {
			if wanted.Service.Port.Name != "" && p.Name == wanted.Service.Port.Name || p.Port == wanted.Service.Port.Number {
				backend.Targets, err = b.targets(s, p), nil
				version := strings.ToUpper(i.Annotations[annotationVersion])
				backend.HTTP2 = ptr.Deref(p.AppProtocol, "") == protocolH2C || version == "GRPC" || version == "HTTP2"
			}
		}
	}
	b.backends[name] = backend
	return name, err
}

func (b *builder) service(key client.ObjectKey) *corev1.Service {
	for i := range b.Services {
		if client.ObjectKeyFromObject(&b.Services[i]) == key {
			return &b.Services[i]
		}
	}
	return nil
}

func (b *builder) tls(i *networking.Ingress) {
	for _, t := range i.Spec.TLS {
		if t.SecretName == "" {
			continue
		}
		var secret *corev1.Secret
		for n := range b.Secrets {
			if b.Secrets[n].Namespace == i.Namespace && b.Secrets[n].Name == t.SecretName {
				secret = &b.Secrets[n]
			}
		}
		if secret == nil {
			b.problem(i, "InvalidCertificate", "there is no Secret %s of type kubernetes.io/tls in namespace %s", t.SecretName, i.Namespace)
			continue
		}
		cert, key := secret.Data[corev1.TLSCertKey], secret.Data[corev1.TLSPrivateKeyKey]
		if _, err := tls.X509KeyPair(cert, key); err != nil {
			b.problem(i, "InvalidCertificate", "Secret %s: %v; HTTPS is served without it", t.SecretName, err)
			continue
		}
		pem := slices.Concat(cert, []byte("\n"), key)
		if err := b.Accepts(pem); err != nil {
			b.problem(i, "InvalidCertificate", "Secret %s: %v; HTTPS is served without it", t.SecretName, err)
			continue
		}
		b.certs = append(b.certs, Cert{Name: i.Namespace + "_" + t.SecretName, PEM: pem})
	}
}
