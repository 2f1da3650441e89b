package loadbalancer

import (
	"cmp"
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"text/template"
)

// Config is what HAProxy is to do.
type Config struct {
	// Socket of HAProxy's runtime API.
	Socket    string
	Listeners []Listener
	// Held are the addresses of all load balancers, those that kube-proxy serves included.
	Held []netip.Addr
	// Frontends serve HTTP from the Backends.
	Frontends []Frontend
	Backends  []Backend
}

// Listener passes connections at an address and port on to targets.
type Listener struct {
	Name string
	Addr netip.Addr
	Port int32
	// Sources that may connect; none: all.
	Sources []netip.Prefix
	// ProxyProtocol tells targets the client's address (version 2 of the PROXY protocol).
	ProxyProtocol bool
	Targets       []Target
}

// Target is a pod's port.
type Target struct {
	Addr netip.Addr
	Port int32
}

// Frontend serves HTTP at an address and port.
type Frontend struct {
	Name string
	Addr netip.Addr
	Port int32
	// Certs are the names of its certificates, the first of which is for clients that ask for no name; with one, it is HTTPS.
	Certs []string
	// CertList is the file that lists them.
	CertList string
	Routes   []Route
}

// Scheme of the frontend's URLs.
func (f Frontend) Scheme() string {
	if len(f.Certs) > 0 {
		return "https"
	}
	return "http"
}

// PortInURL is the port as the frontend's URLs have it: none if it is the scheme's own.
func (f Frontend) PortInURL() string {
	if own := map[string]int32{"http": 80, "https": 443}; f.Port == own[f.Scheme()] {
		return ""
	}
	return fmt.Sprintf(":%d", f.Port)
}

// Route leads requests to a backend.
type Route struct {
	// Host in lower case; empty matches all, "*.example" one label more, ".example" any number.
	Host string
	// Path and how it matches.
	Path  string
	Match PathMatch
	// Method, Headers and Queries that the request must have; none: any.
	Method           string
	Headers, Queries []Pair
	// Part of so many requests, at random, where both are set; the others are the next routes'.
	Part, Of int32
	Backend  string
}

// Pair is a header or a query's parameter, and its value.
type Pair struct{ Name, Value string }

// PathMatch says how a path matches.
type PathMatch int

// The ways: by path elements, the whole path, and with * and ?, the latter as an ALB does.
const (
	Prefix PathMatch = iota
	Exact
	Pattern
)

// Backend is a Service's port, or an answer.
type Backend struct {
	Name string
	// HTTP2 without TLS to the pods (gRPC).
	HTTP2   bool
	Targets []Target
	// Rules change requests and responses, or answer, as HAProxy has it.
	Rules []string
}

