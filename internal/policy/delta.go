package policy

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"
	"strings"
)

// Kind says what the elements of a set are.
type Kind int

// The kinds of sets.
const (
	KindAddr     Kind = iota // an address
	KindAddrPort             // an address and a port
	KindAddrPair             // an address, twice
)

// Element of a set; which fields count is the set's kind.
type Element struct {
	Addr netip.Addr
	Port uint16
}

// set counts for each element how many pods stand for it.
type set struct {
	kind    Kind
	users   int
	holders map[Element]int
	// changed elements are in the filter where they should not be, or the other way about.
	changed  map[Element]bool
	released bool
}

func (s *set) count(e Element, by int) {
	before := s.holders[e] > 0
	s.holders[e] += by
	if s.holders[e] <= 0 {
		delete(s.holders, e)
	}
	if after := s.holders[e] > 0; before != after {
		if s.changed[e] {
			delete(s.changed, e)
		} else {
			s.changed[e] = true
		}
	}
}

// Set of the filter.
type Set struct {
	Name string
	Kind Kind
}

// Chain is a policy in one direction; no Allow: it allows nothing.
type Chain struct {
	Name      string
	Direction Direction
	Allows    []Allow
}

// Group is the chains of the policies that select a pod in one direction. Its name follows from them, so it never changes.
type Group struct {
	Name   string
	Chains []string
}

// Lead is the group to which a local pod's address leads.
type Lead struct {
	Direction Direction
	Addr      netip.Addr
	Group     string
}

// Delta is what a filter must change, all at once. Everything is sorted.
type Delta struct {
	// Replace says that the delta is all that there is: whatever else the filter holds of policies goes.
	Replace        bool
	AddSets        []Set
	AddElements    map[string][]Element // by set
	RemoveElements map[string][]Element
	RemoveSets     []string
	// Chains that are new or to be rewritten.
	Chains       []Chain
	RemoveChains []string
	AddGroups    []Group
	RemoveGroups []string
	// AddLeads also replaces: an address that is in RemoveLeads and in AddLeads leads elsewhere.
	AddLeads    []Lead
	RemoveLeads []Lead
}

// Empty tells whether nothing changes.
func (d *Delta) Empty() bool {
	return !d.Replace && len(d.AddSets)+len(d.AddElements)+len(d.RemoveElements)+len(d.RemoveSets)+len(d.Chains)+len(d.RemoveChains)+
		len(d.AddGroups)+len(d.RemoveGroups)+len(d.AddLeads)+len(d.RemoveLeads) == 0
}

// Take is what changed since the last Take or All.
func (t *Table) Take() Delta {
	d := Delta{AddElements: map[string][]Element{}, RemoveElements: map[string][]Element{}}
	t.takeChains(&d)
	t.takeLeads(&d)
	t.takeSets(&d)
	return d
}

// All is everything, for a filter of which is not known what it holds.
func (t *Table) All() Delta {
	t.released = released{chains: map[string]bool{}, groups: map[string]int{}}
	for _, d := range Directions {
		t.released.leads[d] = map[netip.Addr]string{}
		for addr := range t.groups[d] {
			t.regroup[addr] = true
		}
	}
	for key := range t.policies {
		t.rewrite[key] = true
	}
	for _, s := range t.sets {
		s.released = false
	}
	d := t.Take()
	d.Replace = true
	return d
}

