// Package placement chooses subnet, zone, host and isolation for a pod. Pure: it sees a snapshot and decides.
package placement

import (
	"cmp"
	"fmt"
	"runtime"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
)

// SubnetState is a subnet as the scheduler sees it now.
type SubnetState struct {
	Name, Zone string
	// FreeIPs is how many of its Size addresses can be taken now.
	FreeIPs, Size int
	// Pods of the profile that are in it now.
	Pods int
}

// HostState is a host as the scheduler sees it now. A resource that Capacity does not list is not limited.
type HostState struct {
	Name           string
	Zones          []string
	Ready          bool
	Capacity, Used corev1.ResourceList
	Isolations     []v1alpha1.Isolation
	// Probes say why the host can run an isolation or cannot.
	Probes []v1alpha1.IsolationProbe
	Pods   int
}

// Input is everything that a choice depends on.
type Input struct {
	Pod  *corev1.Pod
	Size v1alpha1.Size
	// Isolation that is asked for, and by whom.
	Isolation   v1alpha1.Isolation
	IsolationBy string
	ProfileName string
	Subnets     []SubnetState
	Hosts       []HostState
	// Topology judges by other pods; nil: nothing is to be judged.
	Topology Topology
}

// Choice is where a pod goes.
type Choice struct {
	Subnet, Zone, Host string
	Isolation          v1alpha1.Isolation
}

// NodeSelectorError says that no node of the profile can have the labels that the pod asks for.
type NodeSelectorError struct{ Profile string }

func (e *NodeSelectorError) Error() string { return eks.MessageNodeSelector(e.Profile) }

// WaitsFor is what would let the pod run.
func (e *NodeSelectorError) WaitsFor() string {
	return "a subnet of profile " + e.Profile + " whose nodes suit the pod's node selector and affinity"
}

// NoCapacityError says that no host or subnet has room now; Details say which is short of what.
type NoCapacityError struct{ Details []string }

func (e *NoCapacityError) Error() string { return message(eks.MessageNoCapacity, e.Details) }

// WaitsFor is what would let the pod run.
func (e *NoCapacityError) WaitsFor() string { return "room on a host and an address in a subnet" }

// Labels that the node of a pod in the zone, on the host, has, as far as selectors can know them beforehand (facts 2.7).
func Labels(region, zone, host string) map[string]string {
	labels := map[string]string{
		eks.ComputeTypeKey:                  eks.ComputeTypeFargate,
		corev1.LabelOSStable:                "linux",
		corev1.LabelArchStable:              runtime.GOARCH,
		"beta.kubernetes.io/os":             "linux",
		"beta.kubernetes.io/arch":           runtime.GOARCH,
		corev1.LabelTopologyRegion:          region,
		corev1.LabelTopologyZone:            zone,
		corev1.LabelFailureDomainBetaRegion: region,
		corev1.LabelFailureDomainBetaZone:   zone,
	}
	if host != "" {
		labels[v1alpha1.LabelHost] = host
	}
	return labels
}

// candidate is a subnet and a host of its zone whose node suits the pod's node selector and affinity.
type candidate struct {
	subnet    SubnetState
	host      HostState
	isolation v1alpha1.Isolation
	score     int64
}

func (c candidate) spot() Spot { return Spot{c.subnet.Zone, c.host.Name} }

// Choose picks, of the subnets and hosts that have room, that can run the isolation and that the pod's node selector, node
// affinity, topology spread constraints and pod affinity allow, those that its preferences score best; then the subnet with
// the fewest pods of the profile, then the most free addresses, then the least loaded host. Errors: *NodeSelectorError,
// *IsolationError, *TopologyError, *NoCapacityError, or what Input.Topology fails with.
func Choose(in Input, region string) (Choice, error) {
	if len(in.Subnets) == 0 {
		return Choice{}, &NoCapacityError{[]string{"profile " + in.ProfileName + " has no subnet"}}
	}
	candidates, short, err := suitable(in, region)
	if err != nil {
		return Choice{}, err
	}
	candidates, cannot, err := isolated(in, candidates)
	if err != nil {
		return Choice{}, err
	}
	candidates, banned, err := allowed(in, candidates)
	if err != nil {
		return Choice{}, err
	}
	roomy, lacking := withRoom(in, candidates)
	if len(roomy) == 0 {
		if len(candidates) == 0 && len(banned) > 0 {
			return Choice{}, &TopologyError{in.ProfileName, sorted(banned)}
		}
		return Choice{}, &NoCapacityError{sorted(slices.Concat(short, cannot, lacking, banned))}
	}
	if err := score(in, roomy); err != nil {
		return Choice{}, err
	}
	best := slices.MinFunc(roomy, compare)
	return Choice{best.subnet.Name, best.subnet.Zone, best.host.Name, best.isolation}, nil
}

