package placement

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/ipam"
)

// Snapshot is the part of an Input that the cluster decides: the profile's subnets and all hosts, with what the berths take
// of them. free tells how many addresses of a subnet can be taken now.
func Snapshot(profile *v1alpha1.FargateProfile, subnets []v1alpha1.Subnet, hosts []v1alpha1.Host, berths []v1alpha1.Berth, free func(*v1alpha1.Subnet) int) Input {
	in := Input{ProfileName: profile.Name}
	byName := map[string]*v1alpha1.Subnet{}
	for i := range subnets {
		byName[subnets[i].Name] = &subnets[i]
	}
	for _, name := range profile.Status.Subnets {
		s := byName[name]
		if s == nil || s.DeletionTimestamp != nil {
			continue
		}
		state := SubnetState{Name: name, Zone: s.Spec.Zone, FreeIPs: free(s)}
		if prefix, err := netip.ParsePrefix(s.Spec.CIDR); err == nil {
			state.Size = ipam.Size(prefix)
		}
		for _, b := range berths {
			if b.Spec.SubnetName == name && b.Spec.ProfileName == profile.Name {
				state.Pods++
			}
		}
		in.Subnets = append(in.Subnets, state)
	}
	for _, h := range hosts {
		in.Hosts = append(in.Hosts, hostState(h, berths))
	}
	return in
}

func hostState(h v1alpha1.Host, berths []v1alpha1.Berth) HostState {
	state := HostState{
		Name: h.Name, Zones: h.Spec.Zones, Capacity: h.Status.Capacity, Isolations: h.Status.Isolations, Probes: h.Status.Probes, Used: corev1.ResourceList{},
		Ready: !h.Spec.Unschedulable && h.DeletionTimestamp == nil && meta.IsStatusConditionTrue(h.Status.Conditions, v1alpha1.ConditionReady),
	}
	for _, b := range berths {
		if b.Spec.HostName != h.Name || b.Status.Timeline.Completed != nil { // no sandbox, no room
			continue
		}
		state.Pods++
		size := corev1.ResourceList{corev1.ResourceCPU: b.Spec.Size.CPU, corev1.ResourceMemory: b.Spec.Size.Memory, corev1.ResourceEphemeralStorage: b.Spec.Size.EphemeralStorage}
		for name, q := range size {
			sum := state.Used[name]
			sum.Add(q)
			state.Used[name] = sum
		}
	}
	return state
}
