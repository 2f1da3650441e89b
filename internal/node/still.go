package node

import (
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// stillAge is how long the statistics of a pod stay good that does next to nothing.
	stillAge = time.Minute
	// stillShare of one CPU is next to nothing: what a virtual machine takes that is only there, three times over.
	stillShare = 0.01
)

// stillStats are the pod's statistics as containerd last told them. The kubelet asks for them every ten seconds, to keep limits of ephemeral
// storage, and metrics servers do. To answer, a sandbox has to wake up, which is most of what it does when the pod does nothing. A pod that
// took no processor time meanwhile uses what it used.
type stillStats struct {
	lists *lists
	// cpu tells the nanoseconds that the pod has taken.
	cpu func() (uint64, error)
	now func() time.Time

	mu     sync.Mutex
	stats  []*runtimeapi.PodSandboxStats
	at     time.Time
	taken  uint64 // nanoseconds, once the answer was there
	change uint64 // of the lists, before the question
}

func newStillStats(l *lists, cpu func() (uint64, error)) *stillStats {
	return &stillStats{lists: l, cpu: cpu, now: time.Now}
}

// get gives the last answer once more if it is still right, and asks if it is not.
func (s *stillStats) get(ask func() ([]*runtimeapi.PodSandboxStats, error)) ([]*runtimeapi.PodSandboxStats, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change := s.lists.changes()
	if change == s.change && s.still() {
		return s.stats, nil
	}
	stats, err := ask()
	s.at = time.Time{}
	if err != nil {
		return stats, err
	}
	if taken, err := s.cpu(); err == nil {
		s.stats, s.at, s.taken, s.change = stats, s.now(), taken, change
	}
	return stats, nil
}

func (s *stillStats) still() bool {
	age := s.now().Sub(s.at)
	if s.at.IsZero() || age >= stillAge {
		return false
	}
	taken, err := s.cpu()
	return err == nil && taken >= s.taken && float64(taken-s.taken) < stillShare*float64(age)
}
