// Package template makes and keeps the templates that pods' machines are restored from, through the port vmm: Store builds them once per host,
// notices stale and damaged ones and builds those anew; Holder keeps them in memory and gives them to other processes, which Take them.
// The host agent, the shim and the command line import it.
//
// A template is a directory with the memory of a guest that has booted and waits, the state of its devices, and a manifest that says what both
// were made from. There is one for each number of vCPUs; what a pod has of memory beyond the smallest pod's is plugged in after the restore.
package template

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/berth-run/berth/internal/microvm/vmm"
)

// Shapes of the templates: together they hold all sizes of EKS on Fargate, each number of vCPUs with the most memory that it comes with.
// (0.25, 0.5 and 1 vCPU share one: a pod's share of a processor is its cgroup's business.)
var Shapes = []vmm.Shape{shape(1, 8), shape(2, 16), shape(4, 30), shape(8, 60), shape(16, 120)}

// shape rounds up to whole blocks.
func shape(vcpus int, gib int64) vmm.Shape {
	blocks := (gib<<30 - vmm.BaseMemory + vmm.BlockMemory - 1) / vmm.BlockMemory
	return vmm.Shape{VCPUs: vcpus, MaxMemory: vmm.BaseMemory + blocks*vmm.BlockMemory}
}

// ShapeFor is the smallest shape for a pod: with at least its CPU, and its memory.
func ShapeFor(milliCPU, memory int64) (vmm.Shape, error) {
	for _, s := range Shapes {
		if int64(s.VCPUs)*1000 >= milliCPU && s.MaxMemory >= memory {
			return s, nil
		}
	}
	largest := Shapes[len(Shapes)-1]
	return vmm.Shape{}, fmt.Errorf("no machine has %d milli-CPUs and %d bytes of memory: the largest has %d vCPUs and %d bytes",
		milliCPU, memory, largest.VCPUs, largest.MaxMemory)
}

// Guest is what machines boot: the files of make guest.
type Guest struct {
	Kernel, Initrd, Tools string
}

// GuestIn is the guest in a directory as make guest fills it.
func GuestIn(dir string) Guest {
	return Guest{Kernel: filepath.Join(dir, "vmlinux"), Initrd: filepath.Join(dir, "initrd"), Tools: filepath.Join(dir, "tools.erofs")}
}

// Manifest says what a template was made from, and what it consists of.
type Manifest struct {
	// Format of the directory; others than formatVersion are stale.
	Format  int             `json:"format"`
	Monitor vmm.Fingerprint `json:"monitor"`
	Shape   vmm.Shape       `json:"shape"`
	// Guest has the sha256 digests of the files that were booted. The agent is in the initrd.
	Guest GuestDigests `json:"guest"`
	// Memory that the guest has, in bytes.
	Memory int64 `json:"memory"`
	// State and RAM are the template's own files.
	State File `json:"state"`
	RAM   File `json:"ram"`
	// Built is when, BootTime how long the guest took.
	Built    time.Time     `json:"built"`
	BootTime time.Duration `json:"bootNanoseconds"`
}

// GuestDigests are hexadecimal sha256 digests.
type GuestDigests struct {
	Kernel string `json:"kernel"`
	Initrd string `json:"initrd"`
	Tools  string `json:"tools"`
}

// File of a template.
type File struct {
	// Bytes that are not holes.
	Bytes int64 `json:"bytes"`
	// Digest of the pages that are not empty, and where they are (see copyPages).
	Digest string `json:"digest"`
}

const formatVersion = 1

// Names in a template's directory.
const (
	manifestFile = "manifest.json"
	stateFile    = "state"
	ramFile      = "ram"
)

// What is wrong with a template; Store builds it anew.
var (
	ErrStale   = errors.New("stale template")
	ErrDamaged = errors.New("damaged template")
	errMissing = errors.New("no template yet")
)

func readManifest(dir string) (Manifest, error) {
	var m Manifest
	data, err := os.ReadFile(filepath.Join(dir, manifestFile))
	if errors.Is(err, os.ErrNotExist) {
		return m, errMissing
	}
	if err != nil {
		return m, err
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return m, fmt.Errorf("%w: %s: %w", ErrDamaged, manifestFile, err)
	}
	return m, nil
}

// Loaded is a template in memory. RAM and State are sealed: nobody can change them any more, whoever has them.
type Loaded struct {
	Manifest Manifest
	RAM      *os.File
	State    *os.File
	// Tools is the image of LUN 0 that the template's guest has mounted, also when another has taken its path.
	Tools *os.File
}

// Template as the driver wants it. The files stay Loaded's.
func (l *Loaded) Template() vmm.Template {
	return vmm.Template{Monitor: l.Manifest.Monitor, Shape: l.Manifest.Shape, RAM: l.RAM, State: l.State}
}

// Close lets go of the memory; machines that were restored from it keep it.
func (l *Loaded) Close() error { return errors.Join(l.RAM.Close(), l.State.Close(), l.Tools.Close()) }
