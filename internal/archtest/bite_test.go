package archtest

import (
	"go/ast"
	"go/parser"
	"go/token"
	"testing"
)

// TestRulesBite shows that the rules would notice what they are for.
func TestRulesBite(t *testing.T) {
	tests := map[string]struct {
		pkg, imports string
		refused      bool
	}{
		"cmd builds a controller":                   {"cmd/berth-controller", module + "/internal/controller", false},
		"cli starts the local cluster":              {"internal/cli", module + "/internal/localcluster", false},
		"a service uses a pure package":             {"internal/controller/scheduler", module + "/internal/sizing", false},
		"a service uses its own folders":            {"internal/controller", module + "/internal/controller/scheduler", false},
		"an adapter uses an adapter":                {"internal/images", module + "/internal/runtimeconf", false},
		"a pure package uses the types":             {"internal/profile", apiModule + "/v1alpha1", false},
		"a pure package uses addresses":             {"internal/ipam", "net/netip", false},
		"node assembles the kubelet":                {"internal/node", "k8s.io/kubernetes/pkg/kubelet", false},
		"a command uses its own folders":            {"cmd/berth", module + "/cmd/berth/flags", false},
		"a pure package uses a service":             {"internal/sizing", module + "/internal/controller", true},
		"a pure package uses the kit":               {"internal/sizing", module + "/internal/kit/conditions", true},
		"the kit uses an adapter":                   {"internal/kit/conditions", module + "/internal/node", true},
		"an adapter uses a service":                 {"internal/node", module + "/internal/hostagent", true},
		"a service uses another":                    {"internal/hostagent", module + "/internal/controller/scheduler", true},
		"a service uses the cli":                    {"internal/localcluster", module + "/internal/cli", true},
		"cli uses a command":                        {"internal/cli", module + "/cmd/berth", true},
		"api uses ours":                             {"api/v1alpha1", module + "/internal/eks", true},
		"api uses controller-runtime":               {"api/v1alpha1", "sigs.k8s.io/controller-runtime/pkg/scheme", true},
		"a pure package uses a client":              {"internal/placement", "k8s.io/client-go/kubernetes", true},
		"a pure package starts a program":           {"internal/placement", "os/exec", true},
		"a pure package asks the web":               {"internal/placement", "net/http", true},
		"a pure package reads files":                {"internal/layout", "os", true},
		"the host agent uses the kubelet":           {"internal/hostagent", "k8s.io/kubernetes/pkg/kubelet/cm", true},
		"topology uses the scheduler":               {"internal/topology", "k8s.io/kubernetes/pkg/scheduler/framework", false},
		"the controllers use the scheduler":         {"internal/controller/scheduler", "k8s.io/kube-scheduler/framework", true},
		"a command uses the kubelet":                {"cmd/berth-node", "k8s.io/kubernetes/cmd/kubelet/app", true},
		"internal/nodeconfig is not internal/node":  {"internal/nodeconfig", "k8s.io/kubernetes/pkg/kubelet", true},
		"a name that only begins like a pure one":   {"internal/profiler", "os", false},
		"a module that only begins like an allowed": {"internal/profile", "k8s.io/apiserver/pkg/server", true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if why := refuse(test.pkg, test.imports); (why != "") != test.refused {
				t.Fatalf("%s imports %s: got %q, want refused %v", test.pkg, test.imports, why, test.refused)
			}
		})
	}
}

func TestSourceRulesBite(t *testing.T) {
	tests := map[string]struct {
		text       string
		clock      int
		documented bool
	}{
		"documented, no clock":          {"// Package p adds.\npackage p\nimport \"time\"\nvar D = time.Second", 0, true},
		"asks for the time":             {"// Package p adds.\npackage p\nimport \"time\"\nvar T = time.Now()", 1, true},
		"hands the clock on":            {"// Package p adds.\npackage p\nimport \"time\"\nvar T = time.Now", 1, true},
		"renames the package":           {"// Package p adds.\npackage p\nimport clock \"time\"\nvar T = clock.Since(clock.Now())", 2, true},
		"another package's Now":         {"// Package p adds.\npackage p\nimport \"x/time\"\nvar T = time.Now()", 0, true},
		"no comment":                    {"package p", 0, false},
		"a comment that is not its own": {"// Helpers.\npackage p", 0, false},
		"a command":                     {"// Command p runs.\npackage main", 0, true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			file, err := parser.ParseFile(token.NewFileSet(), "p.go", test.text, parser.ParseComments|parser.SkipObjectResolution)
			if err != nil {
				t.Fatal(err)
			}
			if got := len(clockUses(file)); got != test.clock {
				t.Errorf("found %d uses of the clock, want %d", got, test.clock)
			}
			why := docProblem(&source{path: "p", files: map[string]*ast.File{"p.go": file}})
			if (why == "") != test.documented {
				t.Errorf("documented: got %q, want %v", why, test.documented)
			}
		})
	}
}
