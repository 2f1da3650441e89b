package hostagent

import (
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/nodeconfig"
)

// TestSandboxFailure: the Berth says why its sandbox does not start, the last of several reasons, until it has started.
func TestSandboxFailure(t *testing.T) {
	told := 0
	j := newJournal(func(types.UID) { told++ })
	b := &v1alpha1.Berth{Spec: v1alpha1.BerthSpec{Pod: v1alpha1.PodReference{UID: "uid"}}}
	says := func(kind, reason, message string) {
		t.Helper()
		j.apply(b)
		if c := meta.FindStatusCondition(b.Status.Conditions, kind); c == nil || c.Reason != reason || message != "" && c.Message != message {
			t.Errorf("condition %s is %+v, want %s %q", kind, c, reason, message)
		}
	}
	says(v1alpha1.ConditionSandboxReady, "Waiting", "")
	for _, why := range []string{"no guest image", "no space"} {
		j.record(nodeconfig.Event{PodUID: "uid", Stage: nodeconfig.StageSandboxFailed, Time: time.Now(), Message: why})
		says(v1alpha1.ConditionSandboxReady, "SandboxFailed", why)
		says(v1alpha1.ConditionReady, "SandboxFailed", why)
	}
	if told != 2 {
		t.Errorf("the reconciler was told %d times, want 2", told)
	}
	j.record(nodeconfig.Event{PodUID: "uid", Stage: nodeconfig.StageSandboxStarted, Time: time.Now()})
	says(v1alpha1.ConditionSandboxReady, "Done", "")
	says(v1alpha1.ConditionReady, "Waiting", "")
}
