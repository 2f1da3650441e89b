package loadbalancer

import (
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
)

// GatewayController is the controllerName of Berth's GatewayClass.
const GatewayController gateway.GatewayController = "berth.run/gateway"

const (
	kindGateway   gateway.Kind = "Gateway"
	kindHTTPRoute gateway.Kind = "HTTPRoute"
	kindSecret    gateway.Kind = "Secret"
	kindService   gateway.Kind = "Service"
)

// listener is one of a Gateway's, and what came of it.
type listener struct {
	gateway.Listener
	namespace string
	frontend  *Frontend // nil: it is not served
	status    gateway.ListenerStatus
}

// gateways are each served at an address of their own; its listeners of one port are one frontend.
func (b *builder) gateways() {
	b.GatewayStatus, b.RouteStatus = map[client.ObjectKey]gateway.GatewayStatus{}, map[client.ObjectKey][]gateway.RouteParentStatus{}
	slices.SortFunc(b.Gateways, func(x, y gateway.Gateway) int { return older(&x, &y) })
	slices.SortFunc(b.HTTPRoutes, func(x, y gateway.HTTPRoute) int { return older(&x, &y) })
	listeners, frontends := map[client.ObjectKey][]*listener{}, map[client.ObjectKey][]*Frontend{}
	for i := range b.Gateways {
		g := &b.Gateways[i]
		key := client.ObjectKeyFromObject(g)
		listeners[key], frontends[key] = b.listen(g)
	}
	for i := range b.HTTPRoutes {
		b.httpRoute(&b.HTTPRoutes[i], listeners)
	}
	for i := range b.Gateways {
		g := &b.Gateways[i]
		key := client.ObjectKeyFromObject(g)
		for _, f := range frontends[key] {
			b.frontend(*f)
		}
		b.GatewayStatus[key] = b.gatewayStatus(g, listeners[key])
	}
}

// condition is a condition of an object; no reason: the usual one of its type, and it is true.
func condition(o client.Object, kind, reason, message string) metav1.Condition {
	c := metav1.Condition{Type: kind, Status: metav1.ConditionFalse, Reason: reason, Message: message, ObservedGeneration: o.GetGeneration()}
	if reason == "" {
		c.Status, c.Reason = metav1.ConditionTrue, kind
	}
	return c
}

// listen makes the frontends of a Gateway that has an address.
func (b *builder) listen(g *gateway.Gateway) ([]*listener, []*Frontend) {
	addr := b.GatewayAddr[client.ObjectKeyFromObject(g)]
	if addr.IsValid() {
		b.Config.Held = append(b.Config.Held, addr)
	}
	var out []*listener
	var frontends []*Frontend
	for _, spec := range g.Spec.Listeners {
		l := &listener{Listener: spec, namespace: g.Namespace, status: gateway.ListenerStatus{Name: spec.Name, SupportedKinds: []gateway.RouteGroupKind{}}}
		certs, accepted, resolved := b.judge(g, l, out)
		out = append(out, l)
		l.status.Conditions = append(l.status.Conditions, accepted, resolved)
		programmed := condition(g, string(gateway.ListenerConditionProgrammed), "", "")
		served := accepted.Status == metav1.ConditionTrue && (l.Protocol == gateway.HTTPProtocolType || len(certs) > 0)
		if !served {
			programmed = condition(g, programmed.Type, string(gateway.ListenerReasonInvalid), "it is not served; another condition says why")
		}
		l.status.Conditions = append(l.status.Conditions, programmed)
		if !served {
			continue
		}
		at := slices.IndexFunc(frontends, func(f *Frontend) bool { return f.Port == l.Port })
		if at < 0 {
			at = len(frontends)
			frontends = append(frontends, &Frontend{Name: fmt.Sprintf("gateway.%s_%s:%d", g.Namespace, g.Name, l.Port), Addr: addr, Port: l.Port})
		}
		l.frontend = frontends[at]
		for _, c := range certs {
			if !slices.Contains(l.frontend.Certs, c) {
				l.frontend.Certs = append(l.frontend.Certs, c)
			}
		}
	}
	if !addr.IsValid() || len(g.Spec.Addresses) > 0 {
		return out, nil
	}
	return out, frontends
}

