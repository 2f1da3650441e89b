package loadbalancer

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"unicode"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	gateway "sigs.k8s.io/gateway-api/apis/v1"
)

// backendBroken answers where the Gateway API wants a 500: for a backend that does not exist, or may not be used.
const backendBroken = "broken"

// unsupported is an error of a user's who asks for what is not served.
type unsupported string

func (u unsupported) Error() string { return string(u) }

// rules are an HTTPRoute's, without hosts, and whether its backends exist. Of a route that asks for something that is not
// served, nothing is served: unsupported says what that is.
func (b *builder) rules(r *gateway.HTTPRoute) (routes []Route, resolved metav1.Condition, missing string) {
	resolved = condition(r, string(gateway.RouteConditionResolvedRefs), "", "")
	var backends []Backend
	for n := range r.Spec.Rules {
		rule := &r.Spec.Rules[n]
		matches, err := ruleMatches(rule)
		if err == nil && (rule.Timeouts != nil || rule.Retry != nil || rule.SessionPersistence != nil) {
			err = unsupported("timeouts, retry and sessionPersistence are not served")
		}
		var shares []Route
		if err == nil {
			shares, err = b.shares(r, n, &backends, &resolved)
		}
		if err != nil {
			return nil, resolved, fmt.Sprintf("rule %d: %v; nothing of the route is served", n, err)
		}
		for _, m := range matches {
			for _, s := range shares {
				m.Backend, m.Part, m.Of = s.Backend, s.Part, s.Of
				routes = append(routes, m)
			}
		}
	}
	for _, backend := range backends {
		b.backends[backend.Name] = backend
	}
	return routes, resolved, ""
}

// token is what names of headers and parameters consist of in HAProxy's configuration.
var token = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)

// printable tells whether a text has no control characters: such a one could not be written into a configuration.
func printable(text string) bool { return !strings.ContainsFunc(text, unicode.IsControl) }

func ruleMatches(rule *gateway.HTTPRouteRule) ([]Route, error) {
	if len(rule.Matches) == 0 {
		return []Route{{Path: "/"}}, nil
	}
	var out []Route
	for _, m := range rule.Matches {
		r := Route{Path: "/", Method: string(ptr.Deref(m.Method, ""))}
		if m.Path != nil {
			r.Path = ptr.Deref(m.Path.Value, "/")
			switch ptr.Deref(m.Path.Type, gateway.PathMatchPathPrefix) {
			case gateway.PathMatchPathPrefix:
			case gateway.PathMatchExact:
				r.Match = Exact
			default:
				return nil, unsupported("paths of type RegularExpression are not served, only PathPrefix and Exact")
			}
			if !plain.MatchString(r.Path) {
				return nil, unsupported(fmt.Sprintf("path %q has characters that a path cannot have: write them as %%xx", r.Path))
			}
		}
		for _, h := range m.Headers {
			if ptr.Deref(h.Type, gateway.HeaderMatchExact) != gateway.HeaderMatchExact {
				return nil, unsupported("headers are matched as a whole only (type Exact)")
			}
			r.Headers = append(r.Headers, Pair{string(h.Name), h.Value})
		}
		for _, q := range m.QueryParams {
			if ptr.Deref(q.Type, gateway.QueryParamMatchExact) != gateway.QueryParamMatchExact {
				return nil, unsupported("parameters are matched as a whole only (type Exact)")
			}
			r.Queries = append(r.Queries, Pair{string(q.Name), q.Value})
		}
		for _, p := range slices.Concat(r.Headers, r.Queries) {
			if !token.MatchString(p.Name) || !printable(p.Value) {
				return nil, unsupported(fmt.Sprintf("name %q or value %q has characters that are not served", p.Name, p.Value))
			}
		}
		out = append(out, r)
	}
	return out, nil
}

// shares are the backends of a rule, each with the part of the requests that is left to it by those before.
func (b *builder) shares(r *gateway.HTTPRoute, n int, backends *[]Backend, resolved *metav1.Condition) ([]Route, error) {
	rule := &r.Spec.Rules[n]
	name := fmt.Sprintf("route.%s_%s:%d", r.Namespace, r.Name, n)
	common, answers, err := filters(rule.Filters, rule.Matches)
	if err != nil {
		return nil, err
	}
	if answers { // no backend has a say
		*backends = append(*backends, Backend{Name: name, Rules: common})
		return []Route{{Backend: name}}, nil
	}
	var out []Route
	total := int32(0)
	for i, ref := range rule.BackendRefs {
		own, answers, err := filters(ref.Filters, rule.Matches)
		if err != nil || answers {
			return nil, errors.Join(err, unsupportedIf(answers, "a backend cannot redirect: put RequestRedirect into the rule's filters"))
		}
		weight := ptr.Deref(ref.Weight, 1)
		backend, reason, err := b.routeBackend(r, ref.BackendRef)
		if err != nil {
			*resolved = condition(r, resolved.Type, string(reason), fmt.Sprintf("rule %d: %v; such requests are answered 500", n, err))
		}
		if rules := slices.Concat(common, own); len(rules) > 0 && err == nil {
			backend.Name, backend.Rules = fmt.Sprintf("%s.%d", name, i), rules
		}
		*backends = append(*backends, backend)
		if weight > 0 {
			out = append(out, Route{Backend: backend.Name, Part: weight})
			total += weight
		}
	}
	for i := range out {
		if out[i].Of = total; out[i].Part == total {
			out[i].Part, out[i].Of = 0, 0 // all that are left
		} else {
			total -= out[i].Part
		}
	}
	if len(out) == 0 {
		*backends = append(*backends, broken())
		out = []Route{{Backend: backendBroken}}
	}
	return out, nil
}

