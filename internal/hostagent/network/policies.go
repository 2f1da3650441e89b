package network

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/knftables"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/policy"
)

// Policies holds NetworkPolicies in the host's nftables table. Every packet that is forwarded from or to an isolated pod is
// judged by the policies of this moment, that of an established connection as well: there is no shortcut past them, and no
// connection tracking entry to be found and deleted when they change. What travels with the connection is judged as the
// connection's first packet was, and what travels back with source and destination exchanged; so each chain exists twice.
//
// The host's own connections do not pass the forward hook: probes always reach a pod, and a pod always reaches its host.
type Policies struct {
	nft knftables.Interface
}

// NewPolicies changes nothing yet.
func NewPolicies() (*Policies, error) {
	nft, err := knftables.New(knftables.IPv4Family, layout.NFTTable)
	if err != nil {
		return nil, fmt.Errorf("use nftables: %w", err)
	}
	return &Policies{nft: nft}, nil
}

const (
	// policyPrefix begins the name of everything in the table that is here for policies, base chains excepted.
	policyPrefix = "policy/"
	replySuffix  = "/reply"
)

func leadMap(d policy.Direction) string { return policyPrefix + d.String() }

// Apply makes a change, all of it or nothing. After an error, and after a start, the next change must be that of Table.All;
// what is in the kernel holds until then, and packets see either the old or the new.
func (p *Policies) Apply(ctx context.Context, d policy.Delta) error {
	if d.Empty() {
		return nil
	}
	tx := p.nft.NewTransaction()
	var stale map[string][]string
	if d.Replace {
		var err error
		if stale, err = p.replace(ctx, tx, d); err != nil {
			return err
		}
	}
	addSets(tx, d)
	for _, c := range d.Chains {
		addChain(tx, c)
	}
	for _, g := range d.AddGroups {
		addGroup(tx, g)
	}
	for _, l := range d.RemoveLeads {
		tx.Delete(&knftables.Element{Map: leadMap(l.Direction), Key: []string{l.Addr.String()}})
	}
	for _, l := range d.AddLeads {
		tx.Add(&knftables.Element{Map: leadMap(l.Direction), Key: []string{l.Addr.String()}, Value: []string{"goto " + l.Group}})
	}
	removeChains(tx, append(twice(d.RemoveGroups), twice(d.RemoveChains)...))
	removeChains(tx, stale["chain"])
	for _, name := range append(d.RemoveSets, stale["set"]...) {
		tx.Delete(&knftables.Set{Name: name})
	}
	if d.Replace {
		addBase(tx)
	}
	if err := p.nft.Run(ctx, tx); err != nil {
		return fmt.Errorf("write network policies to nftables table %s: %w", layout.NFTTable, err)
	}
	return nil
}

// replace empties what is there of policies and returns what of it does not come back.
func (p *Policies) replace(ctx context.Context, tx *knftables.Transaction, d policy.Delta) (map[string][]string, error) {
	there, err := p.nft.ListAll(ctx)
	if err != nil && !knftables.IsNotFound(err) {
		return nil, fmt.Errorf("list nftables table %s: %w", layout.NFTTable, err)
	}
	comes := map[string]bool{}
	for _, s := range d.AddSets {
		comes[s.Name] = true
	}
	for _, c := range d.Chains {
		comes[c.Name], comes[c.Name+replySuffix] = true, true
	}
	for _, g := range d.AddGroups {
		comes[g.Name], comes[g.Name+replySuffix] = true, true
	}
	tx.Add(&knftables.Table{})
	for _, direction := range policy.Directions {
		leads := &knftables.Map{Name: leadMap(direction), Type: "ipv4_addr : verdict"}
		tx.Add(leads)
		tx.Flush(leads)
	}
	stale := map[string][]string{}
	for _, kind := range []string{"chain", "set"} {
		for _, name := range there[kind] {
			switch {
			case !strings.HasPrefix(name, policyPrefix):
			case !comes[name]:
				stale[kind] = append(stale[kind], name)
			case kind == "set":
				tx.Flush(&knftables.Set{Name: name})
			}
		}
	}
	return stale, nil
}

