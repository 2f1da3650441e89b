package cli

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/microvm/template"
)

// binDir has the programs and the guest (make build), which these tests run for real.
const binDir = "../../bin"

func runTemplate(t *testing.T, dirs layout.Dirs, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, progress bytes.Buffer
	c := templateCommand(dirs)
	c.SilenceUsage, c.SilenceErrors = true, true
	c.SetOut(&out)
	c.SetErr(&progress)
	c.SetArgs(append(args, "--guest", layout.Guest(binDir), "--jail", filepath.Join(binDir, "berth-jail")))
	err = c.ExecuteContext(t.Context())
	return out.String(), progress.String(), err
}

// TestTemplateBuildAndList builds a template with the real QEMU and guest.
func TestTemplateBuildAndList(t *testing.T) {
	dirs := layout.Dirs{State: t.TempDir(), Run: t.TempDir()}
	out, progress, err := runTemplate(t, dirs, "build", "--acceleration", "tcg")
	if err != nil {
		t.Fatalf("%v (needs root, QEMU and make build)\n%s", err, progress)
	}
	for _, want := range []string{"MONITOR", "tcg", "8Gi"} {
		if !strings.Contains(out, want) {
			t.Errorf("the table lacks %q:\n%s", want, out)
		}
	}
	if !strings.Contains(progress, "booting a guest") {
		t.Errorf("progress: %s", progress)
	}
	out, _, err = runTemplate(t, dirs, "list", "-o", "json")
	if err != nil {
		t.Fatal(err)
	}
	var list []template.Status
	if err := json.Unmarshal([]byte(out), &list); err != nil || len(list) != 1 || list[0].Problem != "" || list[0].Shape.VCPUs != 1 {
		t.Errorf("list: %s (%v)", out, err)
	}
	if err := os.Truncate(filepath.Join(dirs.Templates(), "qemu-tcg-1", "manifest.json"), 5); err != nil {
		t.Fatal(err)
	}
	if out, _, err = runTemplate(t, dirs, "list"); err != nil || !strings.Contains(out, "damaged") {
		t.Errorf("list: %s (%v)", out, err)
	}
}

func TestTemplateBuildRefuses(t *testing.T) {
	for name, tt := range map[string]struct {
		args []string
		want string
	}{
		"vCPUs":        {[]string{"--vcpus", "3"}, "1, 2, 4, 8 and 16"},
		"acceleration": {[]string{"--acceleration", "hvf"}, `"hvf"`},
		"guest":        {[]string{"--acceleration", "tcg", "--guest", "/nowhere"}, "make guest"},
	} {
		t.Run(name, func(t *testing.T) {
			dirs := layout.Dirs{State: t.TempDir(), Run: t.TempDir()}
			c := templateCommand(dirs)
			c.SilenceUsage, c.SilenceErrors = true, true
			c.SetErr(&bytes.Buffer{})
			c.SetArgs(append([]string{"build"}, tt.args...))
			if err := c.ExecuteContext(t.Context()); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want something with %q", err, tt.want)
			}
		})
	}
}
