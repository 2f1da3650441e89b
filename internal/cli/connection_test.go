package cli

import (
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-run/berth/internal/policy"
)

func TestConnectionArguments(t *testing.T) {
	web := types.NamespacedName{Namespace: "default", Name: "web"}
	pods := map[types.NamespacedName]policy.Pod{web: {NamespacedName: web, Addr: netip.MustParseAddr("10.0.0.1"),
		Ports: []policy.NamedPort{{Name: "dns", Protocol: corev1.ProtocolUDP, Port: 53}}}}
	for text, want := range map[string]string{
		"web": "default/web", "default/web": "default/web", "10.0.0.1": "default/web", "192.0.2.1": "192.0.2.1",
		"other/web": "there is no pod other/web; give a pod as NAMESPACE/NAME, or an address",
	} {
		end, err := endpoint(pods, "default", text)
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			got = end.String()
		}
		if got != want {
			t.Errorf("endpoint %q is %q, want %q", text, got, want)
		}
	}
	p := pods[web]
	for text, want := range map[string]string{
		"80": "80/TCP", "80/udp": "80/UDP", "7/SCTP": "7/SCTP", "dns/udp": "53/UDP",
		"dns":  `port "dns": neither a number from 1 to 65535 nor the name of a TCP port of default/web`,
		"0":    `port "0": neither a number from 1 to 65535 nor the name of a TCP port of default/web`,
		"8/ip": `port "8/ip": the protocol is tcp, udp or sctp`,
	} {
		port, err := portOf(policy.Endpoint{Pod: &p}, text)
		got := ""
		if err != nil {
			got = err.Error()
		} else {
			got = port.String()
		}
		if got != want {
			t.Errorf("port %q is %q, want %q", text, got, want)
		}
	}
}
