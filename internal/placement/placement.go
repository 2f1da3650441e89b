// Package placement chooses subnet, zone, host and isolation for a pod. Pure: it sees a snapshot and decides.
package placement

import (
	"fmt"
	"runtime"
	"slices"
	"sort"
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

func (e *NoCapacityError) Error() string {
	return eks.MessageNoCapacity + " (" + strings.Join(e.Details, "; ") + ")"
}

// WaitsFor is what would let the pod run.
func (e *NoCapacityError) WaitsFor() string { return "room on a host and an address in a subnet" }

// Labels that the node of a pod in the zone has, as far as selectors can know them beforehand (facts 2.7).
func Labels(region, zone string) map[string]string {
	return map[string]string{
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
}

// Choose picks the subnet with the fewest pods of the profile (then the most free addresses, then by name) among those
// whose zone the pod allows, and there the least loaded ready host that has room and can run the isolation. Errors:
// *NodeSelectorError, *IsolationError, *NoCapacityError.
func Choose(in Input, region string) (Choice, error) {
	affinity := nodeaffinity.GetRequiredNodeAffinity(in.Pod)
	subnets := slices.DeleteFunc(slices.Clone(in.Subnets), func(s SubnetState) bool {
		node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Labels: Labels(region, s.Zone)}}
		ok, err := affinity.Match(node)
		return err != nil || !ok
	})
	if len(subnets) == 0 {
		if len(in.Subnets) == 0 {
			return Choice{}, &NoCapacityError{[]string{"profile " + in.ProfileName + " has no subnet"}}
		}
		return Choice{}, &NodeSelectorError{in.ProfileName}
	}
	if err := noIsolation(in, subnets); err != nil {
		return Choice{}, err
	}
	sort.Slice(subnets, func(i, j int) bool {
		a, b := subnets[i], subnets[j]
		switch {
		case a.Pods != b.Pods:
			return a.Pods < b.Pods
		case a.FreeIPs != b.FreeIPs:
			return a.FreeIPs > b.FreeIPs
		}
		return a.Name < b.Name
	})
	var short []string
	for _, s := range subnets {
		if s.FreeIPs <= 0 {
			short = append(short, fmt.Sprintf("subnet %s has no free address (0 of %d)", s.Name, s.Size))
			continue
		}
		host, isolation, why := chooseHost(in, s.Zone)
		if host != "" {
			return Choice{s.Name, s.Zone, host, isolation}, nil
		}
		short = append(short, why...)
	}
	sort.Strings(short)
	return Choice{}, &NoCapacityError{slices.Compact(short)}
}

func chooseHost(in Input, zone string) (string, v1alpha1.Isolation, []string) {
	var why []string
	best, bestLoad := -1, 0.0
	var isolation v1alpha1.Isolation
	for i, h := range in.Hosts {
		iso, short := fits(in, h, zone)
		if short != "" {
			why = append(why, short)
			continue
		}
		load := ratio(h.Used[corev1.ResourceMemory], h.Capacity[corev1.ResourceMemory])
		if best < 0 || load < bestLoad || load == bestLoad && h.Name < in.Hosts[best].Name {
			best, bestLoad, isolation = i, load, iso
		}
	}
	if best < 0 {
		if len(why) == 0 {
			why = []string{"no host has joined the cluster"}
		}
		return "", "", why
	}
	return in.Hosts[best].Name, isolation, nil
}

func fits(in Input, h HostState, zone string) (v1alpha1.Isolation, string) {
	switch {
	case !slices.Contains(h.Zones, zone):
		return "", fmt.Sprintf("host %s does not serve zone %s", h.Name, zone)
	case !h.Ready:
		return "", fmt.Sprintf("host %s is not ready", h.Name)
	}
	iso, short := isolationOn(in.Isolation, h)
	if iso == "" {
		return "", short
	}
	// In a fixed order: the same input must give the same text, or a waiting pod's event is said anew at every retry.
	for _, n := range []struct {
		name corev1.ResourceName
		need resource.Quantity
	}{{corev1.ResourceCPU, in.Size.CPU}, {corev1.ResourceMemory, in.Size.Memory}, {corev1.ResourceEphemeralStorage, in.Size.EphemeralStorage}} {
		name, need := n.name, n.need
		capacity, limited := h.Capacity[name]
		if !limited {
			continue
		}
		free := capacity.DeepCopy()
		free.Sub(h.Used[name])
		if free.Cmp(need) < 0 {
			return "", fmt.Sprintf("host %s has %s %s free, the pod needs %s", h.Name, free.String(), name, need.String())
		}
	}
	return iso, ""
}

func ratio(used, capacity resource.Quantity) float64 {
	if capacity.IsZero() {
		return 0
	}
	return used.AsApproximateFloat64() / capacity.AsApproximateFloat64()
}
