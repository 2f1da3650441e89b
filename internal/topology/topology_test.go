package topology

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/utils/ptr"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/placement"
)

const zone = corev1.LabelTopologyZone

// spots are what the profile has: two hosts that serve zones a and b.
var spots = []placement.Spot{{Zone: "a", Host: "h1"}, {Zone: "a", Host: "h2"}, {Zone: "b", Host: "h1"}, {Zone: "b", Host: "h2"}}

func pod(change ...func(*corev1.Pod)) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", Labels: map[string]string{"app": "web"}}}
	for _, c := range change {
		c(p)
	}
	return p
}

func labelled(app string) func(*corev1.Pod) {
	return func(p *corev1.Pod) { p.Labels = map[string]string{"app": app} }
}

// at are pods on spots, written as "a/h1".
func at(spot string, pods ...*corev1.Pod) []Placed {
	z, host, _ := strings.Cut(spot, "/")
	var out []Placed
	for _, p := range pods {
		out = append(out, Placed{p, placement.Spot{Zone: z, Host: host}})
	}
	return out
}

func app(name string) *metav1.LabelSelector {
	return &metav1.LabelSelector{MatchLabels: map[string]string{"app": name}}
}

func spread(key string, skew int32, when corev1.UnsatisfiableConstraintAction, change ...func(*corev1.TopologySpreadConstraint)) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		c := corev1.TopologySpreadConstraint{TopologyKey: key, MaxSkew: skew, WhenUnsatisfiable: when, LabelSelector: app("web")}
		for _, f := range change {
			f(&c)
		}
		p.Spec.TopologySpreadConstraints = append(p.Spec.TopologySpreadConstraints, c)
	}
}

func affinity(p *corev1.Pod) *corev1.Affinity {
	if p.Spec.Affinity == nil {
		p.Spec.Affinity = &corev1.Affinity{}
	}
	return p.Spec.Affinity
}

func near(term corev1.PodAffinityTerm) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		affinity(p).PodAffinity = &corev1.PodAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{term}}
	}
}

func apart(term corev1.PodAffinityTerm) func(*corev1.Pod) {
	return func(p *corev1.Pod) {
		affinity(p).PodAntiAffinity = &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{term}}
	}
}

func term(key, name string) corev1.PodAffinityTerm {
	return corev1.PodAffinityTerm{TopologyKey: key, LabelSelector: app(name)}
}

