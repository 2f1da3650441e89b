package profile

import (
	"encoding/json"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
)

// TestMatchesBeyondEKS: matchExpressions and namespaceSelector, as label selectors are everywhere in Kubernetes.
func TestMatchesBeyondEKS(t *testing.T) {
	expression := func(key string, operator metav1.LabelSelectorOperator, values ...string) metav1.LabelSelectorRequirement {
		return metav1.LabelSelectorRequirement{Key: key, Operator: operator, Values: values}
	}
	pods := func(e ...metav1.LabelSelectorRequirement) v1alpha1.Selector {
		return v1alpha1.Selector{Namespace: "*", MatchExpressions: e}
	}
	namespaces := func(name string, e ...metav1.LabelSelectorRequirement) v1alpha1.Selector {
		return v1alpha1.Selector{Namespace: name, NamespaceSelector: &metav1.LabelSelector{MatchExpressions: e}}
	}
	ns := Namespace{"shop", map[string]string{"kubernetes.io/metadata.name": "shop", "team": "a"}}
	podLabels := map[string]string{"app": "web"}
	tests := map[string]struct {
		sel  v1alpha1.Selector
		want bool
	}{
		"In":                             {pods(expression("app", "In", "web", "api")), true},
		"In, another value":              {pods(expression("app", "In", "api")), false},
		"NotIn excludes":                 {pods(expression("app", "NotIn", "web")), false},
		"NotIn takes pods without it":    {pods(expression("tier", "NotIn", "web")), true},
		"Exists":                         {pods(expression("app", "Exists")), true},
		"DoesNotExist excludes":          {pods(expression("app", "DoesNotExist")), false},
		"all expressions":                {pods(expression("app", "Exists"), expression("tier", "Exists")), false},
		"no wildcards in expressions":    {pods(expression("app", "In", "w*b")), false},
		"a malformed one matches none":   {pods(expression("app", "Like", "web")), false},
		"labels and expressions":         {v1alpha1.Selector{Namespace: "*", Labels: map[string]string{"app": "api"}, MatchExpressions: []metav1.LabelSelectorRequirement{expression("app", "Exists")}}, false},
		"namespaceSelector alone":        {namespaces("", expression("team", "In", "a")), true},
		"namespaceSelector excludes":     {namespaces("", expression("kubernetes.io/metadata.name", "NotIn", "kube-system", "shop")), false},
		"namespace and its selector":     {namespaces("sh*", expression("team", "In", "a")), true},
		"another namespace":              {namespaces("kube-*", expression("team", "In", "a")), false},
		"an empty one takes all":         {v1alpha1.Selector{NamespaceSelector: &metav1.LabelSelector{}}, true},
		"expressions need a namespace":   {v1alpha1.Selector{MatchExpressions: []metav1.LabelSelectorRequirement{expression("app", "Exists")}}, false},
		"the selector's own matchLabels": {v1alpha1.Selector{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "b"}}}, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := Matches(test.sel, ns, podLabels); got != test.want {
				t.Fatalf("got %v", got)
			}
		})
	}
}

func TestMatches(t *testing.T) {
	tests := map[string]struct {
		sel       v1alpha1.Selector
		namespace string
		labels    map[string]string
		want      bool
	}{
		"facts 1.4: no labels take the namespace":  {v1alpha1.Selector{Namespace: "a"}, "a", nil, true},
		"facts 1.4: another namespace":             {v1alpha1.Selector{Namespace: "a"}, "b", nil, false},
		"facts 1.4: wildcard in the namespace":     {v1alpha1.Selector{Namespace: "*dev"}, "team-dev", nil, true},
		"facts 1.4: wildcard in the key":           {v1alpha1.Selector{Namespace: "a", Labels: map[string]string{"ap?": "x"}}, "a", map[string]string{"app": "x"}, true},
		"facts 1.4: wildcard in the value":         {v1alpha1.Selector{Namespace: "a", Labels: map[string]string{"app": "prod*"}}, "a", map[string]string{"app": "prod"}, true},
		"facts 1.4: all labels, one is missing":    {v1alpha1.Selector{Namespace: "a", Labels: map[string]string{"k": "v", "l": "w"}}, "a", map[string]string{"k": "v"}, false},
		"facts 1.4: key and value of one label":    {v1alpha1.Selector{Namespace: "a", Labels: map[string]string{"k*": "2"}}, "a", map[string]string{"k1": "1", "x": "2"}, false},
		"facts 1.2: an empty namespace is nothing": {v1alpha1.Selector{}, "", nil, false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := Matches(test.sel, Namespace{Name: test.namespace}, test.labels); got != test.want {
				t.Fatalf("got %v", got)
			}
		})
	}
}

