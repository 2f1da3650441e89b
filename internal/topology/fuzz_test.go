package topology

import (
	"encoding/json"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

// FuzzJudge: any two pods are judged without a panic, with an answer for each spot, and a pod without rules, beside one
// without, may go anywhere.
func FuzzJudge(f *testing.F) {
	f.Add([]byte(`{"metadata":{"namespace":"d","labels":{"a":"b"}},"spec":{"topologySpreadConstraints":[{"maxSkew":1,"topologyKey":"topology.kubernetes.io/zone","whenUnsatisfiable":"DoNotSchedule","labelSelector":{}}]}}`),
		[]byte(`{"metadata":{"namespace":"d","labels":{"a":"b"}}}`))
	f.Add([]byte(`{"spec":{"affinity":{"podAffinity":{"requiredDuringSchedulingIgnoredDuringExecution":[{"topologyKey":"kubernetes.io/hostname","labelSelector":{"matchLabels":{"a":"b"}}}]}}}}`),
		[]byte(`{"spec":{"affinity":{"podAntiAffinity":{"preferredDuringSchedulingIgnoredDuringExecution":[{"weight":3,"podAffinityTerm":{"topologyKey":"berth.run/host","namespaceSelector":{}}}]}}}}`))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		var asked, other corev1.Pod
		if json.Unmarshal(one, &asked) != nil || json.Unmarshal(two, &other) != nil {
			return
		}
		j := New("r", at("a/h1", &other), nil)
		why, err := j.Filter(&asked, spots)
		if err != nil {
			return // a selector that the API server would have refused
		}
		if len(why) != len(spots) {
			t.Fatalf("%d answers for %d spots", len(why), len(spots))
		}
		for _, w := range why {
			if w != "" && !Concerns(&asked, []corev1.Pod{other}) {
				t.Fatalf("a pod that has no rules is refused: %s", w)
			}
		}
		if scores, err := j.Score(&asked, spots); err == nil && len(scores) != len(spots) {
			t.Fatalf("%d scores for %d spots", len(scores), len(spots))
		}
	})
}
