package shim

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sync/errgroup"

	"github.com/berth-run/berth/internal/microvm/agent"
	"github.com/berth-run/berth/internal/microvm/disk"
	"github.com/berth-run/berth/internal/microvm/guestapi"
	"github.com/berth-run/berth/internal/microvm/podlink"
	"github.com/berth-run/berth/internal/microvm/podsocket"
	"github.com/berth-run/berth/internal/microvm/vmm"
	"github.com/berth-run/berth/internal/still"
)

const (
	// guestLimit bounds how long a restored guest may take to become the pod's machine.
	guestLimit = 30 * time.Second
	// burialLimit bounds how long a machine whose guest is gone may take to end.
	burialLimit = time.Second
	// stillAge is how old the answer to what a pod uses may be if it does next to nothing. To ask an emulated guest for it costs more than what the guest does else.
	stillAge, stillAgeEmulated = time.Minute, 5 * time.Minute
	// firstUID is that of the machine whose shim has process id 0: each machine has a user of its own.
	firstUID = 0x70000000
)

// Annotations by which a pod's kubelet tells the pod's size (internal/node): bytes, and thousandths of a core.
const (
	annotationMemory = "berth.run/size-memory"
	annotationDisk   = "berth.run/size-ephemeral-storage"
	annotationCPU    = "berth.run/size-cpu-milli"
)

// size is what the pod is given: bytes, and thousandths of a core.
type size struct {
	memory, disk, milliCPU int64
}

// Default size of a sandbox that carries no annotations: Fargate's smallest.
const (
	defaultMemory = 512 << 20
	defaultDisk   = 20 << 30
	defaultCPU    = 250
)

// Options are what a shim works with.
type Options struct {
	// Take finds the template for a pod's CPU, in thousandths of a core, and memory, in bytes.
	Take   func(ctx context.Context, milliCPU, memory int64) (*Source, error)
	Images disk.Images
	// RunDir is the pod's directory for sockets. It is made, and removed with the pod.
	RunDir string
	// DiskDir is where ephemeral disks take room. It is on a disk: RunDir, as a rule, is in the host's memory.
	DiskDir string
}

// Source is what a machine is restored from, and by what.
type Source struct {
	Driver   vmm.Driver
	Template vmm.Template
	// Tools is the image of the guest's programs that belongs to the template.
	Tools *os.File
}

func (s *Source) close() { closeAll(s.Template.RAM, s.Template.State, s.Tools) }

// pod is a pod's machine.
type pod struct {
	options   Options
	publisher publisher
	machine   vmm.Machine
	guest     *agent.Client
	cgroup    string
	quota     *quota
	sync      *volumes
	socket    net.Listener // of package podsocket
	clock     *hostClock
	health    *health
	oomKills  oomKills
	// ephemeral is the pod's disk. usage is what was last used of it, and stillAge how long a pod that does next to nothing is not asked what it uses.
	ephemeral *os.File
	usage     *still.Answer[*guestapi.Usage]
	stillAge  time.Duration

	mu sync.Mutex
	// images are the LUNs of the image disks that the machine has, by key.
	images map[string]int
	closed bool
}