// quote makes one word of HAProxy's configuration of a text without control characters.
func quote(text string) string { return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'" }

// String is the target's name in HAProxy, and where it is.
func (t Target) String() string { return fmt.Sprintf("%s:%d", t.Addr, t.Port) }

// Options of the listener's servers, beyond those of every server.
func (l Listener) Options() string {
	if l.ProxyProtocol {
		return " send-proxy-v2 check-send-proxy"
	}
	return ""
}

// Options of the backend's servers, beyond those of every server.
func (b Backend) Options() string {
	if b.HTTP2 {
		return " proto h2"
	}
	return ""
}

// backendNone answers what no route matches.
const backendNone = "none"

// None is the backend that answers what no route matches.
func (Config) None() string { return backendNone }

// Check of every server: a connection each 2 s.
func (Config) Check() string { return "check inter 2s fall 2 rise 1" }

// anyway is added to a target's name for the server that is used when no target is healthy: then all are, as AWS' load balancers
// "fail open". That check may fail for slowness, and no target answers for sure if none is asked.
const anyway = "-anyway"

// Server lines of the target in HAProxy.
func (t Target) Server(options string) string {
	return fmt.Sprintf("server %s %s%s\n  server %s%s %s%s backup no-check", t, t, options, t, anyway, t, options)
}

// Condition is the route as HAProxy tests it.
func (r Route) Condition() string {
	var terms []string
	test := func(format string, args ...any) { terms = append(terms, "{ "+fmt.Sprintf(format, args...)+" }") }
	switch {
	case strings.HasPrefix(r.Host, "*."):
		test("var(txn.host) -m reg '^[^.]+%s$'", regexp.QuoteMeta(r.Host[1:]))
	case strings.HasPrefix(r.Host, "."):
		test("var(txn.host) -m end %s", quote(r.Host))
	case r.Host != "":
		test("var(txn.host) -m str %s", quote(r.Host))
	}
	switch path := strings.TrimRight(r.Path, "/"); {
	case r.Match == Exact:
		test("path %s", quote(r.Path))
	case r.Match == Pattern:
		test("path -m reg '^%s$'", strings.NewReplacer(`\*`, ".*", `\?`, ".").Replace(regexp.QuoteMeta(r.Path)))
	case path != "":
		test("path -m reg '^%s(/|$)'", regexp.QuoteMeta(path))
	}
	if r.Method != "" {
		test("method %s", r.Method)
	}
	for _, h := range r.Headers {
		test("req.fhdr(%s) -m str -- %s", h.Name, quote(h.Value))
	}
	for _, q := range r.Queries {
		test("url_param(%s),url_dec -m str -- %s", q.Name, quote(q.Value))
	}
	if r.Of > 0 {
		test("rand(%d) lt %d", r.Of, r.Part)
	}
	if len(terms) == 0 {
		return "TRUE"
	}
	return strings.Join(terms, " ")
}

// sortRoutes puts the more specific first: a host before a longer before a shorter wildcard before none, a whole path before
// a longer before a shorter one, then what asks for a method, for more headers, for more parameters; what is equal stays in
// the given order.
func sortRoutes(routes []Route) {
	rank := func(r Route) int {
		switch {
		case r.Host == "":
			return 2
		case r.Host[0] == '*', r.Host[0] == '.':
			return 1
		}
		return 0
	}
	first := func(yes bool) int {
		if yes {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(routes, func(a, b Route) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(len(strings.TrimPrefix(b.Host, "*")), len(strings.TrimPrefix(a.Host, "*")))*rank(a),
			cmp.Compare(first(a.Match == Exact), first(b.Match == Exact)), cmp.Compare(len(b.Path), len(a.Path)),
			cmp.Compare(first(a.Method != ""), first(b.Method != "")), cmp.Compare(len(b.Headers), len(a.Headers)), cmp.Compare(len(b.Queries), len(a.Queries)))
	})
}

var haproxy = template.Must(template.New("haproxy.cfg").Parse(`# Written by Berth; changes are overwritten.
global
  stats socket {{.Socket}} mode 600 level admin expose-fd listeners
  user haproxy
  group haproxy
  hard-stop-after 1h
  ssl-default-bind-options ssl-min-ver TLSv1.2
  tune.ssl.default-dh-param 2048

defaults
  timeout connect 3s
  timeout client 350s
  timeout server 350s
  timeout tunnel 1h
  timeout http-request 60s
  retries 3
  option redispatch 1
  option dontlognull
  option allbackups
  default-server {{.Check}}

# HAProxy wants to listen somewhere, also when there is nothing to balance.
frontend health
  mode http
  bind unix@{{.Socket}}.health mode 600
  http-request return status 200
{{range .Listeners}}
listen {{.Name}}
  mode tcp
  bind {{.Addr}}:{{.Port}}
{{- if .Sources}}
  tcp-request connection reject if !{ src{{range .Sources}} {{.}}{{end}} }
{{- end}}
{{- $options := .Options}}
{{- range .Targets}}
  {{.Server $options}}
{{- end}}
{{end}}
{{- range .Frontends}}
frontend {{.Name}}
  mode http
  bind {{.Addr}}:{{.Port}}{{if .Certs}} ssl crt-list {{.CertList}} alpn h2,http/1.1{{end}}
  option forwardfor
  http-request set-var(txn.host) req.hdr(host),field(1,:),lower
{{- with .PortInURL}}
  http-request set-var(txn.port) str({{.}})
{{- end}}
  http-request set-header X-Forwarded-Proto {{.Scheme}}
  http-request set-header X-Forwarded-Port {{.Port}}
{{- range .Routes}}
  use_backend {{.Backend}} if {{.Condition}}
{{- end}}
  default_backend {{$.None}}
{{end}}
{{- if .Frontends}}
backend {{.None}}
  mode http
  http-request return status 404 content-type text/plain string "nothing is published at this host and path\n"
{{end}}
{{- range .Backends}}
backend {{.Name}}
  mode http
{{- range .Rules}}
  {{.}}
{{- end}}
{{- $options := .Options}}
{{- range .Targets}}
  {{.Server $options}}
{{- end}}
{{end}}`))

// Render writes HAProxy's configuration; the same Config gives the same text.
func (c Config) Render() (string, error) {
	var b strings.Builder
	if err := haproxy.Execute(&b, c); err != nil {
		return "", fmt.Errorf("write HAProxy's configuration: %w", err)
	}
	return b.String(), nil
}

// servers are all targets, PROXY/SERVER as HAProxy names them, with their options.
func (c Config) servers() map[string]string {
	out := map[string]string{}
	add := func(proxy, options string, targets []Target) {
		for _, t := range targets {
			out[proxy+"/"+t.String()] = t.String() + options + " " + c.Check()
			out[proxy+"/"+t.String()+anyway] = t.String() + options + " backup"
		}
	}
	for _, l := range c.Listeners {
		add(l.Name, l.Options(), l.Targets)
	}
	for _, b := range c.Backends {
		add(b.Name, b.Options(), b.Targets)
	}
	return out
}

// shape is the configuration without targets: HAProxy can be told of those while it runs.
func (c Config) shape() Config {
	c.Listeners, c.Backends = slices.Clone(c.Listeners), slices.Clone(c.Backends)
	for i := range c.Listeners {
		c.Listeners[i].Targets = nil
	}
	for i := range c.Backends {
		c.Backends[i].Targets = nil
	}
	return c
}

// ports are where load balancers listen.
func (c Config) ports() []netip.AddrPort {
	var out []netip.AddrPort
	for _, l := range c.Listeners {
		out = append(out, netip.AddrPortFrom(l.Addr, uint16(l.Port)))
	}
	for _, f := range c.Frontends {
		out = append(out, netip.AddrPortFrom(f.Addr, uint16(f.Port)))
	}
	return out
}
