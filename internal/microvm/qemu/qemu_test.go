package qemu_test

import (
	"testing"

	"github.com/berth-run/berth/internal/microvm/qemu"
	"github.com/berth-run/berth/internal/microvm/vmm"
	"github.com/berth-run/berth/internal/microvm/vmm/vmmtest"
)

func TestQEMUPassesTheSuite(t *testing.T) {
	guest, err := vmmtest.RealGuest(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	suite := vmmtest.Suite{Driver: driver(t), Guest: guest, Confinement: vmm.Confinement{UID: 65001, GID: 65001}}
	suite.Run(t)
}

func driver(t *testing.T) *qemu.Driver {
	t.Helper()
	return qemu.New(qemu.Options{Acceleration: qemu.TCG, Dir: t.TempDir(), Jail: jailProgram})
}
