package qemu

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/vmm"
)

// furtherMemory is what QEMU calls the file of memory-backend-memfd.
const furtherMemory = "/memfd:memory-backend-memfd"

// noNullDevice is what QEMU says at each start, since its files are all that it sees. It has nothing to do with how it ends.
const noNullDevice = "Failed to open /dev/null for OFD lock probing: No such file or directory"

// machine implements vmm.Machine.
type machine struct {
	name    string
	shape   vmm.Shape // of a machine that was booted
	port    port
	monitor *monitor
	process *os.Process

	exited chan struct{} // closed when QEMU has ended; ending is set before
	ending error
	done   chan struct{} // closed when nothing is left; exit is set before
	exit   vmm.Exit

	diagnosis *tail // what QEMU said
	printed   *tail // what the guest's kernel printed last
	consoles  sync.WaitGroup

	migrated chan string // statuses of saving and loading

	mu       sync.Mutex
	killed   bool
	shutdown string                   // QEMU's reason
	disks    map[int]int              // descriptor set by LUN
	deleted  map[string]chan struct{} // devices whose removal somebody waits for
	space    space
}

var _ vmm.Machine = (*machine)(nil)

// bury clears up after QEMU.
func (m *machine) bury() {
	<-m.exited
	<-m.monitor.ended // which is after the last event
	m.consoles.Wait()
	m.mu.Lock()
	m.exit = m.explain()
	m.mu.Unlock()
	m.monitor.close()
	_ = m.port.remove()
	close(m.done)
}

func (m *machine) explain() vmm.Exit {
	said := func(how string) string {
		for what, text := range map[string]string{"QEMU said": m.diagnosis.String(), "the guest printed": m.printed.String()} {
			text = strings.ReplaceAll(text, noNullDevice, "")
			if text = strings.TrimSpace(text); text != "" {
				how += "; " + what + ": " + text
			}
		}
		return how
	}
	switch {
	case m.shutdown == "guest-shutdown":
		return vmm.Exit{Reason: vmm.ReasonPowerOff, Detail: "the guest powered off"}
	case strings.HasPrefix(m.shutdown, "guest-"):
		return vmm.Exit{Reason: vmm.ReasonReset, Detail: said("the guest's kernel ended (" + m.shutdown + ")")}
	case m.killed:
		return vmm.Exit{Reason: vmm.ReasonKilled, Detail: "killed"}
	case m.ending != nil:
		return vmm.Exit{Reason: vmm.ReasonFailed, Detail: said("QEMU ended: " + m.ending.Error())}
	}
	return vmm.Exit{Reason: vmm.ReasonFailed, Detail: said("QEMU ended")}
}

// abandon ends a machine that could not be set up, and explains why it could not.
func (m *machine) abandon(cause error) error {
	if errors.Is(cause, vmm.ErrGone) {
		<-m.done // rather what QEMU said than that we killed it
		return fmt.Errorf("%w: %s", cause, m.exit.Detail)
	}
	return errors.Join(cause, m.Kill())
}

func (m *machine) event(name string, data json.RawMessage) {
	var d struct{ Status, Device, Reason, Action string }
	if json.Unmarshal(data, &d) != nil {
		return // an event without data
	}
	switch name {
	case "MIGRATION":
		select {
		case m.migrated <- d.Status:
		default: // nobody is interested any more
		}
	case "DEVICE_DELETED":
		m.mu.Lock()
		if waiting := m.deleted[d.Device]; waiting != nil {
			close(waiting)
			delete(m.deleted, d.Device)
		}
		m.mu.Unlock()
	case "BLOCK_IO_ERROR":
		if d.Action == "stop" {
			m.outOfSpace()
		}
	case "SHUTDOWN":
		m.mu.Lock()
		m.shutdown = d.Reason
		m.mu.Unlock()
	}
}

// migrationStatus of QEMU's query-migrate.
type migrationStatus struct {
	Status string `json:"status"`
	Error  string `json:"error-desc"`
}

// prepareTransfer of a machine's state: memory that is shared stays where it is, and events tell how the transfer goes.
func (m *machine) prepareTransfer(ctx context.Context) error {
	on := func(name string) arguments { return arguments{"capability": name, "state": true} }
	return m.monitor.execute(ctx, "migrate-set-capabilities", arguments{"capabilities": []arguments{on("x-ignore-shared"), on("events")}}, nil)
}