func unsupportedIf(yes bool, what string) error {
	if yes {
		return unsupported(what)
	}
	return nil
}

func broken() Backend {
	return Backend{Name: backendBroken, Rules: []string{"http-request return status 500"}}
}

// routeBackend is the Service's port that a route names.
func (b *builder) routeBackend(r *gateway.HTTPRoute, ref gateway.BackendRef) (Backend, gateway.RouteConditionReason, error) {
	key := client.ObjectKey{Namespace: string(ptr.Deref(ref.Namespace, gateway.Namespace(r.Namespace))), Name: string(ref.Name)}
	if ptr.Deref(ref.Group, "") != "" || ptr.Deref(ref.Kind, kindService) != kindService || ref.Port == nil {
		return broken(), gateway.RouteReasonInvalidKind, errors.New("only backends of kind Service, with a port, are served")
	}
	if !b.granted(kindHTTPRoute, r.Namespace, kindService, key) {
		return broken(), gateway.RouteReasonRefNotPermitted,
			fmt.Errorf("namespace %s has no ReferenceGrant that lets HTTPRoutes of %s use Service %s", key.Namespace, r.Namespace, key.Name)
	}
	backend, err := b.backend(key, "", *ref.Port)
	if err != nil {
		return broken(), gateway.RouteReasonBackendNotFound, err
	}
	return backend, "", nil
}

// filters are a rule's or a backend's as HAProxy has them; answers says that one of them answers the request.
func filters(list []gateway.HTTPRouteFilter, matches []gateway.HTTPRouteMatch) (rules []string, answers bool, err error) {
	for _, f := range list {
		var more []string
		switch {
		case f.RequestHeaderModifier != nil:
			more, err = modify("http-request", f.RequestHeaderModifier)
		case f.ResponseHeaderModifier != nil:
			more, err = modify("http-response", f.ResponseHeaderModifier)
		case f.URLRewrite != nil:
			more, err = rewrite(f.URLRewrite.Path, matches)
			if f.URLRewrite.Hostname != nil {
				more = append(more, "http-request set-header Host "+format(string(*f.URLRewrite.Hostname)))
			}
		case f.RequestRedirect != nil:
			answers = true
			more, err = redirect(f.RequestRedirect, matches)
		default:
			err = unsupported(fmt.Sprintf("filters of type %s are not served", f.Type))
		}
		if err != nil {
			return nil, false, err
		}
		rules = append(rules, more...)
	}
	return rules, answers, nil
}

// format is a text as HAProxy's formats have it.
func format(text string) string { return quote(strings.ReplaceAll(text, "%", "%%")) }

func modify(what string, f *gateway.HTTPHeaderFilter) ([]string, error) {
	var out []string
	for verb, headers := range map[string][]gateway.HTTPHeader{"set": f.Set, "add": f.Add} {
		for _, h := range headers {
			if !token.MatchString(string(h.Name)) || !printable(h.Value) {
				return nil, unsupported(fmt.Sprintf("header %q or its value has characters that are not served", h.Name))
			}
			out = append(out, fmt.Sprintf("%s %s-header %s %s", what, verb, h.Name, format(h.Value)))
		}
	}
	for _, name := range f.Remove {
		if !token.MatchString(name) {
			return nil, unsupported(fmt.Sprintf("header %q has characters that are not served", name))
		}
		out = append(out, fmt.Sprintf("%s del-header %s", what, name))
	}
	slices.Sort(out) // set comes after add and del: those are of other headers
	return out, nil
}

// rewrite changes the path.
func rewrite(m *gateway.HTTPPathModifier, matches []gateway.HTTPRouteMatch) ([]string, error) {
	if m == nil {
		return nil, nil
	}
	to := ptr.Deref(m.ReplaceFullPath, ptr.Deref(m.ReplacePrefixMatch, ""))
	if to != "" && !plain.MatchString(to) {
		return nil, unsupported(fmt.Sprintf("path %q has characters that a path cannot have: write them as %%xx", to))
	}
	if m.Type == gateway.FullPathHTTPPathModifier {
		return []string{"http-request set-path " + format(to)}, nil
	}
	if len(matches) != 1 || matches[0].Path == nil {
		return nil, unsupported("ReplacePrefixMatch needs exactly one match, of a path's prefix")
	}
	prefix, to := regexp.QuoteMeta(strings.TrimRight(ptr.Deref(matches[0].Path.Value, "/"), "/")), strings.TrimRight(to, "/")
	if to == "" {
		return []string{fmt.Sprintf(`http-request replace-path '^%s/?(.*)$' '/\1'`, prefix)}, nil
	}
	return []string{fmt.Sprintf(`http-request replace-path '^%s(/.*)?$' %s`, prefix, format(to+`\1`))}, nil
}

// redirect sends the client elsewhere.
func redirect(f *gateway.HTTPRequestRedirectFilter, matches []gateway.HTTPRouteMatch) ([]string, error) {
	rules, err := rewrite(f.Path, matches)
	if err != nil {
		return nil, err
	}
	host, port, scheme := "%[var(txn.host)]", "", ptr.Deref(f.Scheme, "%[ssl_fc,iif(https,http)]")
	if f.Hostname != nil {
		host = strings.ToLower(string(*f.Hostname))
	}
	switch p := ptr.Deref(f.Port, 0); {
	case p == 0 && f.Scheme == nil:
		port = "%[var(txn.port)]" // the listener's
	case p != 0 && (scheme != "http" || p != 80) && (scheme != "https" || p != 443):
		port = fmt.Sprintf(":%d", p)
	}
	return append(rules, fmt.Sprintf("http-request redirect location '%s://%s%s%%[pathq]' code %d", scheme, host, port, ptr.Deref(f.StatusCode, 302))), nil
}
