package loadbalancer

import (
	"cmp"
	"net/netip"
	"slices"
	"time"

	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/ipam"
)

// pool gives out addresses of public subnets. What an object's status says is the record; until that can be read back, what
// was given is remembered.
type pool struct {
	subnets map[string]*ipam.Allocator
	given   map[netip.Addr]bool
	web     netip.Addr
	had     map[types.UID]netip.Addr // by Services and Gateways
}

// exhausted is what an object without an address is told.
const exhausted = "no public subnet has a free address: add a Subnet with spec.type public, or delete a load balancer"

func newPool() *pool {
	return &pool{subnets: map[string]*ipam.Allocator{}, given: map[netip.Addr]bool{}, had: map[types.UID]netip.Addr{}}
}

// assign fills in Addr, GatewayAddr and Web: those that the objects have keep their addresses, others get one of the public subnet that
// has given the fewest. An address that nobody has any more rests for a minute.
func (p *pool) assign(c *Cluster, subnets []v1alpha1.Subnet, now time.Time) []Problem {
	p.know(subnets)
	taken := map[netip.Addr]bool{}
	keep := func(addr netip.Addr) netip.Addr {
		if !addr.IsValid() || taken[addr] || p.of(addr) == nil {
			return netip.Addr{}
		}
		taken[addr] = true
		return addr
	}
	recorded := func(text string) netip.Addr {
		addr, _ := netip.ParseAddr(text) // what is none is not kept
		return keep(addr)
	}
	var web *networking.Ingress
	for i := range c.Ingresses {
		in := &c.Ingresses[i]
		if !Ours(in, c.Classes) {
			continue
		}
		web = in
		if s := in.Status.LoadBalancer.Ingress; len(s) > 0 && !c.Web.IsValid() {
			c.Web = recorded(s[0].IP)
		}
	}
	if web != nil && !c.Web.IsValid() {
		c.Web = keep(p.web)
	}
	var waiting []holder
	held := holders(c)
	for _, h := range held {
		addr := recorded(h.recorded)
		if !addr.IsValid() {
			addr = keep(p.had[h.object.GetUID()])
		}
		if addr.IsValid() {
			h.set(addr)
		} else {
			waiting = append(waiting, h)
		}
	}
	for addr := range p.given {
		if !taken[addr] {
			p.of(addr).Release(addr, now)
			delete(p.given, addr)
		}
	}
	for addr := range taken {
		p.of(addr).Reserve(addr)
		p.given[addr] = true
	}
	var problems []Problem
	if web != nil && !c.Web.IsValid() {
		if c.Web = p.take(now); !c.Web.IsValid() {
			problems = append(problems, Problem{web, "NoAddress", exhausted})
		}
	}
	for _, h := range waiting {
		addr := p.take(now)
		if !addr.IsValid() {
			problems = append(problems, Problem{h.object, "NoAddress", exhausted})
			continue
		}
		h.set(addr)
	}
	p.web = c.Web
	clear(p.had)
	for _, h := range held {
		if addr := h.get(); addr.IsValid() {
			p.had[h.object.GetUID()] = addr
		}
	}
	return problems
}

// holder is a Service or a Gateway, which has an address of its own.
type holder struct {
	object   client.Object
	recorded string // in its status
	of       map[client.ObjectKey]netip.Addr
}

func (h holder) set(addr netip.Addr) { h.of[client.ObjectKeyFromObject(h.object)] = addr }
func (h holder) get() netip.Addr     { return h.of[client.ObjectKeyFromObject(h.object)] }

func holders(c *Cluster) []holder {
	c.Addr, c.GatewayAddr = map[client.ObjectKey]netip.Addr{}, map[client.ObjectKey]netip.Addr{}
	var out []holder
	for i := range c.Services {
		s := &c.Services[i]
		if wanted, _ := Wants(s, c.Default); !wanted {
			continue
		}
		h := holder{object: s, of: c.Addr}
		if in := s.Status.LoadBalancer.Ingress; len(in) > 0 {
			h.recorded = in[0].IP
		}
		out = append(out, h)
	}
	for i := range c.Gateways {
		g := &c.Gateways[i]
		h := holder{object: g, of: c.GatewayAddr}
		if a := g.Status.Addresses; len(a) > 0 {
			h.recorded = a[0].Value
		}
		out = append(out, h)
	}
	return out
}

// know makes an allocator for each public subnet.
func (p *pool) know(subnets []v1alpha1.Subnet) {
	public := map[string]bool{}
	for _, s := range subnets {
		prefix, err := netip.ParsePrefix(s.Spec.CIDR)
		if s.Spec.Type != v1alpha1.SubnetPublic || err != nil {
			continue
		}
		public[s.Spec.CIDR] = true
		if p.subnets[s.Spec.CIDR] == nil {
			if a, err := ipam.New(prefix); err == nil {
				p.subnets[s.Spec.CIDR] = a
			}
		}
	}
	for cidr := range p.subnets {
		if !public[cidr] {
			delete(p.subnets, cidr)
			for addr := range p.given {
				if prefix := netip.MustParsePrefix(cidr); prefix.Contains(addr) {
					delete(p.given, addr)
				}
			}
		}
	}
}

// of is the allocator that the address belongs to.
func (p *pool) of(addr netip.Addr) *ipam.Allocator {
	for cidr, a := range p.subnets {
		if netip.MustParsePrefix(cidr).Contains(addr) {
			return a
		}
	}
	return nil
}

func (p *pool) take(now time.Time) netip.Addr {
	cidrs := make([]string, 0, len(p.subnets))
	for cidr := range p.subnets {
		cidrs = append(cidrs, cidr)
	}
	slices.SortFunc(cidrs, func(a, b string) int {
		return cmp.Or(cmp.Compare(p.subnets[a].Used(), p.subnets[b].Used()), cmp.Compare(a, b))
	})
	for _, cidr := range cidrs {
		if addr, err := p.subnets[cidr].Take(now); err == nil {
			p.given[addr] = true
			return addr
		}
	}
	return netip.Addr{}
}
