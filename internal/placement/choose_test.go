package placement

import (
	"errors"
	"math"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
)

// needing makes the pod need one of these requirements of its node.
func needing(in *Input, requirements ...corev1.NodeSelectorRequirement) {
	in.Pod.Spec.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
		NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: requirements}}}}}
}

func memory(used string) corev1.ResourceList {
	return corev1.ResourceList{corev1.ResourceMemory: resource.MustParse(used)}
}

func TestSelectorsAndHosts(t *testing.T) {
	var selector *NodeSelectorError
	var capacity *NoCapacityError
	var isolation *IsolationError
	tests := map[string]struct {
		change func(*Input)
		want   string
		err    any
	}{
		"facts 2.3: required affinity to a zone": {func(in *Input) {
			needing(in, corev1.NodeSelectorRequirement{Key: "failure-domain.beta.kubernetes.io/zone", Operator: corev1.NodeSelectorOpIn, Values: []string{"zc"}})
		}, "c", nil},
		"facts 2.3: required affinity away from zones": {func(in *Input) {
			needing(in, corev1.NodeSelectorRequirement{Key: corev1.LabelTopologyZone, Operator: corev1.NodeSelectorOpNotIn, Values: []string{"zb", "zc"}})
		}, "a", nil},
		"facts 2.7: labels that every node has": {func(in *Input) {
			in.Pod.Spec.NodeSelector = map[string]string{corev1.LabelOSStable: "linux", eks.ComputeTypeKey: eks.ComputeTypeFargate, corev1.LabelTopologyRegion: "r"}
		}, "b", nil},
		"facts 2.7: there is no instance type": {func(in *Input) {
			needing(in, corev1.NodeSelectorRequirement{Key: corev1.LabelInstanceTypeStable, Operator: corev1.NodeSelectorOpExists})
		}, "", &selector},
		"a host by its label": {func(in *Input) {
			in.Hosts = append(in.Hosts, in.Hosts[0])
			in.Hosts[1].Name, in.Hosts[1].Zones = "h2", []string{"za"}
			in.Pod.Spec.NodeSelector = map[string]string{v1alpha1.LabelHost: "h2"}
		}, "a", nil},
		"a selector that cannot be read": {func(in *Input) {
			needing(in, corev1.NodeSelectorRequirement{Key: "k", Operator: "Guess"})
		}, "", &selector},
		"a zone whose subnet is full": {func(in *Input) {
			in.Pod.Spec.NodeSelector = map[string]string{corev1.LabelTopologyZone: "za"}
			in.Subnets[0].FreeIPs = 0
		}, "", &capacity},
		"most free addresses before the name":  {func(in *Input) { in.Subnets[2].FreeIPs = 11 }, "c", nil},
		"a zone without a host is passed over": {func(in *Input) { in.Hosts[0].Zones = []string{"za"} }, "a", nil},
		"a host that is not ready":             {func(in *Input) { in.Hosts[0].Ready = false }, "", &capacity},
		"an isolation that no host proved":     {func(in *Input) { in.Isolation = v1alpha1.IsolationMicroVM }, "", &isolation},
		"an exact fit": {func(in *Input) {
			in.Hosts[0].Capacity, in.Hosts[0].Used = memory("1Gi"), memory("512Mi")
		}, "b", nil},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Choose(input(test.change), "r")
			if test.err == nil && (err != nil || got.Subnet != test.want) {
				t.Fatalf("got %+v, %v, want subnet %s", got, err, test.want)
			}
			if test.err != nil && !errors.As(err, test.err) {
				t.Fatalf("got %+v, %v, want %T", got, err, test.err)
			}
		})
	}
}

func TestLeastLoadedHost(t *testing.T) {
	host := func(name, capacity, used string) HostState {
		return HostState{Name: name, Zones: []string{"zb"}, Ready: true, Isolations: []v1alpha1.Isolation{v1alpha1.IsolationGVisor}, Capacity: memory(capacity), Used: memory(used)}
	}
	tests := map[string]struct {
		hosts []HostState
		want  string
	}{
		"by the share of memory in use": {[]HostState{host("h1", "4Gi", "2Gi"), host("h2", "16Gi", "4Gi")}, "h2"},
		"then by name":                  {[]HostState{host("h2", "4Gi", "1Gi"), host("h1", "4Gi", "1Gi")}, "h1"},
		"only with room":                {[]HostState{host("h1", "600Mi", "100Mi"), host("h2", "4Gi", "3Gi")}, "h2"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Choose(input(func(in *Input) { in.Hosts = test.hosts }), "r")
			if err != nil || got.Host != test.want {
				t.Fatalf("got %+v, %v, want host %s", got, err, test.want)
			}
		})
	}
}

// TestErrorsSayWhatUsersKnow: the text of Amazon EKS first, then what is short where.
func TestErrorsSayWhatUsersKnow(t *testing.T) {
	full := input(func(in *Input) {
		for i := range in.Subnets {
			in.Subnets[i].FreeIPs = 0
		}
	})
	short := input(func(in *Input) { in.Size.Memory = resource.MustParse("2Gi") })
	selector := input(func(in *Input) { in.Pod.Spec.NodeSelector = map[string]string{"disk": "ssd"} })
	tests := map[string]struct {
		in   Input
		want []string
	}{
		"facts 2.6: MatchNodeSelector":          {selector, []string{"MatchNodeSelector failed: Fargate profile web cannot satisfy pod's node selector/affinity requirements"}},
		"facts 2.6: no capacity, host named":    {short, []string{eks.MessageNoCapacity, "h1", "memory", "1Gi", "2Gi"}},
		"facts 2.6: no capacity, subnets named": {full, []string{eks.MessageNoCapacity, "subnet a", "subnet b", "subnet c", "no free address"}},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			_, err := Choose(test.in, "r")
			if err == nil {
				t.Fatal("want an error")
			}
			for _, part := range test.want {
				if !strings.Contains(err.Error(), part) {
					t.Errorf("%q lacks %q", err, part)
				}
			}
		})
	}
}

