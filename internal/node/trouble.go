package node

import (
	"context"
	"sync"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
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

	// changed is called when a machine has ended.
	changed func()

	mu sync.Mutex
	// watched and ended are sandboxes.
	watched, ended map[string]bool
}

func newMachineWatch(ctx context.Context, cfg nodeconfig.Config, report *reporter, events eventRecorder, changed func()) *machineWatch {
	if cfg.RuntimeHandler != layout.RuntimeHandlerMicroVM {
		return nil
	}
	return &machineWatch{ctx: ctx, cfg: cfg, report: report, events: events, changed: changed, watched: map[string]bool{}, ended: map[string]bool{}}
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
		if t.Ended {
			w.end(sandbox)
		}
		w.report.trouble(t)
		switch {
		case t.Reason != "":
			w.events.Event(w.pod(), v1.EventTypeWarning, t.Reason, t.Message)
		case !t.Ended:
			w.events.Event(w.pod(), v1.EventTypeNormal, reasonMachineGoesOn, "the pod's machine runs again")
		}
	})
	klog.FromContext(w.ctx).V(2).Info("the pod's shim tells nothing more of its machine", "sandbox", sandbox, "reason", err)
	w.mu.Lock()
	defer w.mu.Unlock()
	delete(w.watched, sandbox)
}

// end notes that a sandbox has no machine any more.
func (w *machineWatch) end(sandbox string) {
	w.mu.Lock()
	w.ended[sandbox] = true
	w.mu.Unlock()
	w.changed()
}

// state is that of a sandbox which containerd says is in a state: without its machine it is not ready. containerd learns that of the sandbox after it has
// of the containers, and a kubelet that starts those again in a sandbox without a machine has to wait before it tries anew.
func (w *machineWatch) state(sandbox string, said runtimeapi.PodSandboxState) runtimeapi.PodSandboxState {
	if w == nil {
		return said
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.ended[sandbox] {
		return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	}
	return said
}

func (w *machineWatch) pod() *v1.ObjectReference {
	return &v1.ObjectReference{APIVersion: "v1", Kind: "Pod", Namespace: w.cfg.PodNamespace, Name: w.cfg.PodName, UID: w.cfg.PodUID}
}