// judge says what is wrong with a listener, given those before it, and what certificates it has.
func (b *builder) judge(g *gateway.Gateway, l *listener, before []*listener) (certs []string, accepted, resolved metav1.Condition) {
	accepted = condition(g, string(gateway.ListenerConditionAccepted), "", "")
	resolved = condition(g, string(gateway.ListenerConditionResolvedRefs), "", "")
	refuse := func(c *metav1.Condition, reason gateway.ListenerConditionReason, format string, args ...any) {
		*c = condition(g, c.Type, string(reason), fmt.Sprintf(format, args...))
	}
	conflicted := metav1.Condition{Type: string(gateway.ListenerConditionConflicted), Status: metav1.ConditionFalse, Reason: string(gateway.ListenerReasonNoConflicts), ObservedGeneration: g.Generation}
	for _, other := range before {
		reason := gateway.ListenerReasonHostnameConflict
		if other.Protocol != l.Protocol {
			reason = gateway.ListenerReasonProtocolConflict
		}
		if other.Port == l.Port && (reason == gateway.ListenerReasonProtocolConflict || ptr.Deref(other.Hostname, "") == ptr.Deref(l.Hostname, "")) {
			conflicted.Status, conflicted.Reason = metav1.ConditionTrue, string(reason)
			conflicted.Message = fmt.Sprintf("listener %s has port %d already", other.Name, l.Port)
			refuse(&accepted, reason, "%s", conflicted.Message)
		}
	}
	l.status.Conditions = append(l.status.Conditions, conflicted)
	mode := gateway.TLSModeTerminate
	if l.TLS != nil {
		mode = ptr.Deref(l.TLS.Mode, mode)
	}
	switch {
	case l.Protocol != gateway.HTTPProtocolType && l.Protocol != gateway.HTTPSProtocolType:
		refuse(&accepted, gateway.ListenerReasonUnsupportedProtocol, "protocol %s is not served, only HTTP and HTTPS; a Service of type LoadBalancer passes TCP on", l.Protocol)
	case mode != gateway.TLSModeTerminate:
		refuse(&accepted, gateway.ListenerReasonUnsupportedValue, "TLS mode %s is not served; a Service of type LoadBalancer passes TLS on", mode)
	}
	l.supports(g, &resolved)
	if l.Protocol != gateway.HTTPSProtocolType || l.TLS == nil {
		return nil, accepted, resolved
	}
	for _, ref := range l.TLS.CertificateRefs {
		key := client.ObjectKey{Namespace: string(ptr.Deref(ref.Namespace, gateway.Namespace(g.Namespace))), Name: string(ref.Name)}
		switch name, err := b.certificate(key); {
		case ptr.Deref(ref.Group, "") != "" || ptr.Deref(ref.Kind, kindSecret) != kindSecret:
			refuse(&resolved, gateway.ListenerReasonInvalidCertificateRef, "certificates are taken from Secrets only")
		case !b.granted(kindGateway, g.Namespace, kindSecret, key):
			refuse(&resolved, gateway.ListenerReasonRefNotPermitted, "namespace %s has no ReferenceGrant that lets Gateways of %s use Secret %s", key.Namespace, g.Namespace, key.Name)
		case err != nil:
			refuse(&resolved, gateway.ListenerReasonInvalidCertificateRef, "%v", err)
		default:
			certs = append(certs, name)
		}
	}
	return certs, accepted, resolved
}

