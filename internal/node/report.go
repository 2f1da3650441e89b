package node

import (
	"encoding/json"
	"log/slog"
	"net"
	"sync"
	"time"

	kubeletutil "k8s.io/kubernetes/pkg/kubelet/util"

	"github.com/berth-run/berth/internal/nodeconfig"
)

// reporter tells the host agent, once each, which stages the pod's start has reached; and why its sandbox does not start, whenever that changes.
// Losing a report is harmless: the agent also reads the truth from the API server and from containerd.
type reporter struct {
	cfg  nodeconfig.Config
	mu   sync.Mutex
	sent map[nodeconfig.Stage]string // the last message of each
	// started is closed when the first container runs.
	started chan struct{}
}

func newReporter(cfg nodeconfig.Config) *reporter {
	return &reporter{cfg: cfg, sent: map[nodeconfig.Stage]string{}, started: make(chan struct{})}
}

func (r *reporter) send(stage nodeconfig.Stage, message string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if last, sent := r.sent[stage]; sent && (stage != nodeconfig.StageSandboxFailed || last == message) {
		return
	}
	r.sent[stage] = message
	if stage == nodeconfig.StageContainerStarted {
		close(r.started)
	}
	if r.cfg.EventSocket == "" {
		return
	}
	datagram, err := json.Marshal(nodeconfig.Event{PodUID: r.cfg.PodUID, Stage: stage, Time: time.Now(), Message: message})
	if err != nil {
		slog.Error("encode event", "error", err)
		return
	}
	conn, err := net.Dial("unixgram", r.cfg.EventSocket)
	if err != nil {
		slog.Warn("host agent does not listen", "stage", stage, "error", err)
		return
	}
	defer conn.Close()
	if _, err := conn.Write(datagram); err != nil {
		slog.Warn("tell host agent", "stage", stage, "error", err)
	}
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
