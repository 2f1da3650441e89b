package node

import (
	"encoding/json"
	"log/slog"
	"net"
	"sync"
	"time"

	kubeletutil "k8s.io/kubernetes/pkg/kubelet/util"

	"github.com/berth-run/berth/internal/microvm/podsocket"
	"github.com/berth-run/berth/internal/nodeconfig"
)

const (
	// retellPause is how long an agent that does not listen is left alone before it is told of trouble again.
	retellPause = 5 * time.Second
	// reasonSandboxFailed is the trouble of a sandbox that cannot be started.
	reasonSandboxFailed = "SandboxFailed"
)

// reporter tells the host agent, once each, which stages the pod's start has reached; and what keeps its sandbox from running, whenever that changes.
// Losing a report of a stage is harmless: the agent also reads the truth from the API server and from containerd. Trouble nobody else could tell.
type reporter struct {
	cfg  nodeconfig.Config
	mu   sync.Mutex
	sent map[nodeconfig.Stage]bool
	// now is the trouble, known is what the agent knows of it.
	now, known podsocket.Trouble
	retelling  bool
	retell     time.Duration
	// started is closed when the first container runs.
	started chan struct{}
}

func newReporter(cfg nodeconfig.Config) *reporter {
	return &reporter{cfg: cfg, sent: map[nodeconfig.Stage]bool{}, retell: retellPause, started: make(chan struct{})}
}

func (r *reporter) send(stage nodeconfig.Stage, message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.sent[stage] {
		return
	}
	r.sent[stage] = true
	if stage == nodeconfig.StageContainerStarted {
		close(r.started)
	}
	if err := r.tell(nodeconfig.Event{Stage: stage, Message: message}); err != nil {
		slog.Warn("tell the host agent", "stage", stage, "error", err)
	}
}

// trouble tells what keeps the sandbox from running, or that nothing does any more, until the agent has heard it.
func (r *reporter) trouble(t podsocket.Trouble) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.now = t
	if !r.retelling {
		r.tellTrouble()
	}
}

func (r *reporter) tellTrouble() {
	r.retelling = false
	if r.now == r.known {
		return
	}
	if err := r.tell(nodeconfig.Event{Stage: nodeconfig.StageTrouble, Reason: r.now.Reason, Message: r.now.Message}); err == nil {
		r.known = r.now
		return
	}
	r.retelling = true
	time.AfterFunc(r.retell, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.tellTrouble()
	})
}

func (r *reporter) tell(e nodeconfig.Event) error {
	if r.cfg.EventSocket == "" {
		return nil
	}
	e.PodUID, e.Time = r.cfg.PodUID, time.Now()
	datagram, err := json.Marshal(e)
	if err != nil {
		return err
	}
	conn, err := net.Dial("unixgram", r.cfg.EventSocket)
	if err != nil {
		return err
	}
	defer conn.Close()
	_, err = conn.Write(datagram)
	return err
}

// registrationTracker reports the moment at which the Node object exists.
type registrationTracker struct {
	kubeletutil.NodeStartupLatencyTracker
	report *reporter
}

// RecordRegisteredNewNode is called by the kubelet when it has created its Node.
func (t *registrationTracker) RecordRegisteredNewNode() {
	t.NodeStartupLatencyTracker.RecordRegisteredNewNode()
	t.report.send(nodeconfig.StageNodeRegistered, "")
}
