package node

import (
	"context"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/klog/v2"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/microvm/podsocket"
	"github.com/berth-run/berth/internal/nodeconfig"
)

// reasonMachineGoesOn is the event's that says that trouble is over.
const reasonMachineGoesOn = "MachineGoesOn"

type eventRecorder interface {
	Event(object runtime.Object, kind, reason, message string)
}

// machineWatch listens to what the shims of the node's sandboxes say of their virtual machines, and tells people (by the pod's events) and the host agent (for
// the Berth) when one does not run. nil: the pod's sandboxes are none.
type machineWatch struct {
	ctx    context.Context //nolint:containedctx // the process's
	cfg    nodeconfig.Config
	report *reporter
	events eventRecorder

	mu      sync.Mutex
	watched map[string]bool // by sandbox
}

func newMachineWatch(ctx context.Context, cfg nodeconfig.Config, report *reporter, events eventRecorder) *machineWatch {
	if cfg.RuntimeHandler != layout.RuntimeHandlerMicroVM {
		return nil
	}
	return &machineWatch{ctx: ctx, cfg: cfg, report: report, events: events, watched: map[string]bool{}}
}

// watch listens to the shim of a sandbox that runs, unless somebody does already.
func (w *machineWatch) watch(sandbox string) {
	if w == nil {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.watched[sandbox] {
		w.watched[sandbox] = true
		go w.listen(sandbox)
	}
}

// listen listens until the shim ends. The trouble of a machine that has ended is over when there is another.
func (w *machineWatch) listen(sandbox string) {
	var last podsocket.Trouble
	err := podsocket.WatchTrouble(w.ctx, layout.Dirs{Run: w.cfg.HostRunDir}.MicroVMRun(sandbox), func(t podsocket.Trouble) {
		if t == last {
			return
		}
		last = t
		w.report.trouble(t)
		if t.Reason != "" {
			w.events.Event(w.pod(), v1.EventTypeWarning, t.Reason, t.Message)
		} else {
			w.events.Event(w.pod(), v1.EventTypeNormal, reasonMachineGoesOn, "the pod's machine runs again")
		}
	})
	klog.FromContext(w.ctx).V(2).Info("the pod's shim tells nothing more of its machine", "sandbox", sandbox, "reason", err)
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.watched, sandbox)
}

func (w *machineWatch) pod() *v1.ObjectReference {
	return &v1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: w.cfg.PodNamespace, Name: w.cfg.PodName, UID: w.cfg.PodUID}
}
