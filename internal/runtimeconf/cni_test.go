package runtimeconf

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-run/berth/internal/layout"
)

// TestChain: an operator's chain is used if it can work, and if not one sentence says what to write.
func TestChain(t *testing.T) {
	bin := t.TempDir()
	for _, plugin := range []string{"berth-cni", "ours"} {
		if err := os.WriteFile(filepath.Join(bin, plugin), nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, tc := range map[string]struct{ chain, want string }{
		"another main plugin":       {`{"name": "x", "plugins": [{"type": "ours", "ipam": {"type": "berth-cni"}}]}`, ""},
		"ours and one more":         {`{"name": "x", "plugins": [{"type": "berth-cni"}, {"type": "ours"}]}`, ""},
		"addresses from elsewhere":  {`{"name": "x", "plugins": [{"type": "ours", "ipam": {"type": "host-local"}}]}`, `write "ipam": {"type": "berth-cni"}`},
		"no address at all":         {`{"name": "x", "plugins": [{"type": "ours"}]}`, `write "ipam": {"type": "berth-cni"}`},
		"a plugin that is not here": {`{"name": "x", "plugins": [{"type": "berth-cni"}, {"type": "nowhere"}]}`, "there is no plugin nowhere in " + bin},
		"a path for a plugin":       {`{"name": "x", "plugins": [{"type": "berth-cni"}, {"type": "../ours"}]}`, "is not the name of a plugin"},
		"no plugins":                {`{"name": "x", "plugins": []}`, "plugins is empty"},
		"no name":                   {`{"plugins": [{"type": "berth-cni"}]}`, "name is missing"},
		"not JSON":                  {`name: x`, "not JSON"},
	} {
		t.Run(name, func(t *testing.T) {
			dirs := layout.Dirs{CNI: t.TempDir()}
			if err := os.WriteFile(filepath.Join(dirs.CNI, "a.conflist"), []byte(tc.chain), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := cniChain(dirs, bin)
			if tc.want == "" && (err != nil || got != tc.chain) {
				t.Errorf("%v, %s", err, got)
			}
			if tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("%v, want %q", err, tc.want)
			}
		})
	}
	if got, err := cniChain(layout.Dirs{Run: "/r", CNI: t.TempDir()}, bin); err != nil || !strings.Contains(got, `"runDir": "/r"`) {
		t.Errorf("without one of the operator's: %v, %s", err, got)
	}
}
