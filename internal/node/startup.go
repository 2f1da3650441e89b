package node

import (
	"sync"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/kubelet/watchdog"
	"k8s.io/kubernetes/pkg/volume"
)

const (
	// runtimeWait bounds how long the sync loop is held back for the first look at the runtime, which takes a few
	// milliseconds. Without it the loop finds the runtime not up yet and sleeps 100 ms.
	runtimeWait = 90 * time.Millisecond
	// runtimeSettle is the time between the container manager's start and the kubelet's noting that the runtime is up.
	runtimeSettle = 2 * time.Millisecond
	// volumeWait bounds how long a pod's first sync is held back for its volumes, which mount in one or two rounds of
	// 100 ms. Without it the sync looks once, too early, and again only after 300 ms.
	volumeWait = 290 * time.Millisecond
	// volumePoll is how often it is looked whether they are mounted; only until the pod's first sync.
	volumePoll = 5 * time.Millisecond
)

// volumeLister is the part of the kubelet that tells which of a pod's volumes are mounted.
type volumeLister interface {
	ListVolumesForPod(podUID types.UID) (map[string]volume.Volume, bool)
}

// startGate shortens two fixed waits of the kubelet's start, through seams that upstream calls at the right moment. It
// never makes anything happen earlier than it is ready: at worst it waits in vain and upstream's own wait follows.
type startGate struct {
	runtimeUp chan struct{}
	once      sync.Once
	volumes   atomic.Value // volumeLister
	waited    sync.Map     // of pod UIDs
}

func newStartGate() *startGate { return &startGate{runtimeUp: make(chan struct{})} }

// markRuntimeUp is called when the container manager has started, the last step of the first runtime check.
func (g *startGate) markRuntimeUp() { g.once.Do(func() { close(g.runtimeUp) }) }

// awaitRuntime is called between the start of the first runtime check and the sync loop.
func (g *startGate) awaitRuntime() {
	select {
	case <-g.runtimeUp:
		time.Sleep(runtimeSettle)
	case <-time.After(runtimeWait):
	}
}

// newHealthChecker makes upstream's checker for a watchdog that is never started: the kubelet asks the container
// manager for health checkers, right before its sync loop, only if it has one.
func newHealthChecker(logger klog.Logger) (watchdog.HealthChecker, error) {
	return watchdog.NewHealthChecker(logger, watchdog.WithWatchdogClient(idleWatchdog{}))
}

type idleWatchdog struct{}

func (idleWatchdog) SdWatchdogEnabled(bool) (time.Duration, error) { return time.Hour, nil }
func (idleWatchdog) SdNotify(bool) (bool, error)                   { return true, nil }

// awaitVolumes holds a pod's first sync back until the volumes that its containers mount are there.
func (g *startGate) awaitVolumes(pod *v1.Pod) {
	lister, ok := g.volumes.Load().(volumeLister)
	if _, done := g.waited.LoadOrStore(pod.UID, true); done || !ok {
		return
	}
	wanted := mountedVolumes(pod)
	deadline := time.Now().Add(volumeWait)
	for time.Now().Before(deadline) {
		mounted, _ := lister.ListVolumesForPod(pod.UID)
		missing := false
		for name := range wanted {
			if _, there := mounted[name]; !there {
				missing = true
				break
			}
		}
		if !missing {
			return
		}
		time.Sleep(volumePoll)
	}
}

// mountedVolumes names the volumes of the pod that at least one container mounts.
func mountedVolumes(pod *v1.Pod) map[string]bool {
	used := map[string]bool{}
	mounts := func(c *v1.Container) {
		for _, m := range c.VolumeMounts {
			used[m.Name] = true
		}
	}
	for i := range pod.Spec.InitContainers {
		mounts(&pod.Spec.InitContainers[i])
	}
	for i := range pod.Spec.Containers {
		mounts(&pod.Spec.Containers[i])
	}
	return used
}