// TestFilter: kube-scheduler's semantics over zones and hosts. What is wanted lists the spots that are allowed.
func TestFilter(t *testing.T) {
	const everywhere = "a/h1 a/h2 b/h1 b/h2"
	leaving := pod(func(p *corev1.Pod) { p.DeletionTimestamp = &metav1.Time{} })
	elsewhere := pod(func(p *corev1.Pod) { p.Namespace = "other" })
	hard := corev1.DoNotSchedule
	tests := map[string]struct {
		pod    *corev1.Pod
		placed []Placed
		want   string
	}{
		"no rules":                                     {pod(), at("a/h1", pod(), pod()), everywhere},
		"spread over zones, even":                      {pod(spread(zone, 1, hard)), append(at("a/h1", pod()), at("b/h2", pod())...), everywhere},
		"spread over zones, 1 to 0":                    {pod(spread(zone, 1, hard)), at("a/h1", pod()), "b/h1 b/h2"},
		"spread over zones, 1 to 0, skew 2":            {pod(spread(zone, 2, hard)), at("a/h1", pod()), everywhere},
		"spread over zones, not required":              {pod(spread(zone, 1, corev1.ScheduleAnyway)), at("a/h1", pod(), pod()), everywhere},
		"spread: a pod that is leaving does not count": {pod(spread(zone, 1, hard)), at("a/h1", leaving), everywhere},
		"spread: other namespaces do not count":        {pod(spread(zone, 1, hard)), at("a/h1", elsewhere), everywhere},
		"spread: a zone that the profile lacks is no domain": {pod(spread(zone, 1, hard)),
			append(append(at("a/h1", pod()), at("b/h1", pod())...), at("c/h1", pod(labelled("db")))...), everywhere},
		"spread: nodeAffinityPolicy Ignore counts that zone": {pod(spread(zone, 1, hard, func(c *corev1.TopologySpreadConstraint) {
			c.NodeAffinityPolicy = ptr.To(corev1.NodeInclusionPolicyIgnore)
		})), append(append(at("a/h1", pod()), at("b/h1", pod())...), at("c/h1", pod(labelled("db")))...), ""},
		"spread: the node selector, judged elsewhere, leaves one domain": {pod(spread(zone, 1, hard), func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{zone: "a"} }),
			at("a/h1", pod()), everywhere},
		"spread: minDomains": {pod(spread(zone, 1, hard, func(c *corev1.TopologySpreadConstraint) { c.MinDomains = ptr.To(int32(3)) })),
			append(at("a/h1", pod()), at("b/h1", pod())...), ""},
		"spread: matchLabelKeys": {pod(spread(zone, 1, hard, func(c *corev1.TopologySpreadConstraint) {
			c.LabelSelector, c.MatchLabelKeys = &metav1.LabelSelector{}, []string{"app"}
		})), append(at("a/h1", pod(labelled("db"))), at("b/h1", pod())...), "a/h1 a/h2"},
		"spread: a label that no node has":     {pod(spread("rack", 1, hard)), nil, ""},
		"spread: zones and hosts together":     {pod(spread(zone, 1, hard), spread(v1alpha1.LabelHost, 1, hard)), at("a/h1", pod()), "b/h2"},
		"spread over hosts that is required":   {pod(spread(v1alpha1.LabelHost, 1, hard)), at("a/h1", pod()), "a/h2 b/h2"},
		"spread over hostnames is met anyway":  {pod(spread(corev1.LabelHostname, 1, hard)), at("a/h1", pod(), pod()), everywhere},
		"apart in zones":                       {pod(apart(term(zone, "web"))), at("a/h1", pod()), "b/h1 b/h2"},
		"apart in zones, of others":            {pod(apart(term(zone, "db"))), at("a/h1", pod()), everywhere},
		"apart on hosts":                       {pod(apart(term(v1alpha1.LabelHost, "web"))), at("a/h1", pod()), "a/h2 b/h2"},
		"apart on hostnames is met anyway":     {pod(apart(term(corev1.LabelHostname, "web"))), at("a/h1", pod()), everywhere},
		"apart: the other pod's rule counts":   {pod(), at("a/h1", pod(labelled("db"), apart(term(zone, "web")))), "b/h1 b/h2"},
		"apart: the other's hostname does not": {pod(), at("a/h1", pod(labelled("db"), apart(term(corev1.LabelHostname, "web")))), everywhere},
		"near in zones":                        {pod(near(term(zone, "db"))), at("b/h2", pod(labelled("db"))), "b/h1 b/h2"},
		"near on hosts":                        {pod(near(term(v1alpha1.LabelHost, "db"))), at("b/h2", pod(labelled("db"))), "a/h2 b/h2"},
		"near on one hostname is a wish":       {pod(near(term(corev1.LabelHostname, "db"))), nil, everywhere},
		"near what does not exist":             {pod(near(term(zone, "db"))), at("b/h2", pod()), ""},
		"near its own kind, the first of them": {pod(near(term(zone, "web"))), nil, everywhere},
		"near, in a zone that is not offered":  {pod(near(term(zone, "db"))), at("c/h1", pod(labelled("db"))), ""},
		"near, by the namespace's labels": {pod(near(corev1.PodAffinityTerm{TopologyKey: zone, LabelSelector: app("web"),
			NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "x"}}}), labelled("client")), at("b/h1", elsewhere), "b/h1 b/h2"},
	}
	namespaces := []corev1.Namespace{{ObjectMeta: metav1.ObjectMeta{Name: "default"}}, {ObjectMeta: metav1.ObjectMeta{Name: "other", Labels: map[string]string{"team": "x"}}}}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			why, err := New("r", test.placed, namespaces).Filter(test.pod, spots)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for i, s := range spots {
				if why[i] == "" {
					got = append(got, s.Zone+"/"+s.Host)
				}
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("allowed at %v, want %q; why not: %q", got, test.want, why)
			}
		})
	}
}