// judged is a Topology with fixed answers.
type judged struct {
	why    map[Spot]string
	scores map[Spot]int64
}

func (j judged) Filter(_ *corev1.Pod, spots []Spot) (out []string, err error) {
	for _, s := range spots {
		out = append(out, j.why[s])
	}
	return out, nil
}

func (j judged) Score(_ *corev1.Pod, spots []Spot) (out []int64, err error) {
	for _, s := range spots {
		if j.why[s] != "" {
			return nil, errors.New("asked to score a spot that is forbidden")
		}
		out = append(out, j.scores[s])
	}
	return out, nil
}

// TestTopology: what topology forbids is left out; what it prefers comes before the fewest pods; lack of room comes first in words.
func TestTopology(t *testing.T) {
	const no = "node(s) didn't match pod topology spread constraints"
	var topology *TopologyError
	var capacity *NoCapacityError
	tests := map[string]struct {
		change func(*Input)
		want   string
		err    any
		words  string
	}{
		"a zone is forbidden": {func(in *Input) { in.Topology = judged{why: map[Spot]string{{"zb", "h1"}: no}} }, "c", nil, ""},
		"a zone is preferred": {func(in *Input) { in.Topology = judged{scores: map[Spot]int64{{"za", "h1"}: 1}} }, "a", nil, ""},
		"no preference":       {func(in *Input) { in.Topology = judged{} }, "b", nil, ""},
		"the preferred one full": {func(in *Input) {
			in.Topology, in.Subnets[0].FreeIPs = judged{scores: map[Spot]int64{{"za", "h1"}: 1}}, 0
		}, "b", nil, ""},
		"all are forbidden": {func(in *Input) {
			in.Topology = judged{why: map[Spot]string{{"za", "h1"}: no, {"zb", "h1"}: no, {"zc", "h1"}: no}}
		}, "", &topology, "Fargate profile web cannot satisfy pod's topology spread constraints or pod affinity requirements (zone za, host h1: " + no},
		"what is not forbidden is full": {func(in *Input) {
			in.Topology, in.Subnets[2].FreeIPs = judged{why: map[Spot]string{{"za", "h1"}: no, {"zb", "h1"}: no}}, 0
		}, "", &capacity, "subnet c has no free address (0 of 11); zone za, host h1: " + no},
		"all that can run the isolation are forbidden": {func(in *Input) {
			in.Topology, in.Isolation = judged{why: map[Spot]string{{"za", "h2"}: no}}, v1alpha1.IsolationMicroVM
			in.Hosts = append(in.Hosts, proving(in.Hosts[0], v1alpha1.AcceleratorKVM, ""))
			in.Hosts[1].Name, in.Hosts[1].Zones = "h2", []string{"za"}
		}, "", &topology, "requirements (zone za, host h2: " + no},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got, err := Choose(input(test.change), "r")
			if test.err == nil && (err != nil || got.Subnet != test.want) {
				t.Fatalf("got %+v, %v, want subnet %s", got, err, test.want)
			}
			if test.err != nil && (!errors.As(err, test.err) || !strings.Contains(err.Error(), test.words)) {
				t.Fatalf("got %+v, %v, want %T with %q", got, err, test.err, test.words)
			}
		})
	}
}

// TestSameInputSameAnswer: an event is repeated with a count only while its text stays the same.
func TestSameInputSameAnswer(t *testing.T) {
	in := input(func(in *Input) {
		in.Hosts[0].Capacity = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("0"), corev1.ResourceMemory: resource.MustParse("0"), corev1.ResourceEphemeralStorage: resource.MustParse("0")}
	})
	_, first := Choose(in, "r")
	if first == nil {
		t.Fatal("want an error")
	}
	for range 100 {
		if _, err := Choose(in, "r"); err == nil || err.Error() != first.Error() {
			t.Fatalf("two answers to one input:\n%v\n%v", first, err)
		}
	}
}

// FuzzChoose: a choice always has an address, a ready host of the zone and room; the input is left as it was.
func FuzzChoose(f *testing.F) {
	f.Add(int64(512<<20), int64(1<<30), int64(0), 1, 0, true, "za")
	f.Add(int64(math.MaxInt64), int64(math.MaxInt64), int64(-1), -1, -5, true, "")
	f.Fuzz(func(t *testing.T, need, capacity, used int64, free, pods int, ready bool, zone string) {
		in := input(func(in *Input) {
			in.Size.Memory = *resource.NewQuantity(need, resource.BinarySI)
			in.Subnets = []SubnetState{{"a", zone, free, 11, pods}, {"b", "zb", 0, 11, 0}}
			in.Hosts[0].Ready = ready
			in.Hosts[0].Capacity = corev1.ResourceList{corev1.ResourceMemory: *resource.NewQuantity(capacity, resource.BinarySI)}
			in.Hosts[0].Used = corev1.ResourceList{corev1.ResourceMemory: *resource.NewQuantity(used, resource.BinarySI)}
		})
		got, err := Choose(in, "r")
		if in.Subnets[0].Name != "a" || in.Subnets[1].Name != "b" {
			t.Fatal("the caller's subnets were changed")
		}
		if err != nil {
			return
		}
		left := resource.NewQuantity(capacity, resource.BinarySI)
		left.Sub(*resource.NewQuantity(used, resource.BinarySI))
		if got.Subnet != "a" || free <= 0 || !ready || left.Cmp(in.Size.Memory) < 0 || got.Zone != zone {
			t.Fatalf("got %+v", got)
		}
	})
}
