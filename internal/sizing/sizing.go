// Package sizing finds the Fargate size of a pod and its price. Pure: no client, no clock, no I/O.
//
// Rule and table: Amazon EKS user guide, fargate-pod-configuration (facts 3.1 to 3.5).
package sizing

import (
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
)

const (
	gib = int64(1) << 30
	// componentsMemory is added to every pod's memory for the Kubernetes components (facts 3.1, rule 4).
	componentsMemory = int64(256) << 20
	// defaultStorage is what a pod gets that asks for none or little (facts 3.5).
	defaultStorage = 20 * gib
	// storageMargin is added, besides a tenth, to the storage that was asked for (facts 3.5).
	storageMargin = 5 * gib
	// MaxStorageRequest is the most ephemeral storage that a pod may ask for, in bytes (facts 3.5).
	MaxStorageRequest = 175 * gib
	// exactMinMilli is the least CPU that Linux can enforce with its ordinary period of 100 ms: a quota of 1 ms.
	exactMinMilli = 10
	// exactMinMiB is what a sandbox needs to start and to run a small program.
	exactMinMiB = 64
)

// tier is one vCPU size with its memory sizes, in MiB: from, to, step (facts 3.2).
type tier struct {
	milli          int64
	from, to, step int64
}

var tiers = []tier{
	{250, 512, 512, 512}, {250, 1024, 2048, 1024}, // .25 vCPU has no 1.5 GB
	{500, 1024, 4096, 1024},
	{1000, 2048, 8192, 1024},
	{2000, 4096, 16384, 1024},
	{4000, 8192, 30720, 1024},
	{8000, 16384, 61440, 4096},
	{16000, 32768, 122880, 8192},
}

// TooLargeError says that no size holds the pod. Its text is that of EKS.
type TooLargeError struct{ CPU, Memory, EphemeralStorage resource.Quantity }

func (e *TooLargeError) Error() string { return eks.MessageTooLarge }

// Table lists all sizes, smallest first, with the default ephemeral storage.
func Table() []v1alpha1.Size {
	var sizes []v1alpha1.Size
	for _, t := range tiers {
		for mib := t.from; mib <= t.to; mib += t.step {
			sizes = append(sizes, size(t.milli, mib, defaultStorage))
		}
	}
	return sizes
}

func size(milli, mib, storage int64) v1alpha1.Size {
	return v1alpha1.Size{
		CPU:              *resource.NewMilliQuantity(milli, resource.DecimalSI),
		Memory:           *resource.NewQuantity(mib<<20, resource.BinarySI),
		EphemeralStorage: *resource.NewQuantity(storage, resource.BinarySI),
	}
}

// Requests is what counts of a pod: the larger of what its init containers and its long-running containers need
// (upstream's rule for sidecars included). A request that is not set is the limit, if that is set.
func Requests(spec *corev1.PodSpec) corev1.ResourceList {
	return resourcehelper.PodRequests(&corev1.Pod{Spec: withDefaults(spec)}, resourcehelper.PodResourcesOptions{})
}

// ForPod is the size of a pod: the smallest of the Table that holds its Requests and 256 MiB, or with v1alpha1.SizingExact
// just its Requests. Any other sizing is that of the table. The error is a *TooLargeError.
func ForPod(spec *corev1.PodSpec, sizing v1alpha1.Sizing) (v1alpha1.Size, error) {
	need := Requests(spec)
	tooLarge := &TooLargeError{need[corev1.ResourceCPU], need[corev1.ResourceMemory], need[corev1.ResourceEphemeralStorage]}
	// Quantities are compared, not their numbers: what is asked for may be beyond 64 bits.
	asked := need.StorageEphemeral()
	if asked.Cmp(*resource.NewQuantity(MaxStorageRequest, resource.BinarySI)) > 0 {
		return v1alpha1.Size{}, tooLarge
	}
	choose := fromTable
	if sizing == v1alpha1.SizingExact {
		choose = exact
	}
	s, fits := choose(*need.Cpu(), *need.Memory())
	if !fits {
		return v1alpha1.Size{}, tooLarge
	}
	s.EphemeralStorage = *resource.NewQuantity(storage(asked.Value()), resource.BinarySI)
	return s, nil
}

