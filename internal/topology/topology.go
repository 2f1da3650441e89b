// Package topology judges where a pod may go by its topology spread constraints, its pod affinity and anti-affinity, and
// those of the pods that run already. The judgement is kube-scheduler's own: its plugins look at one node per zone and host,
// which carries the pods that are there. Only this package imports the scheduler.
//
// Each pod has a node of its own, so a rule over kubernetes.io/hostname cannot say anything about two pods. What its author
// cares for is the machine: such a rule is taken as a preference over Hosts. A rule over berth.run/host is meant as it says
// (docs/decisions/20261125-hostname-is-a-wish.md).
package topology

import (
	"context"
	"fmt"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	fwk "k8s.io/kube-scheduler/framework"
	"k8s.io/kubernetes/pkg/scheduler/framework"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/placement"
)

// labelOffered is on the nodes that the pod's profile has. Domains are counted among these, as kube-scheduler counts those
// that meet a pod's node selector.
const labelOffered = "berth.run/offered"

// Placed is a pod and where it is.
type Placed struct {
	Pod *corev1.Pod
	placement.Spot
}

// Judge is a placement.Topology of the pods of one moment. It is not for concurrent use.
type Judge struct {
	region     string
	placed     map[placement.Spot]*framework.NodeInfo
	namespaces []corev1.Namespace
}

var _ placement.Topology = (*Judge)(nil)

// Of pairs pods with the berths that they have, or are about to have; pods without one, and those that have ended, are nowhere.
func Of(pods []corev1.Pod, berths []v1alpha1.Berth) []Placed {
	at := map[string]placement.Spot{}
	for i := range berths {
		at[string(berths[i].Spec.Pod.UID)] = placement.Spot{Zone: berths[i].Spec.Zone, Host: berths[i].Spec.HostName}
	}
	var out []Placed
	for i := range pods {
		p := &pods[i]
		spot, placed := at[string(p.UID)]
		if placed && p.Status.Phase != corev1.PodSucceeded && p.Status.Phase != corev1.PodFailed {
			out = append(out, Placed{p, spot})
		}
	}
	return out
}

// Concerns tells whether there is anything to judge: a preference or rule of the pod, or one of the others. It is asked for
// every pod, and mostly says no.
func Concerns(pod *corev1.Pod, others []corev1.Pod) bool {
	a := pod.Spec.Affinity
	return len(pod.Spec.TopologySpreadConstraints) > 0 || affine(pod) ||
		a != nil && a.NodeAffinity != nil && len(a.NodeAffinity.PreferredDuringSchedulingIgnoredDuringExecution) > 0 ||
		anyAffine(others)
}

func anyAffine(pods []corev1.Pod) bool {
	for i := range pods {
		if affine(&pods[i]) {
			return true
		}
	}
	return false
}

func affine(pod *corev1.Pod) bool {
	a := pod.Spec.Affinity
	return a != nil && (a.PodAffinity != nil || a.PodAntiAffinity != nil)
}

// New makes a judge; namespaces are those that terms select by their labels.
func New(region string, placed []Placed, namespaces []corev1.Namespace) *Judge {
	j := &Judge{region: region, placed: map[placement.Spot]*framework.NodeInfo{}, namespaces: namespaces}
	pods := map[placement.Spot][]*corev1.Pod{}
	for _, p := range placed {
		pods[p.Spot] = append(pods[p.Spot], meant(p.Pod))
	}
	for s, list := range pods {
		j.placed[s] = framework.NewNodeInfo(list...)
	}
	return j
}

// Filter is of placement.Topology.
func (j *Judge) Filter(pod *corev1.Pod, spots []placement.Spot) ([]string, error) {
	ctx := context.Background() // the plugins compute only
	asked, nodes := asking(pod), j.nodes(spots)
	plugins, err := newPlugins(ctx, nodes, j.namespaces)
	if err != nil {
		return nil, err
	}
	why := make([]string, len(spots))
	for _, p := range plugins.filters {
		state := framework.NewCycleState()
		_, first := p.PreFilter(ctx, state, asked, nodes)
		if first.IsSkip() {
			continue
		}
		for i := range spots {
			status := first
			if first.IsSuccess() {
				status = p.Filter(ctx, state, asked, nodes[i])
			}
			switch {
			case status.IsRejected():
				why[i] = join(why[i], status.Reasons())
			case !status.IsSuccess():
				return nil, fmt.Errorf("%s: %w", p.Name(), status.AsError())
			}
		}
	}
	return why, nil
}

// Score is of placement.Topology: the sum of the plugins' normalized scores, which kube-scheduler gives equal weight.
func (j *Judge) Score(pod *corev1.Pod, spots []placement.Spot) ([]int64, error) {
	ctx := context.Background() // the plugins compute only
	asked, nodes := asking(pod), j.nodes(spots)
	plugins, err := newPlugins(ctx, nodes, j.namespaces)
	if err != nil {
		return nil, err
	}
	sum := make([]int64, len(spots))
	for _, p := range plugins.scores {
		state := framework.NewCycleState()
		status := p.PreScore(ctx, state, asked, nodes[:len(spots)])
		if status.IsSkip() {
			continue
		}
		if !status.IsSuccess() {
			return nil, fmt.Errorf("%s: %w", p.Name(), status.AsError())
		}
		scores := make(fwk.NodeScoreList, len(spots))
		for i := range spots {
			score, status := p.Score(ctx, state, asked, nodes[i])
			if !status.IsSuccess() {
				return nil, fmt.Errorf("%s: %w", p.Name(), status.AsError())
			}
			scores[i] = fwk.NodeScore{Name: nodes[i].Node().Name, Score: score}
		}
		if e := p.ScoreExtensions(); e != nil {
			if status := e.NormalizeScore(ctx, state, asked, scores); !status.IsSuccess() {
				return nil, fmt.Errorf("%s: %w", p.Name(), status.AsError())
			}
		}
		for i := range scores {
			sum[i] += scores[i].Score
		}
	}
	return sum, nil
}

func join(why string, more []string) string {
	return strings.TrimPrefix(why+", "+strings.Join(more, ", "), ", ")
}

// nodes are one for each spot, in their order, and then one for each other place that has pods.
func (j *Judge) nodes(spots []placement.Spot) []fwk.NodeInfo {
	var out []fwk.NodeInfo
	for _, s := range spots {
		out = append(out, j.node(s, true))
	}
	for s := range j.placed {
		if !slices.Contains(spots, s) {
			out = append(out, j.node(s, false))
		}
	}
	return out
}

func (j *Judge) node(s placement.Spot, offered bool) fwk.NodeInfo {
	labels := placement.Labels(j.region, s.Zone, s.Host)
	if offered {
		labels[labelOffered] = "true"
	}
	info := j.placed[s]
	if info == nil {
		info = framework.NewNodeInfo()
	}
	info.SetNode(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: s.Zone + "/" + s.Host, Labels: labels}})
	return info
}
