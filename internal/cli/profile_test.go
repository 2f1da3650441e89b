package cli

import (
	"bytes"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/layout"
)

func requested(token string, tags map[string]string) *v1alpha1.FargateProfile {
	return &v1alpha1.FargateProfile{
		ObjectMeta: metav1.ObjectMeta{Name: "web", Annotations: map[string]string{v1alpha1.AnnotationClientRequestToken: token}},
		Spec: v1alpha1.FargateProfileSpec{Tags: tags, Selectors: []v1alpha1.Selector{
			{Namespace: "default", Labels: map[string]string{"b": "2", "a": "1"}}, {Namespace: "prod-*"}}},
		Status: v1alpha1.FargateProfileStatus{Status: v1alpha1.ProfileActive, Subnets: []string{"a", "b"}},
	}
}

func TestRepeatedRequest(t *testing.T) {
	tests := map[string]struct {
		asked *v1alpha1.FargateProfile
		want  string
	}{
		"facts 1.1: the same token finds the profile": {requested("t", map[string]string{"k": "v"}), ""},
		"facts 1.1: the token with other parameters":  {requested("t", nil), `client request token "t" was used before, for profile web with other parameters; use another token`},
		"facts 1.6: another token":                    {requested("u", map[string]string{"k": "v"}), "A Fargate Profile already exists with this name in this cluster."},
		"facts 1.6: no token":                         {requested("", map[string]string{"k": "v"}), "A Fargate Profile already exists with this name in this cluster."},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := ""
			if err := repeated(requested("t", map[string]string{"k": "v"}), test.asked); err != nil {
				got = err.Error()
			}
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

func TestGeneratedName(t *testing.T) {
	if a, b := generatedName("token"), generatedName("token"); a != b || len(a) != len("fp-9bfc77ad") || !strings.HasPrefix(a, "fp-") {
		t.Errorf("the same token gives %s and %s", a, b)
	}
	if a, b := generatedName(""), generatedName(""); a == b {
		t.Errorf("two requests without a token get the same name %s", a)
	}
}

// TestPrintProfiles: columns and fields of eksctl (facts 1.8).
func TestPrintProfiles(t *testing.T) {
	p := *requested("t", map[string]string{"team": "x"})
	var table, document bytes.Buffer
	if err := printProfiles(&table, []v1alpha1.FargateProfile{p}); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(table.String()), "\n")
	for i, want := range []string{
		"NAME SELECTOR_NAMESPACE SELECTOR_LABELS POD_EXECUTION_ROLE_ARN SUBNETS TAGS STATUS",
		"web default a=1,b=2 <none> a,b team=x ACTIVE",
		"web prod-* <none> <none> a,b team=x ACTIVE",
	} {
		if got := strings.Join(strings.Fields(lines[i]), " "); got != want {
			t.Errorf("line %d is %q, want %q", i, got, want)
		}
	}
	if err := encode(&document, "yaml", eksctlProfiles([]v1alpha1.FargateProfile{p})); err != nil {
		t.Fatal(err)
	}
	const want = "- name: web\n  selectors:\n  - labels:\n      a: \"1\"\n      b: \"2\"\n    namespace: default\n  - namespace: prod-*\n  status: ACTIVE\n  subnets:\n  - a\n  - b\n  tags:\n    team: x\n"
	if document.String() != want {
		t.Errorf("got\n%s\nwant\n%s", &document, want)
	}
	p.Status.Health.Issues = []v1alpha1.ProfileIssue{{Code: v1alpha1.IssueAccessDenied, Message: "no", ResourceIDs: []string{"default/web"}}}
	document.Reset()
	if err := encode(&document, "json", eksctlProfiles([]v1alpha1.FargateProfile{p})); err != nil {
		t.Fatal(err)
	}
	const health = `"health":{"issues":[{"code":"AccessDenied","message":"no","resourceIds":["default/web"]}]}`
	if got := strings.Join(strings.Fields(document.String()), ""); !strings.Contains(got, health) {
		t.Errorf("got %s, want %s in it", got, health)
	}
}

// TestMessages: what users of EKS know, word by word.
func TestMessages(t *testing.T) {
	_, noCluster := connect(layout.Dirs{}, "other")
	for name, test := range map[string]struct {
		got  error
		want string
	}{
		"facts 1.6: no such profile": {notFound("web"), "No Fargate Profile found with name: web."},
		"facts 1.6: no such cluster": {noCluster, "No cluster found for name: other."},
	} {
		if test.got == nil || test.got.Error() != test.want {
			t.Errorf("%s: got %v, want %q", name, test.got, test.want)
		}
	}
}

// TestTakeName: a name is given with its flag or without, once, and not as nothing.
func TestTakeName(t *testing.T) {
	for line, want := range map[string]string{
		"": "", "web": "web", "--name web": "web",
		"web --name db": `two names are given, "web" and --name "db": give one`,
		"--name=":       "--name is empty: leave it out, or give it a value",
	} {
		var got string
		c := &cobra.Command{Use: "x", SilenceUsage: true, SilenceErrors: true, RunE: func(c *cobra.Command, args []string) error { return takeName(c, args, &got) }}
		c.Flags().StringVar(&got, "name", "", "")
		c.SetArgs(strings.Fields(line))
		if err := c.Execute(); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: %q, want %q", line, got, want)
		}
	}
}