// supports notes which of the kinds of routes that the listener asks for are served.
func (l *listener) supports(g *gateway.Gateway, resolved *metav1.Condition) {
	own := gateway.RouteGroupKind{Group: ptr.To[gateway.Group](gateway.GroupName), Kind: kindHTTPRoute}
	if l.AllowedRoutes == nil || len(l.AllowedRoutes.Kinds) == 0 {
		l.status.SupportedKinds = append(l.status.SupportedKinds, own)
		return
	}
	for _, k := range l.AllowedRoutes.Kinds {
		if k.Kind == kindHTTPRoute && ptr.Deref(k.Group, gateway.GroupName) == gateway.GroupName {
			l.status.SupportedKinds = []gateway.RouteGroupKind{own}
			continue
		}
		*resolved = condition(g, resolved.Type, string(gateway.ListenerReasonInvalidRouteKinds), fmt.Sprintf("routes of kind %s are not served, only HTTPRoutes", k.Kind))
	}
}

// allows tells whether the listener takes routes of a namespace.
func (b *builder) allows(l *listener, namespace string) bool {
	if len(l.status.SupportedKinds) == 0 {
		return false
	}
	from, selector := gateway.NamespacesFromSame, (*metav1.LabelSelector)(nil)
	if a := l.AllowedRoutes; a != nil && a.Namespaces != nil {
		from, selector = ptr.Deref(a.Namespaces.From, from), a.Namespaces.Selector
	}
	switch from {
	case gateway.NamespacesFromAll:
		return true
	case gateway.NamespacesFromSame:
		return namespace == l.namespace
	case gateway.NamespacesFromSelector:
		s, err := metav1.LabelSelectorAsSelector(selector)
		return err == nil && slices.ContainsFunc(b.Namespaces, func(n corev1.Namespace) bool { return n.Name == namespace && s.Matches(labels.Set(n.Labels)) })
	}
	return false
}

// granted tells whether an object of one namespace may name one of another.
func (b *builder) granted(kind gateway.Kind, namespace string, wanted gateway.Kind, key client.ObjectKey) bool {
	return namespace == key.Namespace || slices.ContainsFunc(b.Grants, func(g gateway.ReferenceGrant) bool {
		return g.Namespace == key.Namespace &&
			slices.ContainsFunc(g.Spec.From, func(f gateway.ReferenceGrantFrom) bool {
				return f.Group == gateway.GroupName && f.Kind == kind && string(f.Namespace) == namespace
			}) &&
			slices.ContainsFunc(g.Spec.To, func(t gateway.ReferenceGrantTo) bool {
				return t.Group == "" && t.Kind == wanted && (t.Name == nil || string(*t.Name) == key.Name)
			})
	})
}

func (b *builder) gatewayStatus(g *gateway.Gateway, listeners []*listener) gateway.GatewayStatus {
	accepted := condition(g, string(gateway.GatewayConditionAccepted), "", "")
	programmed := condition(g, string(gateway.GatewayConditionProgrammed), "", "")
	var s gateway.GatewayStatus
	served := false
	for _, l := range listeners {
		s.Listeners = append(s.Listeners, l.status)
		if l.frontend == nil {
			accepted.Reason, accepted.Message = string(gateway.GatewayReasonListenersNotValid), "not all listeners are served; their conditions say why"
		} else {
			served = true
		}
	}
	switch addr := b.GatewayAddr[client.ObjectKeyFromObject(g)]; {
	case len(g.Spec.Addresses) > 0:
		accepted = condition(g, accepted.Type, string(gateway.GatewayReasonUnsupportedAddress), "an address is given out of a public Subnet and cannot be asked for: remove spec.addresses")
		programmed = condition(g, programmed.Type, string(gateway.GatewayReasonInvalid), "it is not accepted")
	case !served:
		accepted.Status = metav1.ConditionFalse
		programmed = condition(g, programmed.Type, string(gateway.GatewayReasonInvalid), "none of its listeners is served")
	case !addr.IsValid():
		programmed = condition(g, programmed.Type, string(gateway.GatewayReasonAddressNotAssigned), exhausted)
	default:
		s.Addresses = []gateway.GatewayStatusAddress{{Type: ptr.To(gateway.IPAddressType), Value: addr.String()}}
	}
	s.Conditions = []metav1.Condition{accepted, programmed}
	return s
}

