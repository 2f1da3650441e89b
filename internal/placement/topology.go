package placement

import (
	corev1 "k8s.io/api/core/v1"

	"github.com/berth-run/berth/internal/eks"
)

// Spot is a host, and a zone that it serves: what a pod's topology spread constraints and pod affinity choose between.
type Spot struct{ Zone, Host string }

// Topology judges spots by a pod's topology spread constraints and its pod affinity and anti-affinity, and by those of the
// pods that are placed already. Answers are in the order of the spots.
type Topology interface {
	// Filter says why the pod may not go to each of the spots; empty: it may. spots are all that the profile has, with room
	// or without: skew is counted over them.
	Filter(pod *corev1.Pod, spots []Spot) ([]string, error)
	// Score says how well each of the spots suits the pod, which may go to all of them; more is better.
	Score(pod *corev1.Pod, spots []Spot) ([]int64, error)
}

// TopologyError says that spread constraints or pod affinity leave the pod no place now; Details say why where.
type TopologyError struct {
	Profile string
	Details []string
}

func (e *TopologyError) Error() string { return message(eks.MessageTopology(e.Profile), e.Details) }

// WaitsFor is what would let the pod run.
func (e *TopologyError) WaitsFor() string {
	return "pods to come or go, or another zone or host, so that its spread constraints and pod affinity are met"
}
