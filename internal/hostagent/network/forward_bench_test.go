package network

import (
	"io"
	"net"
	"testing"

	"github.com/berth-run/berth/internal/policy"
)

// BenchmarkForward sends a byte to another pod and back: without policies, and when 1,000 pods' rules and 100 policies are in
// the kernel, those of both pods among them. The difference is what the rules cost that a packet is judged by; what the
// others cost is nothing, if it is small.
func BenchmarkForward(b *testing.B) {
	s := newSite(b, "client", "server")
	var listener net.Listener
	s.at("server", func() {
		var err error
		listener, err = net.Listen("tcp", s.addrs["server"]+":80")
		s.must(err)
	})
	b.Cleanup(func() { listener.Close() })
	go func() {
		for {
			c, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	connect := func() (c net.Conn) {
		s.at("client", func() {
			var err error
			c, err = net.Dial("tcp", s.addrs["server"]+":80")
			s.must(err)
		})
		return c
	}
	measure := func(name string) {
		c := connect()
		b.Run(name, func(b *testing.B) {
			one := []byte{0}
			for b.Loop() {
				if _, err := c.Write(one); err != nil {
					b.Fatal(err)
				}
				if _, err := io.ReadFull(c, one); err != nil {
					b.Fatal(err)
				}
			}
		})
		c.Close()
	}
	measure("NoPolicy")
	table := policy.NewTable()
	for i := range benchPods {
		p := benchPod(i, i%benchTiers)
		if p.Addr.String() == s.addrs["server"] {
			p = benchPod(i, 3) // the policies of all pods allow egress to this tier, and ingress from all
		}
		table.SetPod(p)
	}
	for i := range benchPolicies {
		s.must(table.SetPolicy(benchPolicy(i, 80)))
	}
	s.must(s.policies.Apply(b.Context(), table.All()))
	measure("ThousandPods")
}