// suitable pairs each subnet with the hosts of its zone, where the pod's node selector and affinity suit; short says what
// there is no host for.
func suitable(in Input, region string) (out []candidate, short []string, err error) {
	affinity := nodeaffinity.GetRequiredNodeAffinity(in.Pod)
	suits := func(zone, host string) bool {
		ok, err := affinity.Match(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Labels: Labels(region, zone, host)}})
		return err == nil && ok
	}
	met := false
	for _, s := range in.Subnets {
		served := false
		for _, h := range in.Hosts {
			if !slices.Contains(h.Zones, s.Zone) {
				continue
			}
			served = true
			if suits(s.Zone, h.Name) {
				met = true
				out = append(out, candidate{subnet: s, host: h})
			}
		}
		if served || !suits(s.Zone, "") {
			continue
		}
		met = true
		for _, h := range in.Hosts {
			short = append(short, fmt.Sprintf("host %s does not serve zone %s", h.Name, s.Zone))
		}
		if len(in.Hosts) == 0 {
			short = append(short, "no host has joined the cluster")
		}
	}
	if !met {
		return nil, nil, &NodeSelectorError{in.ProfileName}
	}
	return out, short, nil
}

// allowed leaves out what spread constraints and pod affinity forbid, and says why.
func allowed(in Input, candidates []candidate) (out []candidate, banned []string, err error) {
	if in.Topology == nil {
		return candidates, nil, nil
	}
	spots := in.spots()
	reasons, err := in.Topology.Filter(in.Pod, spots)
	if err != nil {
		return nil, nil, fmt.Errorf("look at the pod's spread constraints and pod affinity: %w", err)
	}
	why := map[Spot]string{}
	for i, s := range spots {
		why[s] = reasons[i]
	}
	for _, c := range candidates {
		if reason := why[c.spot()]; reason != "" {
			banned = append(banned, fmt.Sprintf("zone %s, host %s: %s", c.subnet.Zone, c.host.Name, reason))
			continue
		}
		out = append(out, c)
	}
	return out, banned, nil
}

// spots are all that the profile has, whether they suit the pod or not.
func (in Input) spots() []Spot {
	var out []Spot
	for _, s := range in.Subnets {
		for _, h := range in.Hosts {
			if spot := (Spot{s.Zone, h.Name}); slices.Contains(h.Zones, s.Zone) && !slices.Contains(out, spot) {
				out = append(out, spot)
			}
		}
	}
	return out
}

// withRoom leaves out what has no address or no room, and says what is short where.
func withRoom(in Input, candidates []candidate) (out []candidate, short []string) {
	for _, c := range candidates {
		if c.subnet.FreeIPs <= 0 {
			short = append(short, fmt.Sprintf("subnet %s has no free address (0 of %d)", c.subnet.Name, c.subnet.Size))
			continue
		}
		if why := lacks(in.Size, c.host); why != "" {
			short = append(short, why)
			continue
		}
		out = append(out, c)
	}
	return out, short
}

func score(in Input, candidates []candidate) error {
	if in.Topology == nil {
		return nil
	}
	var spots []Spot
	for _, c := range candidates {
		if !slices.Contains(spots, c.spot()) {
			spots = append(spots, c.spot())
		}
	}
	scores, err := in.Topology.Score(in.Pod, spots)
	if err != nil {
		return fmt.Errorf("score the pod's spread constraints and affinities: %w", err)
	}
	for i := range candidates {
		candidates[i].score = scores[slices.Index(spots, candidates[i].spot())]
	}
	return nil
}

// compare puts the better candidate first.
func compare(a, b candidate) int {
	return cmp.Or(
		cmp.Compare(b.score, a.score),
		cmp.Compare(a.subnet.Pods, b.subnet.Pods),
		cmp.Compare(b.subnet.FreeIPs, a.subnet.FreeIPs),
		cmp.Compare(a.subnet.Name, b.subnet.Name),
		cmp.Compare(a.host.load(), b.host.load()),
		cmp.Compare(a.host.Name, b.host.Name),
	)
}

func (h HostState) load() float64 {
	return ratio(h.Used[corev1.ResourceMemory], h.Capacity[corev1.ResourceMemory])
}

// sorted is each of the texts once: the same input must give the same text.
func sorted(texts []string) []string {
	slices.Sort(texts)
	return slices.Compact(texts)
}

func message(text string, details []string) string {
	return text + " (" + strings.Join(details, "; ") + ")"
}

// lacks is what the host has too little of for the size; empty: nothing.
func lacks(size v1alpha1.Size, h HostState) string {
	if !h.Ready {
		return fmt.Sprintf("host %s is not ready", h.Name)
	}
	// In a fixed order: the same input must give the same text, or a waiting pod's event is said anew at every retry.
	for _, n := range []struct {
		name corev1.ResourceName
		need resource.Quantity
	}{{corev1.ResourceCPU, size.CPU}, {corev1.ResourceMemory, size.Memory}, {corev1.ResourceEphemeralStorage, size.EphemeralStorage}} {
		name, need := n.name, n.need
		capacity, limited := h.Capacity[name]
		if !limited {
			continue
		}
		free := capacity.DeepCopy()
		free.Sub(h.Used[name])
		if free.Cmp(need) < 0 {
			return fmt.Sprintf("host %s has %s %s free, the pod needs %s", h.Name, free.String(), name, need.String())
		}
	}
	return ""
}

func ratio(used, capacity resource.Quantity) float64 {
	if capacity.IsZero() {
		return 0
	}
	return used.AsApproximateFloat64() / capacity.AsApproximateFloat64()
}
