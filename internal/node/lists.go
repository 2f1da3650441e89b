package node

import (
	"context"
	"sync"
	"time"

	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// listAge is how long an answer stays good if nothing is heard; events are not promised to arrive.
const listAge = 10 * time.Second

// lists are the node's sandboxes and containers as containerd last told them. The kubelet asks for both once a second and
// again every two seconds, which for one pod that does nothing is most of the processor time that kubelet and containerd
// take. An answer is given again until containerd sends an event of the pod, or this node changes something. Without a
// stream of events every question goes to containerd.
type lists struct {
	service internalapi.RuntimeService
	mine    map[string]string
	// state is the state of a sandbox of which containerd says that it is in a state.
	state func(sandbox string, said runtimeapi.PodSandboxState) runtimeapi.PodSandboxState

	// busy has a value after answers went bad.
	busy chan struct{}

	mu         sync.Mutex
	streams    int    // of events, open
	change     uint64 // counts events and changes
	sandboxes  answer[*runtimeapi.PodSandbox]
	containers answer[*runtimeapi.Container]
}

type answer[T any] struct {
	items []T
	at    time.Time
}

func newLists(service internalapi.RuntimeService, mine map[string]string, state func(string, runtimeapi.PodSandboxState) runtimeapi.PodSandboxState) *lists {
	return &lists{service: service, mine: mine, state: state, busy: make(chan struct{}, 1)}
}

// changed forgets the answers.
func (l *lists) changed() {
	select {
	case l.busy <- struct{}{}:
	default:
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.change++
	l.sandboxes.at, l.containers.at = time.Time{}, time.Time{}
}

// changes counts what made answers go bad.
func (l *lists) changes() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.change
}

// streaming notes that a stream of events opened (+1) or ended (-1).
func (l *lists) streaming(n int) {
	l.changed()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.streams += n
}

func remembered[T any](l *lists, a *answer[T], ask func() ([]T, error)) ([]T, error) {
	l.mu.Lock()
	if l.streams > 0 && time.Since(a.at) < listAge {
		defer l.mu.Unlock()
		return a.items, nil
	}
	change := l.change
	l.mu.Unlock()
	items, err := ask()
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if change == l.change {
		*a = answer[T]{items, time.Now()}
	}
	return items, nil
}

// listSandboxes is containerd's ListPodSandbox for the node's own.
func (l *lists) listSandboxes(ctx context.Context, filter *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
	if filter.GetId() != "" {
		return l.service.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{Id: filter.Id, State: filter.State, LabelSelector: merge(filter.LabelSelector, l.mine)})
	}
	all, err := remembered(l, &l.sandboxes, func() ([]*runtimeapi.PodSandbox, error) {
		found, err := l.service.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{LabelSelector: l.mine})
		for _, s := range found {
			s.State = l.state(s.Id, s.State)
		}
		return found, err
	})
	if err != nil {
		return nil, err
	}
	var out []*runtimeapi.PodSandbox
	for _, s := range all {
		if (filter.GetState() == nil || s.State == filter.State.State) && selects(filter.GetLabelSelector(), s.Labels) {
			out = append(out, s)
		}
	}
	return out, nil
}

// listContainers is containerd's ListContainers for the node's own.
func (l *lists) listContainers(ctx context.Context, filter *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	if filter.GetId() != "" {
		return l.service.ListContainers(ctx, &runtimeapi.ContainerFilter{Id: filter.Id, PodSandboxId: filter.PodSandboxId, State: filter.State,
			LabelSelector: merge(filter.LabelSelector, l.mine)})
	}
	all, err := remembered(l, &l.containers, func() ([]*runtimeapi.Container, error) {
		return l.service.ListContainers(ctx, &runtimeapi.ContainerFilter{LabelSelector: l.mine})
	})
	if err != nil {
		return nil, err
	}
	var out []*runtimeapi.Container
	for _, c := range all {
		if (filter.GetState() == nil || c.State == filter.State.State) && selects(filter.GetLabelSelector(), c.Labels) &&
			(filter.GetPodSandboxId() == "" || filter.PodSandboxId == c.PodSandboxId) {
			out = append(out, c)
		}
	}
	return out, nil
}

func selects(selector, labels map[string]string) bool {
	for k, v := range selector {
		if labels[k] != v {
			return false
		}
	}
	return true
}