// httpRoute attaches a route to the listeners that it names and that take it.
func (b *builder) httpRoute(r *gateway.HTTPRoute, listeners map[client.ObjectKey][]*listener) {
	var compiled []Route
	var resolved metav1.Condition
	unsupported := ""
	for n, ref := range r.Spec.ParentRefs {
		key := client.ObjectKey{Namespace: string(ptr.Deref(ref.Namespace, gateway.Namespace(r.Namespace))), Name: string(ref.Name)}
		of, ours := listeners[key]
		if !ours || ptr.Deref(ref.Group, gateway.GroupName) != gateway.GroupName || ptr.Deref(ref.Kind, kindGateway) != kindGateway {
			continue
		}
		if resolved.Type == "" {
			compiled, resolved, unsupported = b.rules(r)
		}
		accepted := condition(r, string(gateway.RouteConditionAccepted), "", "")
		if unsupported != "" {
			accepted = condition(r, accepted.Type, string(gateway.RouteReasonUnsupportedValue), unsupported)
		} else if reason, why := b.attach(r, &r.Spec.ParentRefs[n], of, compiled); reason != "" {
			accepted = condition(r, accepted.Type, string(reason), why)
		}
		b.RouteStatus[client.ObjectKeyFromObject(r)] = append(b.RouteStatus[client.ObjectKeyFromObject(r)],
			gateway.RouteParentStatus{ParentRef: ref, ControllerName: GatewayController, Conditions: []metav1.Condition{accepted, resolved}})
	}
}

// attach puts the routes, whose hosts are still open, to the listeners that a parentRef means; if to none, it says why.
func (b *builder) attach(r *gateway.HTTPRoute, ref *gateway.ParentReference, of []*listener, compiled []Route) (gateway.RouteConditionReason, string) {
	reason, why := gateway.RouteReasonNoMatchingParent, "the Gateway has no listener of this name and port"
	attached := false
	for _, l := range of {
		if (ref.SectionName != nil && *ref.SectionName != l.Name) || (ref.Port != nil && *ref.Port != l.Port) {
			continue
		}
		if !b.allows(l, r.Namespace) {
			if reason == gateway.RouteReasonNoMatchingParent {
				reason, why = gateway.RouteReasonNotAllowedByListeners, "no listener takes HTTPRoutes of namespace "+r.Namespace+" (allowedRoutes)"
			}
			continue
		}
		hosts := intersect(string(ptr.Deref(l.Hostname, "")), r.Spec.Hostnames)
		if len(hosts) == 0 {
			reason, why = gateway.RouteReasonNoMatchingListenerHostname, "no listener has one of the route's hostnames"
			continue
		}
		attached = true
		l.status.AttachedRoutes++
		if l.frontend == nil {
			continue
		}
		for _, host := range hosts {
			for _, c := range compiled {
				c.Host = host
				l.frontend.Routes = append(l.frontend.Routes, c)
			}
		}
	}
	if attached {
		return "", ""
	}
	return reason, why
}

// intersect are the hosts, as routes have them, that both a listener ("": all) and one of the hostnames (none: all) mean.
func intersect(listener string, hostnames []gateway.Hostname) []string {
	wild := func(host string) string { return strings.ToLower(strings.TrimPrefix(host, "*")) }
	listener = wild(listener)
	if len(hostnames) == 0 {
		return []string{listener}
	}
	within := func(host, in string) bool {
		return in == "" || host == in || strings.HasPrefix(in, ".") && strings.HasSuffix(host, in)
	}
	var out []string
	for _, h := range hostnames {
		switch host := wild(string(h)); {
		case within(host, listener):
			out = append(out, host)
		case within(listener, host):
			out = append(out, listener)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}