// TestSelectSaysWhy: each profile that was not taken is there, with its own reason.
func TestSelectSaysWhy(t *testing.T) {
	all := v1alpha1.Selector{Namespace: "*"}
	creating, deleting := active("a-creating", all), active("b-deleting", all)
	creating.Status.Status = ""
	deleting.DeletionTimestamp = &metav1.Time{}
	profiles := []v1alpha1.FargateProfile{active("e-later", all), active("d-first", all), active("c-other", v1alpha1.Selector{Namespace: "other"}), deleting, creating}
	d := Select(profiles, &corev1.Pod{}, Namespace{Name: "default"})
	if d.Profile == nil || d.Profile.Name != "d-first" {
		t.Fatalf("got %+v", d)
	}
	want := []string{"a-creating", "b-deleting", "c-other", "e-later"}
	if len(d.Rejected) != len(want) {
		t.Fatalf("got %+v, want %v", d.Rejected, want)
	}
	for i, r := range d.Rejected {
		if r.Profile != want[i] || r.Why == "" {
			t.Errorf("got %+v, want %s with a reason", r, want[i])
		}
	}
	if profiles[0].Name != "e-later" {
		t.Error("the caller's slice was sorted")
	}
}

// FuzzSelect: any profiles and pod give an answer with a reason, and a profile that is taken matches.
func FuzzSelect(f *testing.F) {
	f.Add([]byte(`{"items":[{"metadata":{"name":"web"},"spec":{"selectors":[{"namespace":"d*","labels":{"a?p":"*"}}]},"status":{"status":"ACTIVE"}}]}`),
		[]byte(`{"metadata":{"labels":{"app":"x"}}}`), "default", "team", "x")
	f.Add([]byte(`{"items":[{"metadata":{"name":"web"},"spec":{"selectors":[{"namespaceSelector":{"matchExpressions":[{"key":"team","operator":"NotIn","values":["y"]}]},`+
		`"matchExpressions":[{"key":"app","operator":"Exists"}]}]},"status":{"status":"CREATING"}}]}`), []byte(`{"metadata":{"labels":{"app":"x"}}}`), "default", "team", "x")
	f.Fuzz(func(t *testing.T, list, raw []byte, name, key, value string) {
		namespace := Namespace{name, map[string]string{key: value}}
		var profiles v1alpha1.FargateProfileList
		var pod corev1.Pod
		if json.Unmarshal(list, &profiles) != nil || json.Unmarshal(raw, &pod) != nil {
			return
		}
		d := Select(profiles.Items, &pod, namespace)
		if d.Reason == "" {
			t.Fatal("no reason")
		}
		if d.Profile == nil {
			return
		}
		if forced := pod.Labels[eks.LabelProfile]; forced != "" && forced != d.Profile.Name {
			t.Fatalf("took %s, the label names %s", d.Profile.Name, forced)
		}
		for _, sel := range d.Profile.Spec.Selectors {
			if Matches(sel, namespace, pod.Labels) {
				return
			}
		}
		t.Fatalf("took %s, which does not match", d.Profile.Name)
	})
}
