package qemu

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/berth-run/berth/internal/microvm/vmm"
)

const (
	// spacePause is how long a machine whose disk has no room waits before it tries again.
	spacePause = 5 * time.Second
	// spaceProof is how long it must have run before it is said to go on: what failed is written again at once.
	spaceProof = 2 * time.Second
)

// space is about a machine that QEMU stops because the host had no room for what it wrote. Nothing is lost: what failed is written again, and if there is
// still no room, the machine stops again.
type space struct {
	failed  chan struct{} // a write has failed
	stalled bool          // somebody awaits room already; machine.mu guards it
	tell    func(stalled bool)
}

func newSpace(tell func(bool)) space {
	if tell == nil {
		tell = func(bool) {}
	}
	return space{failed: make(chan struct{}, 1), tell: tell}
}

// outOfSpace is called when QEMU has stopped the machine.
func (m *machine) outOfSpace() {
	select {
	case m.space.failed <- struct{}{}:
	default: // known
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if !m.space.stalled {
		m.space.stalled = true
		m.space.tell(true)
		go m.awaitSpace()
	}
}

// awaitSpace lets the machine run every now and then, until it does so for good.
func (m *machine) awaitSpace() {
	for {
		select {
		case <-m.exited:
			return
		case <-time.After(spacePause):
		}
		select {
		case <-m.space.failed: // before now
		default:
		}
		ctx, cancel := context.WithTimeout(context.Background(), rollbackLimit)
		err := m.Resume(ctx)
		cancel()
		if err != nil && !errors.Is(err, vmm.ErrGone) {
			slog.Error("let a machine go on whose disk had no room", "machine", m.name, "error", err)
			continue
		}
		select {
		case <-m.exited:
			return
		case <-m.space.failed:
			continue
		case <-time.After(spaceProof):
		}
		if m.goesOn() {
			return
		}
	}
}

func (m *machine) goesOn() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.space.failed) > 0 {
		return false
	}
	m.space.stalled = false
	m.space.tell(false)
	return true
}
