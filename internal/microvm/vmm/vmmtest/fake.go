package vmmtest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"

	"github.com/berth-run/berth/internal/microvm/guestapi"
	"github.com/berth-run/berth/internal/microvm/vmm"
)

// Fake is a driver without virtualization. Each of its machines is a process that sleeps, and a guest that is Go code.
type Fake struct {
	// Agent is the guest: it serves one connection to the agent's port after another. By default it answers the questions of Ask.
	Agent func(conn net.Conn, m *FakeMachine)
	// Unavailable is what Fingerprint fails with, if it is set.
	Unavailable error
	// Greedy guests touch all memory that they plug in at once.
	Greedy bool
}

var _ vmm.Driver = (*Fake)(nil)

// FakeMachine is a machine of a Fake.
type FakeMachine struct {
	// Console is the file that its guest may print to.
	Console string

	vcpus    int
	greedy   bool
	socket   string
	ram      *os.File // of a booted machine
	listener *net.UnixListener
	process  *exec.Cmd
	paused   sync.RWMutex // held by a paused machine for writing, by a guest at work for reading

	mu        sync.Mutex
	conn      net.Conn
	memory    fakeMemory
	disks     map[int]vmm.Disk
	isPaused  bool
	ending    *vmm.Exit // what will have been the reason
	exit      vmm.Exit
	done      chan struct{}
	connected sync.WaitGroup
}

// fakeMemory is what a template keeps of a guest.
type fakeMemory struct{ Kept string }

const fakeState = "a fake machine's state"

// Fingerprint implements vmm.Driver.
func (f *Fake) Fingerprint(context.Context) (vmm.Fingerprint, error) {
	return vmm.Fingerprint{Name: "fake", Version: "1.0", Acceleration: "none", Transport: "unix", Digest: "fake"}, f.Unavailable
}

// Overhead implements vmm.Driver.
func (f *Fake) Overhead(vmm.Shape) int64 { return 1 << 20 }

// Blocks implements vmm.Driver.
func (f *Fake) Blocks(shape vmm.Shape, memory int64) ([]guestapi.Range, error) {
	if memory > shape.MaxMemory {
		return nil, errors.New("more memory than the shape has")
	}
	if memory <= vmm.BaseMemory {
		return nil, nil
	}
	n := (memory - vmm.BaseMemory + vmm.BlockMemory - 1) / vmm.BlockMemory
	return []guestapi.Range{{Start: 2 * vmm.BlockMemory, Bytes: uint64(n) * vmm.BlockMemory}}, nil
}

// Boot implements vmm.Driver.
func (f *Fake) Boot(ctx context.Context, config vmm.Boot) (vmm.Machine, error) {
	for _, path := range []string{config.Kernel, config.Initrd} {
		if _, err := os.Stat(path); err != nil {
			return nil, err
		}
	}
	ram, err := duplicate(config.RAM)
	if err != nil {
		return nil, err
	}
	if err := ram.Truncate(vmm.BaseMemory); err != nil {
		return nil, err
	}
	return f.start(ctx, config.Host, config.Shape, ram, fakeMemory{Kept: "nothing"})
}

// Restore implements vmm.Driver.
func (f *Fake) Restore(ctx context.Context, config vmm.Restore) (vmm.Machine, error) {
	state := make([]byte, len(fakeState))
	if n, err := config.Template.State.ReadAt(state, 0); n < len(state) || string(state) != fakeState {
		return nil, fmt.Errorf("%w: not a fake machine's state: %w", vmm.ErrTemplate, err)
	}
	var memory fakeMemory
	if err := json.NewDecoder(io.NewSectionReader(config.Template.RAM, 0, vmm.BaseMemory)).Decode(&memory); err != nil {
		return nil, fmt.Errorf("%w: %w", vmm.ErrTemplate, err)
	}
	return f.start(ctx, config.Host, config.Template.Shape, nil, memory)
}

func duplicate(f *os.File) (*os.File, error) {
	return os.OpenFile(fmt.Sprintf("/proc/self/fd/%d", f.Fd()), os.O_RDWR, 0)
}

func (f *Fake) start(ctx context.Context, h vmm.Host, shape vmm.Shape, ram *os.File, memory fakeMemory) (*FakeMachine, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if h.UID <= 0 || h.GID <= 0 {
		return nil, errors.New("a monitor needs a uid and gid other than root's")
	}
	tools, err := duplicateForReading(h.Tools)
	if err != nil {
		return nil, err
	}
	_ = os.Remove(h.AgentSocket)
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: h.AgentSocket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(h.AgentSocket, 0o600); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	m := &FakeMachine{Console: h.Console, vcpus: shape.VCPUs, greedy: f.Greedy, socket: h.AgentSocket, ram: ram, listener: listener, memory: memory, process: exec.Command("sleep", "infinity"),
		disks: map[int]vmm.Disk{guestapi.ToolsLUN: {File: tools, ReadOnly: true}}, done: make(chan struct{})}
	if err := m.process.Start(); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	agent := f.Agent
	if agent == nil {
		agent = answerQuestions
	}
	m.connected.Go(func() { m.serve(agent) })
	go m.bury()
	return m, nil
}

func duplicateForReading(f *os.File) (*os.File, error) {
	return os.Open(fmt.Sprintf("/proc/self/fd/%d", f.Fd()))
}

func (m *FakeMachine) serve(agent func(net.Conn, *FakeMachine)) {
	for {
		conn, err := m.listener.Accept()
		if err != nil {
			return
		}
		m.mu.Lock()
		m.conn = conn
		m.mu.Unlock()
		agent(conn, m)
		conn.Close()
	}
}

