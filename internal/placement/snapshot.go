package placement

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/ipam"
)

// Snapshot is the part of an Input that the cluster decides: the profile's subnets and all hosts, with what the berths take
// of them. free tells how many addresses of a subnet can be taken now.
func Snapshot(profile *v1alpha1.FargateProfile, subnets []v1alpha1.Subnet, hosts []v1alpha1.Host, berths []v1alpha1.Berth, free func(*v1alpha1.Subnet) int) Input {
	in := Input{ProfileName: profile.Name}
	taken := add(profile.Name, berths)
	byName := map[string]*v1alpha1.Subnet{}
	for i := range subnets {
		byName[subnets[i].Name] = &subnets[i]
	}
	for _, name := range profile.Status.Subnets {
		s := byName[name]
		if s == nil || s.DeletionTimestamp != nil {
			continue
		}
		state := SubnetState{Name: name, Zone: s.Spec.Zone, FreeIPs: free(s), Pods: taken.bySubnet[name]}
		if prefix, err := netip.ParsePrefix(s.Spec.CIDR); err == nil {
			state.Size = ipam.Size(prefix)
		}
		in.Subnets = append(in.Subnets, state)
	}
	for i := range hosts {
		in.Hosts = append(in.Hosts, hostState(&hosts[i], taken))
	}
	return in
}

// use is what berths take: how many of the profile's there are in each subnet, and what they all hold of each host.
type use struct {
	bySubnet map[string]int
	byHost   map[string]*HostState
}

// add adds up in one round, because a cluster may have thousands of berths and this is done for each pod.
func add(profile string, berths []v1alpha1.Berth) use {
	u := use{map[string]int{}, map[string]*HostState{}}
	for i := range berths {
		b := &berths[i]
		if b.Spec.ProfileName == profile {
			u.bySubnet[b.Spec.SubnetName]++
		}
		if b.Status.Timeline.Completed != nil { // no sandbox, no room
			continue
		}
		host := u.byHost[b.Spec.HostName]
		if host == nil {
			host = &HostState{Used: corev1.ResourceList{}}
			u.byHost[b.Spec.HostName] = host
		}
		host.Pods++
		for _, part := range [...]struct {
			name corev1.ResourceName
			size *resource.Quantity
		}{{corev1.ResourceCPU, &b.Spec.Size.CPU}, {corev1.ResourceMemory, &b.Spec.Size.Memory}, {corev1.ResourceEphemeralStorage, &b.Spec.Size.EphemeralStorage}} {
			sum := host.Used[part.name]
			sum.Add(*part.size)
			host.Used[part.name] = sum
		}
	}
	return u
}

func hostState(h *v1alpha1.Host, taken use) HostState {
	state := HostState{
		Name: h.Name, Zones: h.Spec.Zones, Capacity: h.Status.Capacity, Isolations: h.Status.Isolations, Probes: h.Status.Probes, Used: corev1.ResourceList{},
		Ready: !h.Spec.Unschedulable && h.DeletionTimestamp == nil && meta.IsStatusConditionTrue(h.Status.Conditions, v1alpha1.ConditionReady),
	}
	if held := taken.byHost[h.Name]; held != nil {
		state.Used, state.Pods = held.Used, held.Pods
	}
	return state
}