func fromTable(cpu, memory resource.Quantity) (v1alpha1.Size, bool) {
	memory = memory.DeepCopy()
	memory.Add(*resource.NewQuantity(componentsMemory, resource.BinarySI))
	for _, s := range Table() {
		if s.CPU.Cmp(cpu) >= 0 && s.Memory.Cmp(memory) >= 0 {
			return s, true
		}
	}
	return v1alpha1.Size{}, false
}

// exact gives what is asked for, up to the table's largest size; what is not asked for is as in its smallest.
func exact(cpu, memory resource.Quantity) (v1alpha1.Size, bool) {
	table := Table()
	smallest, largest := table[0], table[len(table)-1]
	if cpu.Cmp(largest.CPU) > 0 || memory.Cmp(largest.Memory) > 0 {
		return v1alpha1.Size{}, false
	}
	if cpu.Sign() <= 0 {
		cpu = smallest.CPU
	}
	if memory.Sign() <= 0 {
		memory = smallest.Memory
	}
	mib := (memory.Value() + (1<<20 - 1)) >> 20
	return size(max(cpu.MilliValue(), exactMinMilli), max(mib, exactMinMiB), defaultStorage), true
}

// storage is the disk for a request: a request of 100 GiB gives 115 GiB (facts 3.5).
func storage(asked int64) int64 {
	if asked <= 0 {
		return defaultStorage
	}
	return max(defaultStorage, asked+asked/10+storageMargin)
}

// withDefaults copies limits to requests that are not set, as the API server does for container resources, and puts what is
// far beyond any size in its place: 1e10000000 is a quantity, too, but to compare it with another takes seconds.
func withDefaults(spec *corev1.PodSpec) corev1.PodSpec {
	out := *spec.DeepCopy()
	cut := func(r *corev1.ResourceRequirements) {
		for _, list := range []corev1.ResourceList{r.Requests, r.Limits} {
			for name, q := range list {
				list[name] = within(q)
			}
		}
	}
	fill := func(r *corev1.ResourceRequirements) {
		cut(r)
		for name, limit := range r.Limits {
			if _, set := r.Requests[name]; !set {
				if r.Requests == nil {
					r.Requests = corev1.ResourceList{}
				}
				r.Requests[name] = limit
			}
		}
	}
	for i := range out.InitContainers {
		fill(&out.InitContainers[i].Resources)
	}
	for i := range out.Containers {
		fill(&out.Containers[i].Resources)
	}
	if out.Resources != nil {
		cut(out.Resources)
	}
	out.Overhead = nil
	return out
}

// far is more than all sizes together, and little enough to add up.
var far = resource.MustParse("1e30")

// within is the quantity, or far if it has about forty digits or more before its point.
func within(q resource.Quantity) resource.Quantity {
	d := q.AsDec()
	switch small := int64(d.UnscaledBig().BitLen())/3-int64(d.Scale()) <= 40; {
	case small:
		return q
	case d.Sign() > 0:
		return far
	}
	return resource.Quantity{} // 0e10000000
}

// CapacityProvisioned is the annotation's text for a size, such as "0.25vCPU 0.5GB" (facts 2.4).
func CapacityProvisioned(s v1alpha1.Size) string {
	return number(float64(s.CPU.MilliValue())/1000) + "vCPU " + number(float64(s.Memory.Value())/float64(gib)) + "GB"
}

func number(f float64) string { return strconv.FormatFloat(f, 'f', -1, 64) }

// Prices per hour in US dollars, us-east-1, Linux/x86 (facts 7).
const (
	pricePerVCPU      = 0.04048
	pricePerGB        = 0.004445
	pricePerStorageGB = 0.000111
)

// PricePerHour is what AWS asks for the size in us-east-1, in US dollars; storage up to 20 GiB is free.
func PricePerHour(s v1alpha1.Size) float64 {
	extra := max(0, float64(s.EphemeralStorage.Value()-defaultStorage)/float64(gib))
	return float64(s.CPU.MilliValue())/1000*pricePerVCPU + float64(s.Memory.Value())/float64(gib)*pricePerGB + extra*pricePerStorageGB
}
