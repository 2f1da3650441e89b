package patching

import (
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"github.com/berth-run/berth/internal/eks"
)

// Notice is the detail of EKS's event "EKS Fargate Pod Scheduled Termination" (facts 6), field by field.
type Notice struct {
	ClusterName              string `json:"clusterName"`
	FargateProfileName       string `json:"fargateProfileName"`
	PodName                  string `json:"podName"`
	PodNamespace             string `json:"podNamespace"`
	EvictErrorMessage        string `json:"evictErrorMessage"`
	ScheduledTerminationTime string `json:"scheduledTerminationTime"`
}

// NoticeOf a pod that could not be evicted, because of what the API server said, and is terminated at the time.
func NoticeOf(cluster string, s Subject, said string, at time.Time) Notice {
	return Notice{ClusterName: cluster, FargateProfileName: s.Berth.Spec.ProfileName, PodName: s.Pod.Name, PodNamespace: s.Pod.Namespace,
		EvictErrorMessage: strings.TrimSuffix(said, "."), ScheduledTerminationTime: eks.TerminationTime(at)}
}

// JSON is the detail as EKS sends it.
func (n Notice) JSON() string {
	data, err := json.Marshal(n)
	if err != nil {
		panic(err) // strings cannot fail to marshal
	}
	return string(data)
}

func (n Notice) String() string {
	return fmt.Sprintf("%s: %s. scheduledTerminationTime: %s", eks.DetailTypeTermination, n.EvictErrorMessage, n.ScheduledTerminationTime)
}

// Notification is the first notice: that the pod is subject to eviction.
func Notification(s Subject, began time.Time) string {
	return fmt.Sprintf("Any pods created before %s are subject to eviction: the pod's node has version %s, its host makes %s now",
		began.UTC().Format(time.RFC3339), s.Berth.Status.NodeVersion, s.Current)
}