// newPod makes the machine of a sandbox. If anything fails, nothing is left of it.
func newPod(ctx context.Context, o Options, id string, spec *specs.Spec) (_ *pod, err error) {
	want, err := sizeOf(spec)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(o.RunDir, 0o700); err != nil {
		return nil, fmt.Errorf("make the machine's directory: %w", err)
	}
	p := &pod{options: o, images: map[string]int{}, cgroup: cgroupOf(spec), health: newHealth(o.DiskDir)}
	if err := ensureCgroup(p.cgroup); err != nil {
		return nil, err
	}
	if p.quota, err = quotaOf(p.cgroup, spec.Annotations[annotationCPU], want.milliCPU); err != nil {
		return nil, err
	}
	if err := p.quota.lift(func() bool { return true }); err != nil {
		return nil, err
	}
	p.oomKills = oomKillsOf(p.cgroup)
	defer func() {
		if err != nil {
			p.close()
			if p.oomKills.count() > p.oomKills.begin && !errors.Is(err, errHostMemory) {
				err = fmt.Errorf("%w (%w)", errHostMemory, err)
			}
		}
	}()
	config := guestapi.Configure{Hostname: spec.Hostname, MachineID: randomHex(16), Entropy: randomBytes(64), Sysctls: sysctls(spec)}
	// The machine and its disk are made at the same time.
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		p.ephemeral, err = disk.MakeEphemeral(gctx, o.DiskDir, want.disk)
		return err
	})
	g.Go(func() error { return p.restore(gctx, id, spec, want, &config) })
	if err := g.Wait(); err != nil {
		return nil, err
	}
	if config.EphemeralLUN, err = p.machine.Attach(ctx, vmm.Disk{File: p.ephemeral}); err != nil {
		return nil, fmt.Errorf("give the machine its ephemeral disk: %w", err)
	}
	if err := p.settle(ctx, config); err != nil {
		return nil, err
	}
	return p, nil
}

// restore starts the machine and completes what the guest is to be told.
func (p *pod) restore(ctx context.Context, id string, spec *specs.Spec, want size, config *guestapi.Configure) error {
	source, err := p.options.Take(ctx, want.milliCPU, want.memory)
	if err != nil {
		return err
	}
	defer source.close()
	shape := source.Template.Shape
	p.stillAge = stillAge
	if source.Template.Monitor.Emulated() {
		p.stillAge = stillAgeEmulated
	}
	p.usage = still.New[*guestapi.Usage](p.stillAge, func() (uint64, error) { return still.CPU(p.cgroup) })
	// The monitor's own memory is out of the pod's size, too.
	if config.Memory, err = source.Driver.Blocks(shape, want.memory-source.Driver.Overhead(shape)); err != nil {
		return fmt.Errorf("give the machine %d MiB: %w", want.memory>>20, err)
	}
	var tap *os.File
	if ns := networkNamespace(spec); ns != "" {
		var link guestapi.Link
		if tap, link, err = podlink.Join(ns); err != nil {
			return err
		}
		defer tap.Close()
		config.Links = []guestapi.Link{link}
	}
	p.machine, err = source.Driver.Restore(ctx, vmm.Restore{
		Template: source.Template, Tap: tap,
		Host: vmm.Host{
			Name: id, AgentSocket: filepath.Join(p.options.RunDir, "agent.sock"), Console: filepath.Join(p.options.RunDir, "console.log"), Tools: source.Tools,
			Stalled:     p.health.stalled,
			Confinement: vmm.Confinement{UID: firstUID + os.Getpid(), GID: firstUID + os.Getpid(), Cgroup: p.cgroup},
		},
	})
	if err != nil {
		return fmt.Errorf("start the machine: %w", err)
	}
	return nil
}

// settle opens the session with the guest and makes it the pod's machine.
func (p *pod) settle(ctx context.Context, config guestapi.Configure) (err error) {
	ctx, cancel := context.WithTimeout(ctx, guestLimit)
	defer cancel()
	if p.guest, err = agent.Connect(ctx, p.machine.Dial); err != nil {
		return p.because(err)
	}
	config.Clock.UnixNano = time.Now().UnixNano()
	if err := p.guest.Configure(ctx, config); err != nil {
		return p.because(fmt.Errorf("set the guest up: %w", err))
	}
	if p.sync, err = newVolumes(p.guest); err != nil {
		return err
	}
	if p.socket, err = net.Listen("unix", podsocket.Path(p.options.RunDir)); err != nil {
		return fmt.Errorf("listen for the pod's kubelet: %w", err)
	}
	if p.clock, err = newHostClock(clockPeriod); err != nil {
		return err
	}
	go p.servePod(p.socket)
	go p.listen()
	go p.keepClock(p.clock)
	return nil
}

