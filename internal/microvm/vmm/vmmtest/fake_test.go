package vmmtest_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-run/berth/internal/microvm/vmm"
	"github.com/berth-run/berth/internal/microvm/vmm/vmmtest"
)

func TestFakePassesTheSuite(t *testing.T) {
	dir := t.TempDir()
	guest := vmmtest.Guest{Kernel: filepath.Join(dir, "kernel"), Initrd: filepath.Join(dir, "initrd"), Tools: filepath.Join(dir, "tools")}
	for _, path := range []string{guest.Kernel, guest.Initrd, guest.Tools} {
		if err := os.WriteFile(path, []byte("fake"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	suite := vmmtest.Suite{Driver: &vmmtest.Fake{}, Guest: guest, Confinement: vmm.Confinement{UID: 65001, GID: 65001},
		Shape: vmm.Shape{VCPUs: 1, MaxMemory: vmm.BaseMemory + 63*vmm.BlockMemory}}
	suite.Run(t, suite.Template(t))
}