var setTypes = map[policy.Kind]string{
	policy.KindAddr: "ipv4_addr", policy.KindAddrPort: "ipv4_addr . inet_service", policy.KindAddrPair: "ipv4_addr . ipv4_addr",
}

func addSets(tx *knftables.Transaction, d policy.Delta) {
	for _, s := range d.AddSets {
		tx.Add(&knftables.Set{Name: s.Name, Type: setTypes[s.Kind]})
	}
	for _, change := range []struct {
		elements map[string][]policy.Element
		do       func(knftables.Object)
	}{{d.RemoveElements, tx.Delete}, {d.AddElements, tx.Add}} {
		for name, elements := range change.elements {
			for _, e := range elements {
				change.do(&knftables.Element{Set: name, Key: key(name, e)})
			}
		}
	}
}

func key(set string, e policy.Element) []string {
	switch {
	case set == policy.SelfSet:
		return []string{e.Addr.String(), e.Addr.String()}
	case e.Port != 0:
		return []string{e.Addr.String(), fmt.Sprint(e.Port)}
	}
	return []string{e.Addr.String()}
}

// way is in which fields of a packet a connection's ends are found.
type way struct {
	suffix, source, destination, port string
}

var (
	forth = way{"", "ip saddr", "ip daddr", "dport"}
	back  = way{replySuffix, "ip daddr", "ip saddr", "sport"}
)

func addChain(tx *knftables.Transaction, c policy.Chain) {
	for _, w := range []way{forth, back} {
		chain := &knftables.Chain{Name: c.Name + w.suffix}
		tx.Add(chain)
		tx.Flush(chain)
		for _, a := range c.Allows {
			tx.Add(&knftables.Rule{Chain: chain.Name, Rule: w.rule(c.Direction, a)})
		}
	}
}

func (w way) rule(d policy.Direction, a policy.Allow) string {
	peer := w.source
	if d == policy.Egress {
		peer = w.destination
	}
	var terms []string
	add := func(format string, args ...any) { terms = append(terms, fmt.Sprintf(format, args...)) }
	if a.PeerSet != "" {
		add("%s @%s", peer, a.PeerSet)
	}
	if a.Block.IsValid() && a.Block.Bits() > 0 {
		add("%s %s", peer, a.Block)
	}
	if len(a.Except) > 0 {
		add("%s != { %s }", peer, join(a.Except, netip.Prefix.String))
	}
	protocol := strings.ToLower(string(a.Protocol))
	switch {
	case a.PortSet != "":
		add("%s . %s %s @%s", w.destination, protocol, w.port, a.PortSet)
	case len(a.Ports) > 0:
		add("%s %s { %s }", protocol, w.port, join(a.Ports, portRange))
	case a.Protocol != "":
		add("meta l4proto %s", protocol)
	}
	return strings.Join(append(terms, "accept"), " ")
}

func portRange(r policy.PortRange) string {
	if r.First == r.Last {
		return fmt.Sprint(r.First)
	}
	return fmt.Sprintf("%d-%d", r.First, r.Last)
}

func join[T any](list []T, text func(T) string) string {
	var out []string
	for _, e := range list {
		out = append(out, text(e))
	}
	return strings.Join(out, ", ")
}

// addGroup makes the end of the line for pods with these policies. A connection that was allowed before is told so: both its
// ends get a reset as soon as they send. A new one hears nothing, as in other clusters.
func addGroup(tx *knftables.Transaction, g policy.Group) {
	for _, w := range []way{back, forth} {
		chain := &knftables.Chain{Name: g.Name + w.suffix}
		tx.Add(chain)
		tx.Flush(chain)
		add := func(rule string) { tx.Add(&knftables.Rule{Chain: chain.Name, Rule: rule}) }
		if w == forth {
			add("ct direction reply goto " + g.Name + replySuffix)
		}
		for _, c := range g.Chains {
			add("jump " + c + w.suffix)
		}
		add("meta l4proto tcp ct state established reject with tcp reset")
		add("counter drop")
	}
}

