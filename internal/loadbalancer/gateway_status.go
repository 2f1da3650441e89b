package loadbalancer

import (
	"context"
	"fmt"
	"slices"

	"k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
	"sigs.k8s.io/gateway-api/pkg/features"
)

// served are the features of the Gateway API that Berth's classes have, by name. Upstream's conformance tests ask for them
// (make conformance-gateway).
var served = []features.FeatureName{
	features.SupportGateway,
	features.SupportGatewayAddressEmpty,
	features.SupportGatewayHTTPListenerIsolation,
	features.SupportGatewayPort8080,
	features.SupportHTTPRoute,
	features.SupportHTTPRoute303RedirectStatusCode,
	features.SupportHTTPRoute307RedirectStatusCode,
	features.SupportHTTPRoute308RedirectStatusCode,
	features.SupportHTTPRouteBackendProtocolH2C,
	features.SupportHTTPRouteBackendProtocolWebSocket,
	features.SupportHTTPRouteBackendRequestHeaderModification,
	features.SupportHTTPRouteHostRewrite,
	features.SupportHTTPRouteMethodMatching,
	features.SupportHTTPRouteNamedRouteRule,
	features.SupportHTTPRouteParentRefPort,
	features.SupportHTTPRoutePathRedirect,
	features.SupportHTTPRoutePathRewrite,
	features.SupportHTTPRoutePortRedirect,
	features.SupportHTTPRouteQueryParamMatching,
	features.SupportHTTPRouteResponseHeaderModification,
	features.SupportHTTPRouteSchemeRedirect,
	features.SupportReferenceGrant,
}

// writeGateways tells Gateways and HTTPRoutes what came of them. What other controllers say of a route stays.
func (r *reconciler) writeGateways(ctx context.Context, c Cluster, built Built) error {
	for i := range c.GatewayClasses {
		class := &c.GatewayClasses[i]
		if class.Spec.ControllerName != GatewayController {
			continue
		}
		before := class.DeepCopy()
		accepted := condition(class, string(gateway.GatewayClassConditionStatusAccepted), "", "")
		if class.Spec.ParametersRef != nil {
			accepted = condition(class, accepted.Type, string(gateway.GatewayClassReasonInvalidParameters), "there are no parameters: remove spec.parametersRef")
		}
		meta.SetStatusCondition(&class.Status.Conditions, accepted)
		class.Status.SupportedFeatures = nil
		for _, name := range served {
			class.Status.SupportedFeatures = append(class.Status.SupportedFeatures, gateway.SupportedFeature{Name: gateway.FeatureName(name)})
		}
		if err := r.patchStatus(ctx, class, before, equality.Semantic.DeepEqual(before.Status, class.Status)); err != nil {
			return err
		}
	}
	for i := range c.Gateways {
		g := &c.Gateways[i]
		before := g.DeepCopy()
		now := built.GatewayStatus[client.ObjectKeyFromObject(g)]
		now.Conditions = since(before.Status.Conditions, now.Conditions)
		for n := range now.Listeners {
			l := &now.Listeners[n]
			old := slices.IndexFunc(before.Status.Listeners, func(o gateway.ListenerStatus) bool { return o.Name == l.Name })
			l.Conditions = since(at(before.Status.Listeners, old).Conditions, l.Conditions)
		}
		g.Status = now
		if err := r.patchStatus(ctx, g, before, equality.Semantic.DeepEqual(before.Status, g.Status)); err != nil {
			return err
		}
	}
	for i := range c.HTTPRoutes {
		route := &c.HTTPRoutes[i]
		before := route.DeepCopy()
		route.Status.Parents = slices.DeleteFunc(route.Status.Parents, func(p gateway.RouteParentStatus) bool { return p.ControllerName == GatewayController })
		for _, p := range built.RouteStatus[client.ObjectKeyFromObject(route)] {
			old := slices.IndexFunc(before.Status.Parents, func(o gateway.RouteParentStatus) bool {
				return o.ControllerName == GatewayController && equality.Semantic.DeepEqual(o.ParentRef, p.ParentRef)
			})
			p.Conditions = since(at(before.Status.Parents, old).Conditions, p.Conditions)
			route.Status.Parents = append(route.Status.Parents, p)
		}
		if equality.Semantic.DeepEqual(before.Status, route.Status) {
			continue
		}
		// The list is others', too: what they wrote meanwhile may not be lost.
		patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
		if err := r.client.Status().Patch(ctx, route, patch); client.IgnoreNotFound(err) != nil {
			return fmt.Errorf("write the status of HTTPRoute %s/%s: %w", route.Namespace, route.Name, err)
		}
	}
	return nil
}

// at is an element of the list; index -1 is an empty one.
func at[T any](list []T, index int) (element T) {
	if index >= 0 {
		element = list[index]
	}
	return element
}

// since are the conditions of now, each with the time at which it came to be as it is.
func since(before, now []metav1.Condition) []metav1.Condition {
	var out []metav1.Condition
	for _, c := range now {
		one := slices.DeleteFunc(slices.Clone(before), func(b metav1.Condition) bool { return b.Type != c.Type })
		meta.SetStatusCondition(&one, c)
		out = append(out, one[0])
	}
	return out
}
