package ipam

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestRanges(t *testing.T) {
	cidr := netip.MustParsePrefix("10.90.0.0/19")
	for text, want := range map[string]string{
		"":                                 "",
		"10.90.0.5":                        "10.90.0.5",
		"10.90.0.6 10.90.0.4 10.90.0.5":    "10.90.0.4-10.90.0.6",
		"10.90.0.255 10.90.1.0 10.90.0.9":  "10.90.0.9 10.90.0.255-10.90.1.0",
		"10.90.0.4 10.90.0.4 10.90.31.254": "10.90.0.4 10.90.31.254",
	} {
		var addrs []netip.Addr
		for _, f := range strings.Fields(text) {
			addrs = append(addrs, netip.MustParseAddr(f))
		}
		got := Ranges(addrs)
		if strings.Join(got, " ") != want {
			t.Errorf("%q is written %q, want %q", text, got, want)
		}
		back, err := ParseRanges(cidr, got)
		slices.SortFunc(addrs, netip.Addr.Compare)
		if addrs = slices.Compact(addrs); err != nil || !slices.Equal(back, addrs) {
			t.Errorf("%q is read back as %v, %v", got, back, err)
		}
	}
	for _, wrong := range []string{"10.91.0.4", "10.90.0.4-10.200.0.1", "x", "10.90.0.4-y"} {
		if _, err := ParseRanges(cidr, []string{wrong}); err == nil {
			t.Errorf("%q is taken for a range of %s", wrong, cidr)
		}
	}
}
