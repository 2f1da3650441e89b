package hostagent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/microvm/template"
)

const (
	// recheck is how often the agent looks whether what its isolations depend on has changed.
	recheck = 15 * time.Second
	// retry is how long after a failed try it tries again, though nothing that it knows of has changed.
	retry = 5 * time.Minute
)

const (
	qemuCommand = "qemu-system-x86_64"
	microVMShim = "containerd-shim-berth-v1"
	kvmDevice   = "/dev/kvm"
	bootID      = "/proc/sys/kernel/random/boot_id"
)

// microVMPrograms are what isolation microvm needs beside QEMU and the guest.
var microVMPrograms = []string{microVMShim, "containerd-shim-berth-start", "berth-jail"}

func guestFiles(binDir string) []string {
	g := template.GuestIn(layout.Guest(binDir))
	return []string{g.Kernel, g.Initrd, g.Tools}
}

func inDir(dir string, files ...string) []string {
	for i := range files {
		files[i] = filepath.Join(dir, files[i])
	}
	return files
}

// prober tries whether this machine runs virtual machines; all that MissingForMicroVM looks for is there.
type prober interface {
	// Probe starts the guest, under KVM if the machine has it, and returns by which accelerator it runs; reason says, in a
	// sentence, why that one. An error says why it runs by none, and what to do. Probe limits its time by itself, ends sooner
	// if ctx does, and leaves no machine behind.
	Probe(ctx context.Context) (accelerator v1alpha1.Accelerator, reason string, err error)

	// Use lets pods have machines by the accelerator; those that run are not touched. Saying the same again changes nothing.
	Use(accelerator v1alpha1.Accelerator)
}

// isolations is what the agent found out about the isolations of its machine. gVisor is known at once; that virtual machines
// run, and how, is found out in the background, and kept until the machine boots again or something that it depends on changes.
type isolations struct {
	prober prober
	binDir string
	file   string
	boot   func() string // identifies the machine's boot
	now    func() time.Time
	// changed gets a value when status is not what was reported.
	changed chan struct{}

	mu              sync.Mutex
	gvisor, microvm v1alpha1.IsolationProbe
}

// finding is what is kept of a try.
type finding struct {
	// Evidence identifies all that the result depends on.
	Evidence string                  `json:"evidence"`
	Probe    v1alpha1.IsolationProbe `json:"probe"`
	// Failed tries are made again.
	Failed bool `json:"failed,omitempty"`
}

func newIsolations(dirs layout.Dirs, binDir string, p prober) *isolations {
	i := &isolations{prober: p, binDir: binDir, file: dirs.MicroVMProbe(), now: time.Now, changed: make(chan struct{}, 1)}
	i.boot = func() string {
		id, err := os.ReadFile(bootID)
		if err != nil {
			return err.Error()
		}
		return strings.TrimSpace(string(id))
	}
	i.gvisor = i.lookForGVisor()
	i.microvm = v1alpha1.IsolationProbe{Isolation: v1alpha1.IsolationMicroVM, Message: "not known yet: the host agent is trying it"}
	if known, err := i.read(); err == nil && known.Evidence == i.evidence() {
		i.microvm = known.Probe
	}
	return i
}

// status is what Host.status says: the usable ones, and all.
func (i *isolations) status() (usable []v1alpha1.Isolation, probes []v1alpha1.IsolationProbe) {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, p := range []v1alpha1.IsolationProbe{i.gvisor, i.microvm} {
		probes = append(probes, p)
		if p.Usable {
			usable = append(usable, p.Isolation)
		}
	}
	return usable, probes
}

