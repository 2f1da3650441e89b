package hostagent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-run/berth/internal/layout"
)

func TestLimits(t *testing.T) {
	dirs := layout.Dirs{Run: t.TempDir()}
	low, high := filepath.Join(t.TempDir(), "low"), filepath.Join(t.TempDir(), "high")
	for path, value := range map[string]string{low: "128\n", high: "70000\n"} {
		if err := os.WriteFile(path, []byte(value), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	all := []limit{{low, 65536}, {high, 65536}}
	check := func(when, wantLow, wantHigh string) {
		t.Helper()
		for path, want := range map[string]string{low: wantLow, high: wantHigh} {
			if got, err := os.ReadFile(path); err != nil || strings.TrimSpace(string(got)) != want {
				t.Errorf("%s: %s is %s, %v; want %s", when, filepath.Base(path), got, err, want)
			}
		}
	}
	for range 2 { // an agent that starts again finds them raised
		if err := raiseLimits(dirs, all); err != nil {
			t.Fatal(err)
		}
		check("raised", "65536", "70000")
	}
	for range 2 {
		if err := lowerLimits(dirs); err != nil {
			t.Fatal(err)
		}
		check("put back", "128", "70000")
	}
	err := raiseLimits(dirs, []limit{{filepath.Join(dirs.Run, "none"), 1}})
	if err == nil || !strings.Contains(err.Error(), "read a limit of the kernel") {
		t.Errorf("got %v", err)
	}
}

// TestLimitsOfThisKernel: the files are where they are looked for.
func TestLimitsOfThisKernel(t *testing.T) {
	for _, l := range limits {
		if now, err := readLimit(l.path); err != nil || now <= 0 {
			t.Errorf("%s is %d, %v", l.path, now, err)
		}
	}
}
