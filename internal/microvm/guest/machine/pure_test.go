package machine

import (
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

func TestParseOptions(t *testing.T) {
	for name, test := range map[string]struct {
		options []string
		flags   uintptr
		data    string
	}{
		"none":              {},
		"flags only":        {[]string{"ro", "nosuid", "noexec"}, unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NOEXEC, ""},
		"data only":         {[]string{"size=1m", "mode=1777"}, 0, "size=1m,mode=1777"},
		"what is so anyway": {[]string{"defaults", "rw", "noatime", "size=1m"}, unix.MS_NOATIME, "size=1m"},
	} {
		t.Run(name, func(t *testing.T) {
			if flags, data := parseOptions(test.options); flags != test.flags || data != test.data {
				t.Errorf("parseOptions(%q) = %#x, %q; want %#x, %q", test.options, flags, data, test.flags, test.data)
			}
		})
	}
}

func TestMemoryRoom(t *testing.T) {
	const meminfo = "MemTotal:         420376 kB\nMemFree:          353652 kB\nMemAvailable:     327140 kB\nHugePages_Total:       0\nAnonPages:          3348 kB\n"
	if got, err := memoryRoom(meminfo); got != (327140+3348)<<10 || err != nil {
		t.Errorf("memoryRoom = %d, %v", got, err)
	}
	if _, err := memoryRoom("MemTotal: 420376 kB\n"); err == nil {
		t.Error("a kernel that does not tell is no error")
	}
}

func TestLimitSize(t *testing.T) {
	for name, test := range map[string]struct{ options, want string }{
		"more than there is": {"noexec,size=1048577,mode=1777", "noexec,size=1048576,mode=1777"},
		"less":               {"size=4096", "size=4096"},
		"a part of all":      {"size=50%", "size=50%"},
		"no size":            {"noexec", "noexec"},
	} {
		t.Run(name, func(t *testing.T) {
			if got := strings.Join(limitSize(strings.Split(test.options, ","), 1<<20), ","); got != test.want {
				t.Errorf("limitSize(%s) = %s, want %s", test.options, got, test.want)
			}
		})
	}
}

func TestSysctlPath(t *testing.T) {
	for name, want := range map[string]string{
		"net.ipv4.ip_forward":            "/proc/sys/net/ipv4/ip_forward",
		"net/ipv4/conf/eth0.1/rp_filter": "/proc/sys/net/ipv4/conf/eth0.1/rp_filter",
		"net.ipv4.conf.eth0/1.rp_filter": "/proc/sys/net/ipv4/conf/eth0.1/rp_filter",
		"/../../etc/passwd":              "/proc/sys/etc/passwd",
	} {
		if got := sysctlPath(name); got != want {
			t.Errorf("sysctlPath(%q) = %q, want %q", name, got, want)
		}
	}
}

func TestParseRoute(t *testing.T) {
	for name, test := range map[string]struct {
		route guestapi.Route
		want  string // the error's, empty if there is none
	}{
		"to a gateway":         {guestapi.Route{Destination: "0.0.0.0/0", Gateway: "169.254.1.1", Source: "10.0.0.5"}, ""},
		"on the link":          {guestapi.Route{Destination: "169.254.1.1/32"}, ""},
		"IPv6":                 {guestapi.Route{Destination: "::/0", Gateway: "fe80::1"}, ""},
		"no prefix length":     {guestapi.Route{Destination: "10.0.0.1"}, "destination"},
		"gateway is a name":    {guestapi.Route{Destination: "0.0.0.0/0", Gateway: "gw"}, "gateway"},
		"source is no address": {guestapi.Route{Destination: "0.0.0.0/0", Source: "10.0.0"}, "source"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parseRoute(test.route)
			if (err == nil) != (test.want == "") || err != nil && !strings.Contains(err.Error(), test.want) {
				t.Errorf("parseRoute(%+v) fails with %v, want %q", test.route, err, test.want)
			}
		})
	}
}

func TestInside(t *testing.T) {
	for path, want := range map[string]bool{
		"/run/berth/mounts/a": true, "/run/berth/mounts/a/b": true, "/run/berth/mounts": false, "/run/berth/mounts/": false,
		"/run/berth/mounts/../x": false, "/run/berth/mountsx": false, "relative": false,
	} {
		if got := inside(path, guestapi.MountsDir) == nil; got != want {
			t.Errorf("inside(%q) is %v, want %v", path, got, want)
		}
	}
}

func TestBufferLimits(t *testing.T) {
	for pages, want := range map[uint64][2]string{
		0:       {"96 128 192", "96 128 192"},
		1 << 20: {"49152 65536 98304", "98304 131072 196608"},
	} {
		if tcp, udp := bufferLimits(pages); tcp != want[0] || udp != want[1] {
			t.Errorf("bufferLimits(%d) = %q, %q; want %q", pages, tcp, udp, want)
		}
	}
}
