package loadbalancer

import (
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
)

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
		hosts := intersect(l.host(), r.Spec.Hostnames)
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
			if slices.ContainsFunc(of, func(other *listener) bool { return other.frontend == l.frontend && other.narrower(l, host) }) {
				continue
			}
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

// host of the listener, as routes have them.
func (l *listener) host() string { return wild(string(ptr.Deref(l.Hostname, ""))) }

// close ends the routes of a listener that has a hostname: what none of them matches is not for listeners with wider ones.
func (l *listener) close() {
	if host := l.host(); l.frontend != nil && host != "" {
		l.frontend.Routes = append(l.frontend.Routes, Route{Host: host, Path: "/", Backend: backendNone})
	}
}

// narrower tells whether requests to the host are for this listener, not for one with a wider hostname.
func (l *listener) narrower(than *listener, host string) bool {
	own := l.host()
	return own != than.host() && includes(than.host(), own) && includes(own, host)
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

// intersect are the hosts, as routes have them, that both a listener ("": all) and one of the hostnames (none: all) mean.
func intersect(listener string, hostnames []gateway.Hostname) []string {
	if len(hostnames) == 0 {
		return []string{listener}
	}
	var out []string
	for _, h := range hostnames {
		switch host := wild(string(h)); {
		case includes(listener, host):
			out = append(out, host)
		case includes(host, listener):
			out = append(out, listener)
		}
	}
	slices.Sort(out)
	return slices.Compact(out)
}

// wild is a hostname as routes have them: in lower case, "*.example" as ".example".
func wild(hostname string) string { return strings.ToLower(strings.TrimPrefix(hostname, "*")) }

// includes tells whether a host, as routes have them, means all that another means.
func includes(host, other string) bool {
	return host == "" || host == other || strings.HasPrefix(host, ".") && strings.HasSuffix(other, host)
}
