// Package qemu runs machines of the port vmm in QEMU's machine type microvm, under KVM or, without hardware virtualization, under its
// emulation TCG. Composition roots and the tests import it; all others know the port only.
//
// Each QEMU runs in a jail (package jail) and is told everything through open files and its machine protocol.
package qemu

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/guestapi"
	"github.com/berth-run/berth/internal/microvm/vmm"
)

// Accelerations.
const (
	KVM = "kvm"
	TCG = "tcg"
)

const (
	programName = "qemu-system-x86_64"
	remedy      = "install QEMU 7.2 or later (Debian and Ubuntu: apt-get install qemu-system-x86)"
	kvmDevice   = "/dev/kvm"
	oldestMajor = 7
	oldestMinor = 2
	// trimmerPattern matches the builds of the plugin in trim/trim.c; trimmerPath is the one in a tree.
	trimmerPattern = "qemu-trim-*.so"
	trimmerPath    = "/usr/lib/qemu-trim.so"
	// capstone is the library that standin/capstone.c stands in for; capstoneStandIn is that, built.
	capstone, capstoneStandIn = "libcapstone.so.", "qemu-capstone.so"
)

// Options of the driver.
type Options struct {
	// Acceleration is KVM or TCG.
	Acceleration string
	// Dir keeps the file system trees in which QEMU runs, across restarts.
	Dir string
	// Jail is the program berth-jail. Beside it lie the plugins qemu-trim-*.so, without which an emulated machine keeps some 20 MB more, and
	// qemu-capstone.so, without which each keeps 1.3 MB more.
	Jail string
	// Program is QEMU; by default it is looked for in PATH. Restore does not need it.
	Program string
}

// Driver implements vmm.Driver.
type Driver struct{ options Options }

var _ vmm.Driver = (*Driver)(nil)

// New makes a driver; it looks at nothing yet.
func New(o Options) *Driver { return &Driver{o} }

// Fingerprint implements vmm.Driver. It reads QEMU and all that it loads, some 50 MB.
func (d *Driver) Fingerprint(ctx context.Context) (vmm.Fingerprint, error) {
	f, _, err := d.identify(ctx)
	return f, err
}

// identify also returns the files of the tree.
func (d *Driver) identify(ctx context.Context) (vmm.Fingerprint, []treeFile, error) {
	f := vmm.Fingerprint{Name: "qemu", Acceleration: d.options.Acceleration}
	program, err := d.program()
	if err != nil {
		return f, nil, err
	}
	if f.Version, err = version(ctx, program); err != nil {
		return f, nil, err
	}
	files, err := findFiles(ctx, program)
	if err != nil {
		return f, nil, err
	}
	if f.Acceleration == TCG {
		plugin, err := d.trimmer(ctx, program)
		if err != nil {
			return f, nil, err
		}
		files = append(files, plugin...)
	}
	if err := d.standIn(program, files); err != nil {
		return f, nil, err
	}
	tree, err := digestFiles(files)
	if err != nil {
		return f, nil, fmt.Errorf("%w: identify QEMU: %w", vmm.ErrUnavailable, err)
	}
	processor, err := processor()
	if err != nil {
		return f, nil, err
	}
	// What machines look like is part of a template: of the same shape they must stay the same.
	sum := sha256.New()
	if f.Transport, err = transport(ctx, program); err != nil {
		return f, nil, err
	}
	var cid uint32
	if f.Transport == vsock {
		cid = anyCID
	}
	fmt.Fprintln(sum, tree, processor)
	for vcpus := 1; vcpus <= 2; vcpus++ { // several are not started as one is
		shape := vmm.Shape{VCPUs: vcpus, MaxMemory: vmm.BaseMemory + vmm.BlockMemory}
		fmt.Fprintln(sum, bootArguments(f.Acceleration, shape, firstDescriptors, cid, 1), restoreArguments(f.Acceleration, shape, firstDescriptors, cid))
	}
	f.Digest = hex.EncodeToString(sum.Sum(nil))
	return f, files, nil
}

