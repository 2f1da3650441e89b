package task

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

const cgroupMount = "/sys/fs/cgroup"

// oomWatcher reports when the kernel ends a container's process for want of memory. The kernel counts that in the control group's memory.events.
type oomWatcher struct {
	event  func(guestapi.Event)
	notify *os.File
	raw    int

	mu     sync.Mutex
	groups map[string]*oomGroup // by container
	byWD   map[int32]string
}

type oomGroup struct {
	file    string
	wd      int32
	watched bool
	counts  oomCounts
}

// oomCounts of memory.events: how often the group's own limit left nothing to give, and how many processes were ended, for whatever reason.
type oomCounts struct{ limit, kills uint64 }

func newOOMWatcher(event func(guestapi.Event)) (*oomWatcher, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch memory events: %w", err)
	}
	w := &oomWatcher{event: event, notify: os.NewFile(uintptr(fd), "inotify"), raw: fd, groups: map[string]*oomGroup{}, byWD: map[int32]string{}}
	go w.loop()
	return w, nil
}

func (w *oomWatcher) loop() {
	buffer := make([]byte, 4096)
	for {
		n, err := w.notify.Read(buffer)
		if err != nil {
			return
		}
		for rest := buffer[:n]; len(rest) >= unix.SizeofInotifyEvent; {
			wd := int32(binary.NativeEndian.Uint32(rest))
			length := binary.NativeEndian.Uint32(rest[12:])
			rest = rest[min(len(rest), unix.SizeofInotifyEvent+int(length)):]
			w.mu.Lock()
			id := w.byWD[wd]
			w.mu.Unlock()
			w.check(id)
		}
	}
}

// watch begins to look at a container's control group, which has just been made.
func (w *oomWatcher) watch(id, cgroup string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	group := &oomGroup{file: filepath.Join(cgroupMount, cgroup, "memory.events")}
	w.groups[id] = group
	// A container that ended at once has no group any more; then there is nothing to watch.
	if wd, err := unix.InotifyAddWatch(w.raw, group.file, unix.IN_MODIFY); err == nil {
		group.wd, group.watched = int32(wd), true
		w.byWD[group.wd] = id
	}
}

func (w *oomWatcher) unwatch(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if group := w.groups[id]; group != nil && group.watched {
		_, _ = unix.InotifyRmWatch(w.raw, uint32(group.wd))
		delete(w.byWD, group.wd)
	}
	delete(w.groups, id)
}

// check reports what happened in the container's control group since it was last looked at.
func (w *oomWatcher) check(id string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	group := w.groups[id]
	if group == nil {
		return
	}
	content, err := os.ReadFile(group.file)
	if err != nil {
		return
	}
	counts, err := parseOOM(content)
	if err != nil {
		return
	}
	before := group.counts
	if counts.kills <= before.kills {
		// The kernel counts the limit first, then the process that it ends for it: they are looked at together.
		return
	}
	group.counts = counts
	if counts.limit == before.limit {
		// Not its own limit: there was no memory left in the machine.
		w.event(guestapi.Event{GuestOOM: true})
	}
	w.event(guestapi.Event{OOM: id})
}

func parseOOM(content []byte) (oomCounts, error) {
	var counts oomCounts
	for line := range bytes.Lines(content) {
		name, value, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		target := map[string]*uint64{"oom": &counts.limit, "oom_kill": &counts.kills}[name]
		if target == nil {
			continue
		}
		var err error
		if *target, err = strconv.ParseUint(value, 10, 64); err != nil {
			return counts, errors.New("memory.events is not as expected: " + name)
		}
	}
	return counts, nil
}
