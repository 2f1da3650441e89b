package shim

import (
	"cmp"
	"encoding/json"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/berth-run/berth/internal/microvm/podsocket"
	"github.com/berth-run/berth/internal/microvm/vmm"
)

// Reasons of trouble.
const (
	reasonHostDiskFull  = "HostDiskFull"
	reasonNotAnswering  = "MachineNotAnswering"
	messageNotAnswering = "the pod's machine has not answered for 10s: its kernel hangs, or all of its processor time is taken; " +
		"a container with a liveness probe gets a new machine by itself, else delete the pod"
)

// tellLimit bounds how long a listener may take to read a line.
const tellLimit = time.Second

// health is what keeps the machine from running. The pod's kubelet listens, and tells people.
type health struct {
	diskDir string

	mu        sync.Mutex
	full      bool
	stalls    int // how often the host's disk was full
	silent    bool
	ended     bool
	why       string // it has ended, if that was not wanted
	told      podsocket.Trouble
	listeners map[net.Conn]struct{}
}

func newHealth(diskDir string) *health {
	return &health{diskDir: diskDir, listeners: map[net.Conn]struct{}{}}
}

// stalled notes that the machine stands still for want of room on the host's disk, or goes on.
func (h *health) stalled(full bool) {
	h.note(func() {
		h.full = full
		if full {
			h.stalls++
		}
	})
}

// asking is called before the guest is asked something, and what it returns with whether the guest has answered. A machine that stood still meanwhile could not.
func (h *health) asking() (answered func(bool)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	full, stalls := h.full, h.stalls
	return func(ok bool) { h.note(func() { h.silent = !ok && !full && stalls == h.stalls }) }
}

// end notes that the machine has ended, and why, unless that was wanted.
func (h *health) end(exit vmm.Exit, why string) {
	h.note(func() {
		h.ended = true
		if exit.Reason != vmm.ReasonKilled && exit.Reason != vmm.ReasonPowerOff {
			h.why = why
		}
	})
}

// err says why the guest need not be asked: it does not run. What is asked of it would wait in a queue that has an end.
func (h *health) err() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.told == (podsocket.Trouble{}) {
		return nil
	}
	return errors.New(cmp.Or(h.told.Message, "the pod's machine has ended"))
}

// standsStill says whether the machine waits for room on the host's disk.
func (h *health) standsStill() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.full
}

// note changes something and tells the listeners, if that makes a difference.
func (h *health) note(change func()) {
	h.mu.Lock()
	defer h.mu.Unlock()
	change()
	now := h.trouble()
	if now == h.told {
		return
	}
	h.told = now
	switch {
	case now.Reason != "":
		logger().Warn("the machine does not run", "reason", now.Reason, "message", now.Message)
	case !now.Ended:
		logger().Info("the machine goes on")
	}
	for conn := range h.listeners {
		h.tell(conn)
	}
}

func (h *health) trouble() podsocket.Trouble {
	switch {
	case h.why != "":
		return podsocket.Trouble{Reason: podsocket.ReasonMachineEnded, Message: h.why, Ended: true}
	case h.ended:
		return podsocket.Trouble{Ended: true}
	case h.full:
		return podsocket.Trouble{Reason: reasonHostDiskFull, Message: "the host's disk is full: the pod's machine stands still at what it writes, and goes on by itself when there is room; " +
			"free some space on the host's file system of " + h.diskDir}
	case h.silent:
		return podsocket.Trouble{Reason: reasonNotAnswering, Message: messageNotAnswering}
	}
	return podsocket.Trouble{}
}

func (h *health) tell(conn net.Conn) {
	_ = conn.SetWriteDeadline(time.Now().Add(tellLimit))
	_ = json.NewEncoder(conn).Encode(h.told) // whoever has gone is noticed where it is read from
}

// serve tells the listener what is so now, and whenever that changes, until it goes.
func (h *health) serve(conn net.Conn) {
	h.mu.Lock()
	h.listeners[conn] = struct{}{}
	h.tell(conn)
	h.mu.Unlock()
	var nothing [1]byte
	_, _ = conn.Read(nothing[:])
	h.mu.Lock()
	delete(h.listeners, conn)
	h.mu.Unlock()
}
