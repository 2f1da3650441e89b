package policy

import (
	"net/netip"
	"slices"
	"testing"
)

// filter is a packet filter that does as it is told; what a real one would refuse fails the test.
type filter struct {
	t      *testing.T
	sets   map[string]map[Element]bool
	chains map[string]Chain
	groups map[string]Group
	leads  [len(Directions)]map[netip.Addr]string
}

func newFilter(t *testing.T) *filter {
	return &filter{t: t, sets: map[string]map[Element]bool{}, chains: map[string]Chain{}, groups: map[string]Group{},
		leads: [len(Directions)]map[netip.Addr]string{{}, {}}}
}

func (f *filter) must(ok bool, format string, args ...any) {
	f.t.Helper()
	if !ok {
		f.t.Fatalf(format, args...)
	}
}

func (f *filter) apply(d Delta) {
	f.t.Helper()
	if d.Replace {
		*f = *newFilter(f.t)
	}
	for _, s := range d.AddSets {
		f.must(f.sets[s.Name] == nil, "set %s is there already", s.Name)
		f.sets[s.Name] = map[Element]bool{}
	}
	for name, elements := range d.RemoveElements {
		for _, e := range elements {
			f.must(f.sets[name][e], "%v is not in set %s", e, name)
			delete(f.sets[name], e)
		}
	}
	for name, elements := range d.AddElements {
		for _, e := range elements {
			f.must(f.sets[name] != nil && !f.sets[name][e], "%v cannot go into set %s", e, name)
			f.sets[name][e] = true
		}
	}
	for _, c := range d.Chains {
		f.chains[c.Name] = c
	}
	for _, g := range d.AddGroups {
		f.must(f.groups[g.Name].Chains == nil, "group %s is there already", g.Name)
		f.groups[g.Name] = g
	}
	for _, l := range d.RemoveLeads {
		f.must(f.leads[l.Direction][l.Addr] == l.Group, "%v does not lead to %s", l.Addr, l.Group)
		delete(f.leads[l.Direction], l.Addr)
	}
	for _, l := range d.AddLeads {
		f.must(f.leads[l.Direction][l.Addr] == "", "%v leads elsewhere", l.Addr)
		f.leads[l.Direction][l.Addr] = l.Group
	}
	for _, name := range d.RemoveGroups {
		delete(f.groups, name)
	}
	for _, name := range d.RemoveChains {
		delete(f.chains, name)
	}
	for _, name := range d.RemoveSets {
		delete(f.sets, name)
	}
	f.consistent()
}

// consistent checks that nothing refers to what is not there and nothing is there that is not referred to.
func (f *filter) consistent() {
	f.t.Helper()
	used := map[string]bool{IsolatedSet: true, SelfSet: true}
	for _, leads := range f.leads {
		for addr, group := range leads {
			f.must(f.groups[group].Chains != nil, "%v leads to group %s, which is not there", addr, group)
			used[group] = true
		}
	}
	for _, g := range f.groups {
		f.must(used[g.Name], "group %s is left behind", g.Name)
		for _, name := range g.Chains {
			_, ok := f.chains[name]
			f.must(ok, "group %s needs chain %s, which is not there", g.Name, name)
		}
	}
	for _, c := range f.chains {
		for _, a := range c.Allows {
			for _, set := range []string{a.PeerSet, a.PortSet} {
				f.must(set == "" || f.sets[set] != nil, "chain %s needs set %s, which is not there", c.Name, set)
				used[set] = true
			}
		}
	}
	for name := range f.sets {
		f.must(used[name], "set %s is left behind", name)
	}
}

func (f *filter) allows(from, to netip.Addr, port Port) bool {
	if from == to && f.sets[SelfSet][Element{Addr: from}] {
		return true
	}
	return f.side(Egress, from, to, to, port) && f.side(Ingress, to, from, to, port)
}

func (f *filter) side(d Direction, subject, peer, destination netip.Addr, port Port) bool {
	group, isolated := f.leads[d][subject]
	if !isolated {
		return true
	}
	for _, chain := range f.groups[group].Chains {
		f.must(f.chains[chain].Direction == d, "chain %s is for the other direction", chain)
		for _, a := range f.chains[chain].Allows {
			if f.matches(a, peer, destination, port) {
				return true
			}
		}
	}
	return false
}

func (f *filter) matches(a Allow, peer, destination netip.Addr, port Port) bool {
	within := func(p netip.Prefix) bool { return p.Contains(peer) }
	switch {
	case a.PeerSet != "" && !f.sets[a.PeerSet][Element{Addr: peer}],
		a.Block.IsValid() && (!a.Block.Contains(peer) || slices.ContainsFunc(a.Except, within)),
		a.Protocol != "" && a.Protocol != port.Protocol,
		a.PortSet != "" && !f.sets[a.PortSet][Element{Addr: destination, Port: port.Number}],
		len(a.Ports) > 0 && !slices.ContainsFunc(a.Ports, func(r PortRange) bool { return r.First <= port.Number && port.Number <= r.Last }):
		return false
	}
	return true
}
