package eks

import (
	"net/netip"
	"regexp"
	"testing"
)

func TestNames(t *testing.T) {
	ip := netip.MustParseAddr("192.168.184.112")
	for source, pair := range map[string][2]string{
		"facts 2.5: node name":             {NodeName(ip, "ap-northeast-2"), "fargate-ip-192-168-184-112.ap-northeast-2.compute.internal"},
		"facts 2.7: us-east-1":             {NodeName(ip, "us-east-1"), "fargate-ip-192-168-184-112.ec2.internal"},
		"facts 2.7: hostname label":        {Hostname(ip, "eu-west-1"), "ip-192-168-184-112.eu-west-1.compute.internal"},
		"facts 2.5: Scheduled":             {MessageScheduled("default", "web", "n"), "Successfully assigned default/web to n"},
		"facts 4.2: violations are joined": {MessageUnsupported([]string{"a", "b"}), "Pod not supported on Fargate: a, b"},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s: got %q, want %q", source, pair[0], pair[1])
		}
	}
}

func TestProviderID(t *testing.T) {
	shape := regexp.MustCompile(`^aws:///za/[0-9a-f]{10}-[0-9a-f]{32}/node$`)
	if got := ProviderID("za", "bd995fc7-4e47-4578-9e7f-1f074f0e0191", "node"); !shape.MatchString(got) {
		t.Errorf("facts 2.7: %q has not the shape of EKS", got)
	}
}