func (m *FakeMachine) bury() {
	err := m.process.Wait()
	m.listener.Close()
	m.mu.Lock()
	if m.conn != nil {
		m.conn.Close()
	}
	m.exit = vmm.Exit{Reason: vmm.ReasonFailed, Detail: fmt.Sprintf("the fake's process ended: %v", err)}
	if m.ending != nil {
		m.exit = *m.ending
	}
	m.mu.Unlock()
	if m.isPaused {
		m.paused.Unlock()
	}
	m.connected.Wait()
	for _, d := range m.disks {
		d.File.Close()
	}
	close(m.done)
}

func (m *FakeMachine) gone() error {
	select {
	case <-m.done:
		return vmm.ErrGone
	default:
		return nil
	}
}

// End ends the machine as its guest would.
func (m *FakeMachine) End(reason vmm.Reason) {
	m.mu.Lock()
	if m.ending == nil {
		m.ending = &vmm.Exit{Reason: reason, Detail: "the fake was told to"}
	}
	m.mu.Unlock()
	_ = m.process.Process.Kill()
}

// PID implements vmm.Machine.
func (m *FakeMachine) PID() int { return m.process.Process.Pid }

// Dial implements vmm.Machine.
func (m *FakeMachine) Dial(ctx context.Context) (net.Conn, error) {
	if err := m.gone(); err != nil {
		return nil, err
	}
	var dialer net.Dialer
	return dialer.DialContext(ctx, "unix", m.socket)
}

// Attach implements vmm.Machine.
func (m *FakeMachine) Attach(_ context.Context, disk vmm.Disk) (int, error) {
	if err := m.gone(); err != nil {
		return 0, err
	}
	open := duplicate
	if disk.ReadOnly {
		open = duplicateForReading
	}
	file, err := open(disk.File)
	if err != nil {
		return 0, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for lun := guestapi.ToolsLUN + 1; ; lun++ {
		if _, taken := m.disks[lun]; !taken {
			m.disks[lun] = vmm.Disk{File: file, ReadOnly: disk.ReadOnly}
			return lun, nil
		}
	}
}

// Detach implements vmm.Machine.
func (m *FakeMachine) Detach(_ context.Context, lun int) error {
	if err := m.gone(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	d, attached := m.disks[lun]
	if !attached || lun == guestapi.ToolsLUN {
		return fmt.Errorf("detach LUN %d: %w", lun, vmm.ErrNotAttached)
	}
	delete(m.disks, lun)
	return d.File.Close()
}

// Pause implements vmm.Machine.
func (m *FakeMachine) Pause(context.Context) error {
	if err := m.gone(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.isPaused {
		m.isPaused = true
		m.mu.Unlock()
		m.paused.Lock()
		m.mu.Lock()
	}
	return nil
}

// Resume implements vmm.Machine.
func (m *FakeMachine) Resume(context.Context) error {
	if err := m.gone(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.isPaused {
		m.isPaused = false
		m.paused.Unlock()
	}
	return nil
}

// Snapshot implements vmm.Machine.
func (m *FakeMachine) Snapshot(_ context.Context, memory int64, state *os.File) error {
	if m.greedy && memory > vmm.BaseMemory {
		return vmm.ErrTouched
	}
	if err := m.gone(); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	data, err := json.Marshal(m.memory)
	if err != nil {
		return err
	}
	if _, err := m.ram.WriteAt(data, 0); err != nil {
		return err
	}
	_, err = state.WriteString(fakeState)
	return err
}

// Kill implements vmm.Machine.
func (m *FakeMachine) Kill() error {
	m.End(vmm.ReasonKilled)
	<-m.done
	return nil
}

// Wait implements vmm.Machine.
func (m *FakeMachine) Wait(ctx context.Context) (vmm.Exit, error) {
	select {
	case <-m.done:
		return m.exit, nil
	case <-ctx.Done():
		return vmm.Exit{}, ctx.Err()
	}
}

// answerQuestions is the guest's script in Go.
func answerQuestions(conn net.Conn, m *FakeMachine) {
	lines := bufio.NewScanner(conn)
	for lines.Scan() {
		m.paused.RLock()
		answer := m.answer(strings.Fields(lines.Text()))
		m.paused.RUnlock()
		if _, err := fmt.Fprintln(conn, answer); err != nil {
			return
		}
	}
}

func (m *FakeMachine) answer(question []string) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	argument := strings.Join(question[1:], " ")
	var lun int
	_, _ = fmt.Sscan(argument, &lun)
	switch question[0] {
	case "PING", guestapi.Plug:
		return strings.TrimSpace(guestapi.Pong)
	case "KEEP":
		m.memory.Kept = argument
		return "ok"
	case "KEPT":
		return m.memory.Kept
	case "DISKS":
		var luns []int
		for lun := range m.disks {
			luns = append(luns, lun)
		}
		slices.Sort(luns)
		return strings.Trim(fmt.Sprint(luns), "[]")
	case "READ":
		sector := make([]byte, 512)
		n, _ := m.disks[lun].File.ReadAt(sector, 0) // a short file is read as far as it goes
		return strings.TrimSpace(strings.ReplaceAll(string(sector[:n]), "\x00", ""))
	case "WRITE":
		sector := make([]byte, 512)
		copy(sector, question[2])
		if _, err := m.disks[lun].File.WriteAt(sector, 0); err != nil {
			return "1"
		}
		return "0"
	case "PROCESSORS":
		return fmt.Sprint(m.vcpus)
	case "ADDRESS":
		return vmm.PlaceholderMAC
	case "POWEROFF", "PANIC":
		reason := map[string]vmm.Reason{"POWEROFF": vmm.ReasonPowerOff, "PANIC": vmm.ReasonReset}[question[0]]
		m.ending = &vmm.Exit{Reason: reason, Detail: "the guest ended"}
		_ = m.process.Process.Kill()
		return ""
	}
	return "what? " + question[0]
}