func (d *Driver) program() (string, error) {
	if d.options.Acceleration != KVM && d.options.Acceleration != TCG {
		return "", fmt.Errorf("%w: acceleration %q is neither %q nor %q", vmm.ErrUnavailable, d.options.Acceleration, KVM, TCG)
	}
	if d.options.Acceleration == KVM {
		if err := unix.Access(kvmDevice, unix.R_OK|unix.W_OK); err != nil {
			return "", fmt.Errorf("%w: %s: %w; load the module kvm_intel or kvm_amd, or turn nested virtualization on", vmm.ErrUnavailable, kvmDevice, err)
		}
	}
	name := d.options.Program
	if name == "" {
		name = programName
	}
	path, err := exec.LookPath(name)
	if err != nil {
		return "", fmt.Errorf("%w: %w; %s", vmm.ErrUnavailable, err, remedy)
	}
	return filepath.EvalSymlinks(path)
}

var versionPattern = regexp.MustCompile(`version (\d+)\.(\d+)[\d.]*`)

func version(ctx context.Context, program string) (string, error) {
	out, err := exec.CommandContext(ctx, program, "--version").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s --version: %w: %s; %s", vmm.ErrUnavailable, program, err, firstLine(string(out)), remedy)
	}
	found := versionPattern.FindStringSubmatch(string(out))
	if found == nil {
		return "", fmt.Errorf("%w: %s says %q of its version; %s", vmm.ErrUnavailable, program, firstLine(string(out)), remedy)
	}
	major, _ := strconv.Atoi(found[1]) // digits
	minor, _ := strconv.Atoi(found[2])
	if major < oldestMajor || major == oldestMajor && minor < oldestMinor {
		return "", fmt.Errorf("%w: %s is QEMU %s; %s", vmm.ErrUnavailable, program, strings.TrimPrefix(found[0], "version "), remedy)
	}
	return strings.TrimPrefix(found[0], "version "), nil
}

// processor identifies the host's: a guest that has begun on one must not go on on another.
func processor() (string, error) {
	data, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		return "", err
	}
	var lines []string
	for line := range strings.Lines(string(data)) {
		if strings.TrimSpace(line) == "" {
			break // of the first processor
		}
		for _, name := range []string{"vendor_id", "cpu family", "model", "stepping", "flags"} {
			if strings.HasPrefix(line, name) {
				lines = append(lines, line)
			}
		}
	}
	return strings.Join(lines, ""), nil
}

// trimmer is the plugin that gives back the memory of translated code, if there is one that the program loads. Each of the builds says that it was
// made for another version of the plugin interface.
func (d *Driver) trimmer(ctx context.Context, program string) ([]treeFile, error) {
	builds, err := filepath.Glob(filepath.Join(filepath.Dir(d.options.Jail), trimmerPattern))
	if err != nil {
		return nil, err
	}
	for _, build := range builds {
		try := exec.CommandContext(ctx, program, "-no-user-config", "-nodefaults", "-machine", "none", "-accel", TCG, "-display", "none", "-monitor", "stdio", "-plugin", build)
		try.Stdin = strings.NewReader("quit\n")
		if try.Run() == nil {
			return []treeFile{{from: build, to: trimmerPath}}, nil
		}
	}
	return nil, ctx.Err()
}

// standIn replaces a library that is large in each machine and of no use, unless this QEMU calls more of it than the one that stands in for it has.
func (d *Driver) standIn(program string, files []treeFile) error {
	small := filepath.Join(filepath.Dir(d.options.Jail), capstoneStandIn)
	if _, err := os.Stat(small); err != nil {
		return nil
	}
	file, err := elf.Open(program)
	if err != nil {
		return nil // a script, say
	}
	defer file.Close()
	symbols, err := file.ImportedSymbols()
	if err != nil {
		return fmt.Errorf("%w: read what %s calls: %w", vmm.ErrUnavailable, program, err)
	}
	for _, s := range symbols {
		if strings.HasPrefix(s.Name, "cs_") && !slices.Contains([]string{"cs_open", "cs_close", "cs_option", "cs_malloc", "cs_disasm_iter"}, s.Name) {
			return nil
		}
	}
	for i := range files {
		if strings.HasPrefix(filepath.Base(files[i].to), capstone) {
			files[i].from = small
		}
	}
	return nil
}

// tree is the directory of a fingerprint's file system.
func (d *Driver) tree(f vmm.Fingerprint) string {
	return filepath.Join(d.options.Dir, fmt.Sprintf("qemu-%s-%.16s", f.Acceleration, f.Digest))
}

// treePattern matches the trees of a fingerprint and of those before it.
func treePattern(f vmm.Fingerprint) string { return fmt.Sprintf("qemu-%s-*", f.Acceleration) }

// Overhead implements vmm.Driver.
func (d *Driver) Overhead(shape vmm.Shape) int64 {
	if d.options.Acceleration == KVM {
		return processMemory
	}
	return processMemory + int64(codeCache(shape))<<20
}

