package hostagent

import (
	"context"
	"net/netip"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	kruntime "k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/hostagent/network"
)

type subnetsSeen struct{ seen []network.Subnet }

func (s *subnetsSeen) SetSubnets(_ context.Context, subnets []network.Subnet) error {
	s.seen = subnets
	return nil
}

// TestSubnetOfTheHostsNetwork: one that overlaps a network of the host is kept from the kernel though its condition does not say so yet.
func TestSubnetOfTheHostsNetwork(t *testing.T) {
	scheme := kruntime.NewScheme()
	if err := v1alpha1.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	subnet := func(name, cidr string) *v1alpha1.Subnet {
		return &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.SubnetSpec{CIDR: cidr, Zone: "a"}}
	}
	kernel := &subnetsSeen{}
	s := &subnets{client: fake.NewClientBuilder().WithScheme(scheme).WithObjects(subnet("good", "10.90.0.0/24"), subnet("same", "192.168.7.0/24"), subnet("wider", "192.168.0.0/20")).Build(),
		net: kernel, taken: func() ([]netip.Prefix, error) { return []netip.Prefix{netip.MustParsePrefix("192.168.7.0/24")}, nil }}
	known, err := s.update(t.Context(), s.client)
	if err != nil || len(known) != 1 || len(kernel.seen) != 1 || kernel.seen[0].CIDR != known["good"].CIDR {
		t.Errorf("the host knows %v, its kernel %v, %v; want the good one only", known, kernel.seen, err)
	}
}
