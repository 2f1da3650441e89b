package hostagent

import (
	"reflect"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/nodeconfig"
)

// TestTrouble: the Berth says what keeps its sandbox from running, the last of several reasons, as long as that is so.
func TestTrouble(t *testing.T) {
	told := 0
	j := newJournal(func(types.UID) { told++ })
	b := &v1alpha1.Berth{Spec: v1alpha1.BerthSpec{Pod: v1alpha1.PodReference{UID: "uid"}}}
	says := func(kind, reason, message string) {
		t.Helper()
		j.apply(b)
		c := meta.FindStatusCondition(b.Status.Conditions, kind)
		if c == nil || c.Reason != reason || message != "" && c.Message != message {
			t.Errorf("condition %s is %+v, want %s %q", kind, c, reason, message)
		}
		before := b.DeepCopy()
		if j.apply(b); !reflect.DeepEqual(b, before) {
			t.Errorf("to say it again changes the status from %+v to %+v", before.Status, b.Status)
		}
	}
	stage := func(stage nodeconfig.Stage, reason, message string) {
		j.record(nodeconfig.Event{PodUID: "uid", Stage: stage, Time: time.Now(), Reason: reason, Message: message})
	}
	says(v1alpha1.ConditionSandboxReady, "Waiting", "")
	for _, why := range []string{"no guest image", "no space"} {
		stage(nodeconfig.StageTrouble, "SandboxFailed", why)
		says(v1alpha1.ConditionSandboxReady, "SandboxFailed", why)
		says(v1alpha1.ConditionReady, "SandboxFailed", why)
	}
	stage(nodeconfig.StageTrouble, "", "")
	if told != 3 {
		t.Errorf("the reconciler was told %d times, want 3", told)
	}
	stage(nodeconfig.StageSandboxStarted, "", "")
	says(v1alpha1.ConditionSandboxReady, "Done", "")
	says(v1alpha1.ConditionReady, "Waiting", "")
	stage(nodeconfig.StageContainerStarted, "", "")
	stage(nodeconfig.StageTrouble, "HostDiskFull", "free some space")
	says(v1alpha1.ConditionSandboxReady, "HostDiskFull", "free some space")
	says(v1alpha1.ConditionReady, "HostDiskFull", "free some space")
	// The agent is started again and has heard nothing; then the pod's kubelet is, and tells of no trouble.
	j = newJournal(func(types.UID) {})
	says(v1alpha1.ConditionSandboxReady, "HostDiskFull", "free some space")
	stage(nodeconfig.StageConfigured, "", "")
	says(v1alpha1.ConditionSandboxReady, "Done", "")
	says(v1alpha1.ConditionReady, "Done", "")
}