func (t *Table) takeChains(d *Delta) {
	for key := range t.rewrite {
		c := t.policies[key]
		for _, direction := range Directions {
			name := chainName(key, direction)
			switch {
			case c != nil && c.isolates[direction]:
				d.Chains = append(d.Chains, Chain{Name: name, Direction: direction, Allows: c.allows[direction]})
				t.released.chains[name] = true
			case t.released.chains[name]:
				d.RemoveChains = append(d.RemoveChains, name)
				delete(t.released.chains, name)
			}
		}
	}
	clear(t.rewrite)
	slices.SortFunc(d.Chains, func(a, b Chain) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(d.RemoveChains)
}

func (t *Table) takeLeads(d *Delta) {
	touched := map[string]Group{}
	for addr := range t.regroup {
		isolated := 0
		for _, direction := range Directions {
			isolated += t.takeLead(d, direction, addr, touched)
		}
		t.isolate(addr, isolated > 0)
	}
	clear(t.regroup)
	for name, g := range touched {
		switch n := t.released.groups[name]; {
		case n > 0 && g.Chains != nil:
			d.AddGroups = append(d.AddGroups, g)
		case n == 0 && g.Chains == nil:
			d.RemoveGroups = append(d.RemoveGroups, name)
		}
		if t.released.groups[name] == 0 {
			delete(t.released.groups, name)
		}
	}
	slices.SortFunc(d.AddGroups, func(a, b Group) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(d.RemoveGroups)
	slices.SortFunc(d.AddLeads, compareLeads)
	slices.SortFunc(d.RemoveLeads, compareLeads)
}

func compareLeads(a, b Lead) int {
	return cmp.Or(cmp.Compare(a.Direction, b.Direction), a.Addr.Compare(b.Addr))
}

// takeLead brings one address up to date. In touched are groups whose number of leads changed: with chains if the filter does
// not have the group yet.
func (t *Table) takeLead(d *Delta, direction Direction, addr netip.Addr, touched map[string]Group) (isolated int) {
	g := t.group(addr, direction)
	before := t.released.leads[direction][addr]
	if g.Name == "" {
		delete(t.groups[direction], addr)
	} else {
		isolated, t.groups[direction][addr] = 1, g
	}
	if g.Name == before {
		return isolated
	}
	if before != "" {
		d.RemoveLeads = append(d.RemoveLeads, Lead{direction, addr, before})
		t.released.groups[before]--
		if _, seen := touched[before]; !seen {
			touched[before] = Group{}
		}
		delete(t.released.leads[direction], addr)
	}
	if g.Name != "" {
		d.AddLeads = append(d.AddLeads, Lead{direction, addr, g.Name})
		if _, seen := touched[g.Name]; !seen && t.released.groups[g.Name] == 0 {
			touched[g.Name] = g
		}
		t.released.groups[g.Name]++
		t.released.leads[direction][addr] = g.Name
	}
	return isolated
}

func (t *Table) isolate(addr netip.Addr, isolated bool) {
	e := Element{Addr: addr}
	for _, name := range []string{IsolatedSet, SelfSet} {
		s := t.sets[name]
		if is := s.holders[e] > 0; is && !isolated {
			s.count(e, -1)
		} else if !is && isolated {
			s.count(e, +1)
		}
	}
}

func (t *Table) takeSets(d *Delta) {
	for name, s := range t.sets {
		switch {
		case s.users == 0:
			if s.released {
				d.RemoveSets = append(d.RemoveSets, name)
			}
			delete(t.sets, name)
			delete(t.selections, name)
			delete(t.portNames, name)
			continue
		case !s.released:
			d.AddSets = append(d.AddSets, Set{name, s.kind})
			d.AddElements[name] = slices.Collect(maps.Keys(s.holders))
		default:
			for e := range s.changed {
				if s.holders[e] > 0 {
					d.AddElements[name] = append(d.AddElements[name], e)
				} else {
					d.RemoveElements[name] = append(d.RemoveElements[name], e)
				}
			}
		}
		s.released = true
		clear(s.changed)
		if len(d.AddElements[name]) == 0 {
			delete(d.AddElements, name)
		}
		slices.SortFunc(d.AddElements[name], compareElements)
		slices.SortFunc(d.RemoveElements[name], compareElements)
	}
	slices.SortFunc(d.AddSets, func(a, b Set) int { return strings.Compare(a.Name, b.Name) })
	slices.Sort(d.RemoveSets)
}

func compareElements(a, b Element) int {
	return cmp.Or(a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port))
}