// because says how the machine ended if that is why the guest, which has a session, does not answer.
func (p *pod) because(err error) error {
	if p.guest != nil {
		select {
		case <-p.guest.Done():
		default:
			return err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), burialLimit)
	defer cancel()
	if exit, werr := p.machine.Wait(ctx); werr == nil {
		return fmt.Errorf("%w (%w)", p.cause(exit), err)
	}
	return err
}

// cause says, for people, how the machine ended: errHostMemory or something else.
func (p *pod) cause(exit vmm.Exit) error {
	if p.oomKills.ended(exit) {
		return errHostMemory
	}
	return fmt.Errorf("the pod's machine ended (%s): %s", exit.Reason, exit.Detail)
}

// ended waits until nothing is left of the machine.
func (p *pod) ended() vmm.Exit {
	exit, err := p.machine.Wait(context.Background())
	if err != nil {
		exit.Detail = err.Error()
	}
	return exit
}

// close ends the machine and removes what it had on the host. Doing so twice is no error.
func (p *pod) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return
	}
	p.closed = true
	var failed []error
	if p.socket != nil {
		failed = append(failed, p.socket.Close())
	}
	if p.sync != nil {
		failed = append(failed, p.sync.close())
	}
	if p.clock != nil {
		failed = append(failed, p.clock.Close())
	}
	if p.machine != nil {
		failed = append(failed, p.machine.Kill())
	}
	if p.guest != nil {
		_ = p.guest.Close() // the guest is gone already
	}
	if p.ephemeral != nil {
		failed = append(failed, p.ephemeral.Close())
	}
	if err := errors.Join(append(failed, os.RemoveAll(p.options.RunDir))...); err != nil {
		logger().Error("remove the machine", "error", err)
	}
}

// imageDisk gives the machine the disk of an image's layers, unless it has it, and returns its LUN. It stays while the machine runs:
// a container that is started again finds it there.
func (p *pod) imageDisk(ctx context.Context, layers []string) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	key := disk.Key(layers)
	if lun, ok := p.images[key]; ok {
		return lun, nil
	}
	file, err := p.options.Images.Open(ctx, layers)
	if err != nil {
		return 0, err
	}
	defer file.Close()
	lun, err := p.machine.Attach(ctx, vmm.Disk{File: file, ReadOnly: true})
	if err != nil {
		return 0, fmt.Errorf("give the machine the image's disk: %w", err)
	}
	p.images[key] = lun
	return lun, nil
}

// sizeOf reads the pod's size from the sandbox's annotations.
func sizeOf(spec *specs.Spec) (size, error) {
	out := size{memory: defaultMemory, disk: defaultDisk, milliCPU: defaultCPU}
	for key, field := range map[string]*int64{annotationMemory: &out.memory, annotationDisk: &out.disk, annotationCPU: &out.milliCPU} {
		text, ok := spec.Annotations[key]
		if !ok {
			continue
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n <= 0 {
			return size{}, fmt.Errorf("annotation %s is %q: a positive whole number is needed", key, text)
		}
		*field = n
	}
	return out, nil
}

// networkNamespace is the path of the pod's network namespace, empty if it has none of its own.
func networkNamespace(spec *specs.Spec) string {
	if spec.Linux == nil {
		return ""
	}
	for _, ns := range spec.Linux.Namespaces {
		if ns.Type == specs.NetworkNamespace {
			return ns.Path
		}
	}
	return ""
}

// cgroupOf is the pod's cgroup: the sandbox's own would be its child.
func cgroupOf(spec *specs.Spec) string {
	if spec.Linux == nil || spec.Linux.CgroupsPath == "" || filepath.Dir(spec.Linux.CgroupsPath) == "/" {
		return ""
	}
	return filepath.Dir(spec.Linux.CgroupsPath)
}

func sysctls(spec *specs.Spec) map[string]string {
	if spec.Linux == nil {
		return nil
	}
	return spec.Linux.Sysctl
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // it never fails (crypto/rand)
	return b
}

func randomHex(n int) string { return hex.EncodeToString(randomBytes(n)) }

func closeAll(files ...*os.File) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}

var _ taskapi.TTRPCTaskService = (*Service)(nil)
