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
	// Held are the addresses of all Services, those that kube-proxy serves included.
	Held []netip.Addr
	// Web serves all Ingresses; its Addr is invalid if there are none.
	Web Web
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

// Web is the HTTP and HTTPS side.
type Web struct {
	Addr netip.Addr
	// CertList is the file of HAProxy's crt-list, if there are certificates; without, there is no HTTPS.
	CertList string
	HTTPS    bool
	Routes   []Route
	Backends []Backend
}

// Route leads requests to a backend.
type Route struct {
	// Host in lower case; empty matches all, "*.example" one label more.
	Host string
	// Path and how it matches.
	Path  string
	Match PathMatch
	// ToHTTPS answers plain requests with a redirect, also while there is no certificate to serve HTTPS with.
	ToHTTPS bool
	Backend string
}

// PathMatch says how a path matches.
type PathMatch int

// The ways: by path elements, the whole path, and with * and ?, the latter as an ALB does.
const (
	Prefix PathMatch = iota
	Exact
	Pattern
)

// Backend is a Service's port.
type Backend struct {
	Name string
	// HTTP2 without TLS to the pods (gRPC).
	HTTP2   bool
	Targets []Target
}

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

// Check of every server: a connection each 2 s.
func (Config) Check() string { return "check inter 2s fall 2 rise 1" }

// Condition is the route as HAProxy tests it.
func (r Route) Condition() string {
	var terms []string
	switch {
	case strings.HasPrefix(r.Host, "*."):
		terms = append(terms, fmt.Sprintf("{ var(txn.host) -m reg '^[^.]+%s$' }", regexp.QuoteMeta(r.Host[1:])))
	case r.Host != "":
		terms = append(terms, fmt.Sprintf("{ var(txn.host) -m str '%s' }", r.Host))
	}
	switch path := strings.TrimRight(r.Path, "/"); {
	case r.Match == Exact:
		terms = append(terms, fmt.Sprintf("{ path '%s' }", r.Path))
	case r.Match == Pattern:
		pattern := strings.NewReplacer(`\*`, ".*", `\?`, ".").Replace(regexp.QuoteMeta(r.Path))
		terms = append(terms, fmt.Sprintf("{ path -m reg '^%s$' }", pattern))
	case path != "":
		terms = append(terms, fmt.Sprintf("{ path -m reg '^%s(/|$)' }", regexp.QuoteMeta(path)))
	}
	if len(terms) == 0 {
		return "TRUE"
	}
	return strings.Join(terms, " ")
}

// sortRoutes puts the more specific first: a host before a wildcard before none, a whole path before a longer before a
// shorter one; what is equal stays in the given order.
func sortRoutes(routes []Route) {
	rank := func(r Route) int {
		switch {
		case r.Host == "":
			return 2
		case strings.HasPrefix(r.Host, "*."):
			return 1
		}
		return 0
	}
	exact := func(r Route) int {
		if r.Match == Exact {
			return 0
		}
		return 1
	}
	slices.SortStableFunc(routes, func(a, b Route) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(exact(a), exact(b)), cmp.Compare(len(b.Path), len(a.Path)))
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
  server {{.}} {{.}}{{$options}}
{{- end}}
{{end}}
{{- if .Web.Addr.IsValid}}
frontend http
  mode http
  bind {{.Web.Addr}}:80
  option forwardfor
  http-request set-var(txn.host) req.hdr(host),field(1,:),lower
  http-request set-header X-Forwarded-Proto http
  http-request set-header X-Forwarded-Port 80
{{- range .Web.Routes}}
  use_backend {{if .ToHTTPS}}to-https{{else}}{{.Backend}}{{end}} if {{.Condition}}
{{- end}}
  default_backend none

backend to-https
  mode http
  http-request redirect scheme https code 301
{{if .Web.HTTPS}}

frontend https
  mode http
  bind {{.Web.Addr}}:443 ssl crt-list {{.Web.CertList}} alpn h2,http/1.1
  option forwardfor
  http-request set-var(txn.host) req.hdr(host),field(1,:),lower
  http-request set-header X-Forwarded-Proto https
  http-request set-header X-Forwarded-Port 443
{{- range .Web.Routes}}
  use_backend {{.Backend}} if {{.Condition}}
{{- end}}
  default_backend none
{{end}}
backend none
  mode http
  http-request return status 404 content-type text/plain string "no Ingress has this host and path\n"
{{range .Web.Backends}}
backend {{.Name}}
  mode http
{{- $options := .Options}}
{{- range .Targets}}
  server {{.}} {{.}}{{$options}}
{{- end}}
{{end}}
{{- end}}`))

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
		}
	}
	for _, l := range c.Listeners {
		add(l.Name, l.Options(), l.Targets)
	}
	if c.Web.Addr.IsValid() {
		for _, b := range c.Web.Backends {
			add(b.Name, b.Options(), b.Targets)
		}
	}
	return out
}

// shape is the configuration without targets: HAProxy can be told of those while it runs.
func (c Config) shape() Config {
	c.Listeners, c.Web.Backends = slices.Clone(c.Listeners), slices.Clone(c.Web.Backends)
	for i := range c.Listeners {
		c.Listeners[i].Targets = nil
	}
	for i := range c.Web.Backends {
		c.Web.Backends[i].Targets = nil
	}
	return c
}

// addresses are those that the host holds.
func (c Config) addresses() []netip.Addr {
	out := slices.Clone(c.Held)
	if c.Web.Addr.IsValid() {
		out = append(out, c.Web.Addr)
	}
	return out
}

// ports are where load balancers listen.
func (c Config) ports() []netip.AddrPort {
	var out []netip.AddrPort
	for _, l := range c.Listeners {
		out = append(out, netip.AddrPortFrom(l.Addr, uint16(l.Port)))
	}
	if c.Web.Addr.IsValid() {
		out = append(out, netip.AddrPortFrom(c.Web.Addr, 80))
		if c.Web.HTTPS {
			out = append(out, netip.AddrPortFrom(c.Web.Addr, 443))
		}
	}
	return out
}
