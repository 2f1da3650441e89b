package task

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestWithRoot(t *testing.T) {
	for name, test := range map[string]struct {
		config, want string // want is of the error, or empty
	}{
		"root is kept but for its path": {`{"ociVersion":"1.3.0","process":{"cwd":"/"},"root":{"path":"x","readonly":true},"linux":{"cgroupsPath":"/pod/a"},"future":1}`, ""},
		"no root":                       {`{"process":{"cwd":"/"},"linux":{"cgroupsPath":"/pod/a"}}`, ""},
		"no process":                    {`{"linux":{"cgroupsPath":"/pod/a"}}`, "process"},
		"relative control group":        {`{"process":{"cwd":"/"},"linux":{"cgroupsPath":"a:b:c"}}`, "cgroupsPath"},
		"no JSON":                       {`{`, "read the container's configuration"},
	} {
		t.Run(name, func(t *testing.T) {
			out, spec, err := withRoot(json.RawMessage(test.config), "/r")
			if test.want != "" {
				if err == nil || !strings.Contains(err.Error(), test.want) {
					t.Fatalf("error %v, want %q", err, test.want)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			var before, after specs.Spec
			if err := json.Unmarshal([]byte(test.config), &before); err != nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(out, &after); err != nil {
				t.Fatal(err)
			}
			if after.Root.Path != "/r" || before.Root != nil && !after.Root.Readonly || spec.Linux.CgroupsPath != "/pod/a" {
				t.Errorf("configuration %s", out)
			}
			if strings.Contains(test.config, "future") != strings.Contains(string(out), "future") {
				t.Errorf("a field is lost: %s", out)
			}
			if after.Version != "1.0.2" {
				t.Errorf("version %s is too new for crun", after.Version)
			}
		})
	}
}

func TestParseOOM(t *testing.T) {
	for name, test := range map[string]struct {
		content string
		want    oomCounts
		bad     bool
	}{
		"as the kernel writes it": {"low 0\nhigh 0\nmax 27\noom 2\noom_kill 3\noom_group_kill 0\n", oomCounts{limit: 2, kills: 3}, false},
		"empty":                   {"", oomCounts{}, false},
		"no number":               {"oom_kill many\n", oomCounts{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := parseOOM([]byte(test.content))
			if got != test.want || (err != nil) != test.bad {
				t.Errorf("parseOOM = %+v, %v; want %+v", got, err, test.want)
			}
		})
	}
}

func TestPrivatePID(t *testing.T) {
	for name, test := range map[string]struct {
		namespaces []specs.LinuxNamespace
		want       bool
	}{
		"its own":       {[]specs.LinuxNamespace{{Type: specs.PIDNamespace}}, true},
		"another's":     {[]specs.LinuxNamespace{{Type: specs.PIDNamespace, Path: "/proc/7/ns/pid"}}, false},
		"the machine's": {[]specs.LinuxNamespace{{Type: specs.MountNamespace}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			if got := hasPrivatePID(&specs.Spec{Linux: &specs.Linux{Namespaces: test.namespaces}}); got != test.want {
				t.Errorf("hasPrivatePID is %v", got)
			}
		})
	}
}