// run finds out what is not known, and again what may have changed, until ctx ends.
func (i *isolations) run(ctx context.Context) error {
	tick := time.NewTicker(recheck)
	defer tick.Stop()
	for {
		i.look(ctx)
		if vm := i.machine(); vm.Usable {
			i.prober.Use(vm.Accelerator)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

func (i *isolations) machine() v1alpha1.IsolationProbe {
	i.mu.Lock()
	defer i.mu.Unlock()
	return i.microvm
}

// look finds out what is not known for certain now.
func (i *isolations) look(ctx context.Context) {
	i.set(i.lookForGVisor())
	evidence := i.evidence()
	known, err := i.read()
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		slog.Warn("read what was found out about virtual machines; it is found out again", "error", err)
	}
	if err == nil && known.Evidence == evidence && (!known.Failed || i.now().Sub(known.Probe.Time.Time) < retry) {
		i.set(known.Probe)
		return
	}
	found := finding{Evidence: evidence, Probe: v1alpha1.IsolationProbe{Isolation: v1alpha1.IsolationMicroVM}}
	if err = MissingForMicroVM(i.binDir); err == nil {
		found.Probe.Accelerator, found.Probe.Message, err = i.prober.Probe(ctx)
	}
	if ctx.Err() != nil {
		return // it was interrupted, and says nothing
	}
	if found.Probe.Usable = err == nil; err != nil {
		found.Failed, found.Probe.Accelerator, found.Probe.Message = true, "", err.Error()
	}
	found.Probe.Time = metav1.NewTime(i.now()).Rfc3339Copy()
	slog.Info("tried virtual machines", "usable", found.Probe.Usable, "accelerator", found.Probe.Accelerator, "message", found.Probe.Message)
	if err := i.write(found); err != nil {
		slog.Warn("keep what was found out about virtual machines; a new agent finds it out again", "error", err)
	}
	i.set(found.Probe)
}

// set notes a result; one that says the same as before keeps its time.
func (i *isolations) set(p v1alpha1.IsolationProbe) {
	i.mu.Lock()
	defer i.mu.Unlock()
	held := &i.microvm
	if p.Isolation == v1alpha1.IsolationGVisor {
		held = &i.gvisor
	}
	same := p
	same.Time = held.Time
	if same == *held && !held.Time.IsZero() {
		return
	}
	*held = p
	select {
	case i.changed <- struct{}{}:
	default: // it is to be reported already
	}
}

func (i *isolations) lookForGVisor() v1alpha1.IsolationProbe {
	p := v1alpha1.IsolationProbe{Isolation: v1alpha1.IsolationGVisor, Usable: true, Message: "runsc and its shim are there", Time: metav1.NewTime(i.now()).Rfc3339Copy()}
	if err := missing("make build", inDir(i.binDir, "runsc", "containerd-shim-runsc-start", "containerd-shim-runsc-v1")); err != nil {
		p.Usable, p.Message = false, err.Error()
	}
	return p
}

// MissingForMicroVM is an error that names all that isolation microvm needs of the machine and that is not there, with the remedy.
func MissingForMicroVM(binDir string) error {
	var failed []error
	if _, err := exec.LookPath(qemuCommand); err != nil {
		failed = append(failed, fmt.Errorf("command %s is missing: install Debian package qemu-system-x86", qemuCommand))
	}
	failed = append(failed, missing("make build", inDir(binDir, slices.Clone(microVMPrograms)...)), missing("make guest", guestFiles(binDir)))
	return sentence(failed)
}

func missing(remedy string, files []string) error {
	var failed []error
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			failed = append(failed, fmt.Errorf("%s is missing: run %s", f, remedy))
		}
	}
	return sentence(failed)
}

// sentence joins errors into one line.
func sentence(errs []error) error {
	var lines []string
	for _, err := range errs {
		if err != nil {
			lines = append(lines, err.Error())
		}
	}
	if len(lines) == 0 {
		return nil
	}
	return errors.New(strings.Join(lines, "; "))
}

// evidence identifies the machine's boot and the files that the result depends on, by size and time.
func (i *isolations) evidence() string {
	qemu, err := exec.LookPath(qemuCommand)
	if err != nil {
		qemu = qemuCommand
	}
	var b strings.Builder
	b.WriteString(i.boot())
	programs := inDir(i.binDir, slices.Clone(microVMPrograms)...)
	for _, file := range slices.Concat([]string{kvmDevice, qemu}, programs, guestFiles(i.binDir)) {
		info, err := os.Stat(file)
		if err != nil {
			fmt.Fprintf(&b, " %s:none", file)
			continue
		}
		fmt.Fprintf(&b, " %s:%d:%d", file, info.Size(), info.ModTime().UnixNano())
	}
	return b.String()
}

func (i *isolations) read() (finding, error) {
	var f finding
	data, err := os.ReadFile(i.file)
	if err == nil {
		err = json.Unmarshal(data, &f)
	}
	return f, err
}

func (i *isolations) write(f finding) error {
	data, err := json.Marshal(f)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(i.file), 0o711); err != nil {
		return err
	}
	next := i.file + ".new"
	if err := os.WriteFile(next, data, 0o600); err != nil {
		return err
	}
	return os.Rename(next, i.file)
}
