package hostagent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/kit/conditions"
	"github.com/berth-run/berth/internal/nodeconfig"
)

// waitingReason is that of a condition whose time has not come yet.
const waitingReason = "Waiting"

// journal holds what is known about the stages of each pod's start until it is in the Berth's status.
type journal struct {
	mu     sync.Mutex
	stages map[types.UID]map[nodeconfig.Stage]nodeconfig.Event
	// changed is called with the pod of each event.
	changed func(types.UID)
}

func newJournal(changed func(types.UID)) *journal {
	return &journal{stages: map[types.UID]map[nodeconfig.Stage]nodeconfig.Event{}, changed: changed}
}

func (j *journal) record(e nodeconfig.Event) {
	j.mu.Lock()
	if j.stages[e.PodUID] == nil {
		j.stages[e.PodUID] = map[nodeconfig.Stage]nodeconfig.Event{}
	}
	if _, known := j.stages[e.PodUID][e.Stage]; !known || e.Stage == nodeconfig.StageTrouble {
		j.stages[e.PodUID][e.Stage] = e
	}
	if e.Stage == nodeconfig.StageConfigured { // a process that was started again says anew what is so
		j.stages[e.PodUID][nodeconfig.StageTrouble] = nodeconfig.Event{}
	}
	j.mu.Unlock()
	switch e.Stage {
	// The stages between come fast; each of the first two brings the earlier ones into the status along with it.
	case nodeconfig.StageContainerStarted, nodeconfig.StageNodeRegistered, nodeconfig.StageTrouble, nodeconfig.StageFailed:
		j.changed(e.PodUID)
	}
}

func (j *journal) forget(pod types.UID) {
	j.mu.Lock()
	defer j.mu.Unlock()
	delete(j.stages, pod)
}

// listen takes the events of node processes until ctx ends.
func (j *journal) listen(ctx context.Context, socket string) error {
	if err := os.Remove(socket); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the socket of an earlier agent: %w", err)
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		return fmt.Errorf("listen for node processes: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	buffer := make([]byte, 64<<10)
	for {
		n, err := conn.Read(buffer)
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("hear from node processes: %w", err)
		}
		var e nodeconfig.Event
		if err := json.Unmarshal(buffer[:n], &e); err != nil {
			slog.Warn("event of a node process is not valid", "error", err)
			continue
		}
		j.record(e)
	}
}

// apply writes the stages into the Berth's status.
func (j *journal) apply(b *v1alpha1.Berth) {
	j.mu.Lock()
	defer j.mu.Unlock()
	line := &b.Status.Timeline
	for stage, field := range map[nodeconfig.Stage]**metav1.MicroTime{
		nodeconfig.StageConfigured: &line.KubeletStarted, nodeconfig.StageNodeRegistered: &line.NodeRegistered,
		nodeconfig.StagePullStarted: &line.PullStarted, nodeconfig.StageSandboxStarted: &line.SandboxStarted,
		nodeconfig.StageContainerStarted: &line.ContainerStarted,
	} {
		if e, ok := j.stages[b.Spec.Pod.UID][stage]; ok && *field == nil {
			*field = micro(e.Time)
		}
	}
	if line.Completed != nil {
		completed(b)
		return
	}
	trouble := j.trouble(b)
	failed := trouble
	if e, ok := j.stages[b.Spec.Pod.UID][nodeconfig.StageFailed]; ok {
		failed = nodeconfig.Event{Reason: "KubeletFailed", Message: e.Message}
	}
	set := func(kind string, at *metav1.MicroTime, done, waiting string, failed nodeconfig.Event) {
		switch {
		case failed.Reason != "":
			conditions.Set(&b.Status.Conditions, kind, false, b.Generation, failed.Reason, failed.Message)
		case at != nil:
			conditions.Set(&b.Status.Conditions, kind, true, b.Generation, "Done", done)
		default:
			conditions.Set(&b.Status.Conditions, kind, false, b.Generation, waitingReason, waiting)
		}
	}
	set(v1alpha1.ConditionNodeRegistered, line.NodeRegistered, "the pod's kubelet runs and its Node exists", "the pod's kubelet has not registered its Node yet", nodeconfig.Event{})
	set(v1alpha1.ConditionSandboxReady, line.SandboxStarted, "the pod's sandbox runs", "the pod's sandbox has not started yet", trouble)
	set(v1alpha1.ConditionReady, line.ContainerStarted, "a container of the pod has started", "no container of the pod has started yet", failed)
	if line.ContainerStarted != nil {
		b.Status.Phase = v1alpha1.BerthRunning
	}
}

// trouble is what keeps the pod's sandbox from running. An agent that was started again has heard nothing yet: what an earlier one wrote is still true.
func (j *journal) trouble(b *v1alpha1.Berth) nodeconfig.Event {
	if e, ok := j.stages[b.Spec.Pod.UID][nodeconfig.StageTrouble]; ok {
		return e
	}
	c := meta.FindStatusCondition(b.Status.Conditions, v1alpha1.ConditionSandboxReady)
	if c == nil || c.Status == metav1.ConditionTrue || c.Reason == waitingReason {
		return nodeconfig.Event{}
	}
	return nodeconfig.Event{Reason: c.Reason, Message: c.Message}
}

func micro(t time.Time) *metav1.MicroTime {
	m := metav1.NewMicroTime(t)
	return &m
}

func parseMicro(s string) *metav1.MicroTime {
	t, err := time.Parse(time.RFC3339Nano, s)
	if err != nil {
		return nil
	}
	return micro(t)
}
