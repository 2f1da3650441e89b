package loadbalancer

import (
	"fmt"
	"slices"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
		for _, l := range listeners[key] {
			l.close()
		}
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
	if addr.IsValid() && refused(g).Type == "" {
		return out, frontends
	}
	for _, l := range out {
		l.status.Conditions[len(l.status.Conditions)-1] = condition(g, string(gateway.ListenerConditionProgrammed), string(gateway.ListenerReasonInvalid),
			"its Gateway is not served; the conditions of that say why")
	}
	return out, nil
}

// refused is the condition of a Gateway that asks for what is not served; without a type, it does not.
func refused(g *gateway.Gateway) metav1.Condition {
	switch {
	case slices.ContainsFunc(g.Spec.Addresses, func(a gateway.GatewaySpecAddress) bool { return a.Value != "" }):
		return condition(g, string(gateway.GatewayConditionAccepted), string(gateway.GatewayReasonUnsupportedAddress),
			"an address is given out of a public Subnet and cannot be asked for: remove spec.addresses")
	case g.Spec.Infrastructure != nil && g.Spec.Infrastructure.ParametersRef != nil:
		return condition(g, string(gateway.GatewayConditionAccepted), string(gateway.GatewayReasonInvalidParameters),
			"there are no parameters: remove spec.infrastructure.parametersRef")
	}
	return metav1.Condition{}
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
	case l.Protocol == gateway.HTTPSProtocolType && asksClients(g, l.Port):
		refuse(&accepted, gateway.ListenerReasonUnsupportedValue, "clients' certificates are not validated: remove spec.tls.frontend, or pass TLS on by a Service of type LoadBalancer")
	}
	l.supports(g, &resolved)
	if l.Protocol != gateway.HTTPSProtocolType {
		return nil, accepted, resolved
	}
	if l.TLS == nil || len(l.TLS.CertificateRefs) == 0 {
		refuse(&resolved, gateway.ListenerReasonInvalidCertificateRef, "HTTPS needs tls.certificateRefs")
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

// asksClients tells whether clients of a port must have certificates.
func asksClients(g *gateway.Gateway, port gateway.PortNumber) bool {
	if g.Spec.TLS == nil || g.Spec.TLS.Frontend == nil {
		return false
	}
	f := g.Spec.TLS.Frontend
	for _, p := range f.PerPort {
		if p.Port == port {
			return p.TLS.Validation != nil
		}
	}
	return f.Default.Validation != nil
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
	case refused(g).Type != "":
		accepted = refused(g)
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