func twice(names []string) []string {
	var out []string
	for _, n := range names {
		out = append(out, n, n+replySuffix)
	}
	return out
}

func removeChains(tx *knftables.Transaction, names []string) {
	for _, n := range names {
		tx.Flush(&knftables.Chain{Name: n})
	}
	for _, n := range names {
		tx.Delete(&knftables.Chain{Name: n})
	}
}

// addBase leads packets to their pods' groups. Accepting in one base chain leaves the other to judge: both ends must allow.
func addBase(tx *knftables.Transaction) {
	strays := []string{}
	for _, end := range []string{forth.source, forth.destination} {
		strays = append(strays, fmt.Sprintf("ct state invalid,untracked %s @%s drop", end, policy.IsolatedSet)) // of no connection
	}
	for i, d := range []policy.Direction{policy.Egress, policy.Ingress} {
		subject, replies := forth.source, back.source // where the pod is that d is for
		if d == policy.Ingress {
			subject, replies = forth.destination, back.destination
		}
		name, kind, hook := "policy-"+d.String(), knftables.FilterType, knftables.ForwardHook
		priority := knftables.BaseChainPriority(fmt.Sprintf("filter+%d", 10+i)) // after what pods must never reach
		chain := &knftables.Chain{Name: name, Type: &kind, Hook: &hook, Priority: &priority}
		tx.Add(chain)
		tx.Flush(chain)
		for _, rule := range slices.Concat(strays, []string{
			"meta l4proto icmp ct state related accept", // errors that belong to a connection, such as a packet too big
			fmt.Sprintf("%s . %s @%s accept", forth.source, forth.destination, policy.SelfSet),
			fmt.Sprintf("ct direction original %s vmap @%s", subject, leadMap(d)),
			fmt.Sprintf("ct direction reply %s vmap @%s", replies, leadMap(d)),
		}) {
			tx.Add(&knftables.Rule{Chain: name, Rule: rule})
		}
	}
}

// tryPolicies writes policies with everything in them that the kernel must know.
func tryPolicies(ctx context.Context) error {
	p, err := NewPolicies()
	if err != nil {
		return err
	}
	pod := netip.MustParseAddr("192.0.2.1") // a documentation address (RFC 5737)
	lead := func(d policy.Direction) policy.Lead {
		return policy.Lead{Direction: d, Addr: pod, Group: "policy/group/try"}
	}
	return p.Apply(ctx, policy.Delta{
		Replace: true,
		AddSets: []policy.Set{{Name: policy.IsolatedSet, Kind: policy.KindAddr}, {Name: policy.SelfSet, Kind: policy.KindAddrPair},
			{Name: "policy/ports/try", Kind: policy.KindAddrPort}},
		AddElements: map[string][]policy.Element{"policy/ports/try": {{Addr: pod, Port: 53}}},
		Chains: []policy.Chain{{Name: "policy/try", Allows: []policy.Allow{{PeerSet: policy.IsolatedSet, Protocol: corev1.ProtocolUDP, PortSet: "policy/ports/try"},
			{Block: netip.PrefixFrom(pod, 24).Masked(), Except: []netip.Prefix{netip.PrefixFrom(pod, 32)}, Protocol: corev1.ProtocolSCTP, Ports: []policy.PortRange{{First: 1, Last: 2}}}}}},
		AddGroups: []policy.Group{{Name: "policy/group/try", Chains: []string{"policy/try"}}},
		AddLeads:  []policy.Lead{lead(policy.Ingress), lead(policy.Egress)},
	})
}