// TestScore: preferences, and what is required of hostnames. What is wanted is the best of the spots, or more if they are equal.
func TestScore(t *testing.T) {
	weighted := func(t corev1.PodAffinityTerm) []corev1.WeightedPodAffinityTerm {
		return []corev1.WeightedPodAffinityTerm{{Weight: 10, PodAffinityTerm: t}}
	}
	inZone := func(z string) func(*corev1.Pod) {
		return func(p *corev1.Pod) {
			affinity(p).NodeAffinity = &corev1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{Weight: 1,
				Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{{Key: zone, Operator: corev1.NodeSelectorOpIn, Values: []string{z}}}}}}}
		}
	}
	tests := map[string]struct {
		pod    *corev1.Pod
		placed []Placed
		want   string
	}{
		"nothing is preferred":           {pod(), at("a/h1", pod()), "a/h1 a/h2 b/h1 b/h2"},
		"a zone":                         {pod(inZone("b")), nil, "b/h1 b/h2"},
		"spread over zones":              {pod(spread(zone, 1, corev1.ScheduleAnyway)), at("a/h1", pod()), "b/h1 b/h2"},
		"required spread over hostnames": {pod(spread(corev1.LabelHostname, 1, corev1.DoNotSchedule)), at("a/h1", pod()), "a/h2 b/h2"},
		"required apart on hostnames":    {pod(apart(term(corev1.LabelHostname, "web"))), at("b/h2", pod()), "a/h1 b/h1"},
		"required near on one hostname":  {pod(near(term(corev1.LabelHostname, "db"))), at("b/h2", pod(labelled("db"))), "a/h2 b/h2"},
		"near in zones": {pod(func(p *corev1.Pod) {
			affinity(p).PodAffinity = &corev1.PodAffinity{PreferredDuringSchedulingIgnoredDuringExecution: weighted(term(zone, "db"))}
		}), at("b/h2", pod(labelled("db"))), "b/h1 b/h2"},
		"apart on hostnames": {pod(func(p *corev1.Pod) {
			affinity(p).PodAntiAffinity = &corev1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: weighted(term(corev1.LabelHostname, "web"))}
		}), at("b/h2", pod()), "a/h1 b/h1"},
		"the other pod's hostname": {pod(), at("a/h1", pod(labelled("db"), apart(term(corev1.LabelHostname, "web")))), "a/h2 b/h2"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			scores, err := New("r", test.placed, nil).Score(test.pod, spots)
			if err != nil {
				t.Fatal(err)
			}
			best := scores[0]
			for _, s := range scores {
				best = max(best, s)
			}
			var got []string
			for i, s := range spots {
				if scores[i] == best {
					got = append(got, s.Zone+"/"+s.Host)
				}
			}
			if strings.Join(got, " ") != test.want {
				t.Errorf("best are %v, want %q; scores %v", got, test.want, scores)
			}
		})
	}
}

// BenchmarkFilter: one decision among 10,000 pods, most of which have no rules.
func BenchmarkFilter(b *testing.B) {
	var placed []Placed
	for i := range 10_000 {
		p := pod(labelled("other"))
		if i%100 == 0 {
			p = pod(apart(term(corev1.LabelHostname, "web")))
		}
		placed = append(placed, at(fmt.Sprintf("%c/h%d", 'a'+i%3, i%20), p)...)
	}
	asked := pod(spread(zone, 1, corev1.DoNotSchedule), apart(term(v1alpha1.LabelHost, "web")))
	for b.Loop() {
		if _, err := New("r", placed, nil).Filter(asked, spots); err != nil {
			b.Fatal(err)
		}
	}
}

// TestPodsStayAsTheyAre: the pods are those of a cache that others read.
func TestPodsStayAsTheyAre(t *testing.T) {
	make := func() *corev1.Pod {
		return pod(spread(corev1.LabelHostname, 1, corev1.DoNotSchedule), apart(term(corev1.LabelHostname, "web")), near(term(zone, "web")))
	}
	asked, other := make(), make()
	j := New("r", at("a/h1", other), nil)
	if _, err := j.Filter(asked, spots); err != nil {
		t.Fatal(err)
	}
	if _, err := j.Score(asked, spots); err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprint(make()); fmt.Sprint(asked) != want || fmt.Sprint(other) != want {
		t.Error("a pod was changed")
	}
}

func TestOfAndConcerns(t *testing.T) {
	named := func(uid types.UID, phase corev1.PodPhase) corev1.Pod {
		return *pod(func(p *corev1.Pod) { p.UID, p.Status.Phase = uid, phase })
	}
	pods := []corev1.Pod{named("runs", corev1.PodRunning), named("waits", corev1.PodPending), named("ended", corev1.PodSucceeded), named("nowhere", corev1.PodPending)}
	var berths []v1alpha1.Berth
	for _, uid := range []types.UID{"runs", "waits", "ended"} {
		berths = append(berths, v1alpha1.Berth{Spec: v1alpha1.BerthSpec{Pod: v1alpha1.PodReference{UID: uid}, Zone: "a", HostName: "h1"}})
	}
	placed := Of(pods, berths)
	if len(placed) != 2 || placed[0].Pod.UID != "runs" || placed[1].Pod.UID != "waits" || placed[0].Spot != spots[0] {
		t.Errorf("placed are %+v, want the two that have a berth and have not ended", placed)
	}
	if Concerns(pod(), pods) || !Concerns(pod(spread(zone, 1, corev1.ScheduleAnyway)), nil) || !Concerns(pod(), []corev1.Pod{*pod(apart(term(zone, "web")))}) {
		t.Error("a pod concerns the judge if it has a rule, or another has one")
	}
}
