package ipam

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

// Size is how many addresses of a subnet can be given.
func Size(cidr netip.Prefix) int { return 1<<(32-cidr.Bits()) - reservedFirst - 1 }

// Ranges writes addresses down in order: 10.90.0.4-10.90.0.9, and alone what has no neighbour.
func Ranges(addrs []netip.Addr) []string {
	sorted := slices.Compact(slices.SortedFunc(slices.Values(addrs), netip.Addr.Compare))
	var out []string
	for i := 0; i < len(sorted); {
		last := i
		for last+1 < len(sorted) && sorted[last+1] == sorted[last].Next() {
			last++
		}
		if text := sorted[i].String(); last == i {
			out = append(out, text)
		} else {
			out = append(out, text+"-"+sorted[last].String())
		}
		i = last + 1
	}
	return out
}

// ParseRanges is the opposite of Ranges. What lies outside the subnet is an error.
func ParseRanges(cidr netip.Prefix, ranges []string) ([]netip.Addr, error) {
	var out []netip.Addr
	for _, text := range ranges {
		first, last, found := strings.Cut(text, "-")
		if !found {
			last = first
		}
		from, err := netip.ParseAddr(first)
		if err != nil {
			return nil, fmt.Errorf("%q is not a range of addresses: %w", text, err)
		}
		to, err := netip.ParseAddr(last)
		if err != nil {
			return nil, fmt.Errorf("%q is not a range of addresses: %w", text, err)
		}
		if !cidr.Contains(from) || !cidr.Contains(to) {
			return nil, fmt.Errorf("range %s is not within %s", text, cidr)
		}
		for addr := from; addr.Compare(to) <= 0; addr = addr.Next() {
			out = append(out, addr)
		}
	}
	return out, nil
}