// Blocks implements vmm.Driver.
func (d *Driver) Blocks(shape vmm.Shape, memory int64) ([]guestapi.Range, error) {
	return blocks(shape, memory)
}

// Boot implements vmm.Driver.
func (d *Driver) Boot(ctx context.Context, config vmm.Boot) (vmm.Machine, error) {
	m, err := d.boot(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("boot machine %s: %w", config.Name, err)
	}
	return m, nil
}

func (d *Driver) boot(ctx context.Context, config vmm.Boot) (*machine, error) {
	if err := checkShape(config.Shape); err != nil {
		return nil, err
	}
	f, files, err := d.identify(ctx)
	if err != nil {
		return nil, err
	}
	root := d.tree(f)
	if err := makeTree(root, treePattern(f), files); err != nil {
		return nil, fmt.Errorf("make QEMU's file system %s: %w", root, err)
	}
	rate, err := tscKHz(ctx)
	if err != nil {
		return nil, err
	}
	if err := config.RAM.Truncate(vmm.BaseMemory); err != nil {
		return nil, fmt.Errorf("make the machine's memory: %w", err)
	}
	kernel, err := readable(config.Kernel)
	if err != nil {
		return nil, fmt.Errorf("read the guest's kernel: %w", err)
	}
	defer kernel.Close()
	initrd, err := readable(config.Initrd)
	if err != nil {
		return nil, fmt.Errorf("read the guest's initramfs: %w", err)
	}
	defer initrd.Close()
	m, err := d.start(config.Host, f.Transport, root, nil, []*os.File{config.RAM, kernel, initrd}, func(cid uint32) []string {
		return bootArguments(f.Acceleration, config.Shape, firstDescriptors, cid, rate)
	})
	if err != nil {
		return nil, err
	}
	m.shape = config.Shape
	if err := m.monitor.negotiate(ctx); err != nil {
		return nil, m.abandon(err)
	}
	return m, nil
}

// Restore implements vmm.Driver.
func (d *Driver) Restore(ctx context.Context, config vmm.Restore) (vmm.Machine, error) {
	m, err := d.restore(ctx, config)
	if err != nil {
		return nil, fmt.Errorf("restore machine %s: %w", config.Name, err)
	}
	return m, nil
}

func (d *Driver) restore(ctx context.Context, config vmm.Restore) (*machine, error) {
	t := config.Template
	if err := checkShape(t.Shape); err != nil {
		return nil, fmt.Errorf("%w: %w", vmm.ErrTemplate, err)
	}
	if t.Monitor.Acceleration != d.options.Acceleration {
		return nil, fmt.Errorf("%w: it was made with %s, this is %s", vmm.ErrTemplate, t.Monitor.Acceleration, d.options.Acceleration)
	}
	root := d.tree(t.Monitor)
	if err := d.recoverTree(ctx, root, t.Monitor); err != nil {
		return nil, err
	}
	// Opened anew, so that each machine reads from the beginning.
	state, err := forReading(t.State)
	if err != nil {
		return nil, err
	}
	defer state.Close()
	m, err := d.start(config.Host, t.Monitor.Transport, root, config.Tap, []*os.File{t.RAM, state}, func(cid uint32) []string {
		return restoreArguments(d.options.Acceleration, t.Shape, firstDescriptors, cid)
	})
	if err != nil {
		return nil, err
	}
	if err := m.load(ctx); err != nil {
		return nil, m.abandon(err)
	}
	return m, nil
}

// recoverTree makes a tree anew that somebody has removed, if the QEMU that made the template is still installed.
func (d *Driver) recoverTree(ctx context.Context, root string, monitor vmm.Fingerprint) error {
	if _, err := os.Stat(root); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, files, err := d.identify(ctx)
	if err == nil && f == monitor {
		return makeTree(root, treePattern(f), files)
	}
	return errors.Join(fmt.Errorf("%w: the QEMU that made it is gone (%s); build it anew with berth template build", vmm.ErrTemplate, root), err)
}

// readable is a copy of a file in memory that QEMU may open, whoever owns the file.
func readable(path string) (*os.File, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	fd, err := unix.MemfdCreate(filepath.Base(path), unix.MFD_CLOEXEC)
	if err != nil {
		return nil, err
	}
	file := os.NewFile(uintptr(fd), path)
	if _, err := file.Write(data); err != nil {
		file.Close()
		return nil, err
	}
	return file, nil
}