// load lets QEMU read the template's state, and the machine run.
func (m *machine) load(ctx context.Context) error {
	if err := m.monitor.negotiate(ctx); err != nil {
		return err
	}
	if err := m.prepareTransfer(ctx); err != nil {
		return err
	}
	err := m.monitor.execute(ctx, "migrate-incoming", arguments{"uri": "fd:" + strconv.Itoa(firstDescriptors.state)}, nil)
	if err == nil {
		err = m.awaitTransfer(ctx)
	}
	if errors.Is(err, vmm.ErrGone) {
		return fmt.Errorf("%w: %w", vmm.ErrTemplate, err) // QEMU ends if it cannot make sense of the state
	}
	if err != nil {
		return err
	}
	return m.Resume(ctx)
}

func (m *machine) awaitTransfer(ctx context.Context) error {
	for {
		select {
		case status := <-m.migrated:
			switch status {
			case "completed":
				return nil
			case "failed", "cancelled":
				var why migrationStatus
				err := m.monitor.execute(ctx, "query-migrate", nil, &why)
				return errors.Join(fmt.Errorf("QEMU could not transfer the machine's state: %s %s", status, why.Error), err)
			}
		case <-m.monitor.ended:
			return vmm.ErrGone
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// PID implements vmm.Machine.
func (m *machine) PID() int { return m.process.Pid }

// Pause implements vmm.Machine.
func (m *machine) Pause(ctx context.Context) error { return m.monitor.execute(ctx, "stop", nil, nil) }

// Resume implements vmm.Machine.
func (m *machine) Resume(ctx context.Context) error { return m.monitor.execute(ctx, "cont", nil, nil) }

// Snapshot implements vmm.Machine.
func (m *machine) Snapshot(ctx context.Context, memory int64, state *os.File) error {
	if err := m.prepareTransfer(ctx); err != nil {
		return err
	}
	if err := m.checkUntouched(memory); err != nil {
		return err
	}
	if err := m.monitor.execute(ctx, "getfd", arguments{"fdname": "state"}, nil, state); err != nil {
		return err
	}
	if err := m.monitor.execute(ctx, "migrate", arguments{"uri": "fd:state"}, nil); err != nil {
		return err
	}
	return m.awaitTransfer(ctx)
}

// checkUntouched fails with ErrTouched if the guest, which has so many bytes of memory, has used what is beyond vmm.BaseMemory.
func (m *machine) checkUntouched(memory int64) error {
	ranges, err := blocks(m.shape, memory)
	if err != nil || len(ranges) == 0 {
		return err
	}
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", m.PID()))
	if err != nil {
		return err
	}
	for _, path := range files {
		if name, err := os.Readlink(path); err != nil || !strings.HasPrefix(name, furtherMemory) {
			continue
		}
		file, err := os.Open(path)
		if err != nil {
			return fmt.Errorf("%w, perhaps: %w", vmm.ErrTouched, err)
		}
		defer file.Close()
		for _, r := range ranges {
			begin := fileOffset(r.Start)
			data, err := unix.Seek(int(file.Fd()), begin, unix.SEEK_DATA)
			if err == nil && data < begin+int64(r.Bytes) {
				return fmt.Errorf("%w: at %#x", vmm.ErrTouched, int64(r.Start)+data-begin)
			}
			if err != nil && !errors.Is(err, unix.ENXIO) {
				return fmt.Errorf("%w, perhaps: %w", vmm.ErrTouched, err)
			}
		}
		return nil
	}
	return fmt.Errorf("%w, perhaps: QEMU has no file %s to look at", vmm.ErrTouched, furtherMemory)
}

// Kill implements vmm.Machine.
func (m *machine) Kill() error {
	select {
	case <-m.exited:
	default:
		m.mu.Lock()
		m.killed = true
		m.mu.Unlock()
		if err := m.process.Kill(); err != nil && !errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("kill QEMU of machine %s: %w", m.name, err)
		}
	}
	<-m.done
	return nil
}

// Wait implements vmm.Machine.
func (m *machine) Wait(ctx context.Context) (vmm.Exit, error) {
	select {
	case <-m.done:
		return m.exit, nil
	default:
	}
	select {
	case <-m.done:
		return m.exit, nil
	case <-ctx.Done():
		return vmm.Exit{}, ctx.Err()
	}
}
