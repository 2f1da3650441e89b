package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/berth-run/berth/internal/microvm/guestapi"
	"github.com/berth-run/berth/internal/microvm/qemu"
	"github.com/berth-run/berth/internal/microvm/template"
	"github.com/berth-run/berth/internal/microvm/vmm"
)

// unprivileged is who QEMU runs as.
const unprivileged = 65001

type options struct {
	guest, jail, acceleration string
	vcpus, boots, restores    int
}

type result struct{ what, value string }

// sample is one machine's start.
type sample struct {
	resumed, answered time.Duration
	memory            memory
}

// memory of a process, in kB: private is what no file is behind (guest pages that it changed among it), the price of one more machine.
type memory struct{ rss, pss, private int }

func measure(ctx context.Context, o options) ([]result, error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("root is needed (namespaces)")
	}
	dir, err := os.MkdirTemp("", "bench-restore")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	b := &bench{options: o, dir: dir, driver: qemu.New(qemu.Options{Acceleration: o.acceleration, Dir: dir, Jail: o.jail}), guest: template.GuestIn(o.guest)}
	shape, err := template.ShapeFor(int64(o.vcpus)*1000, 0)
	if err != nil {
		return nil, err
	}
	booted, err := b.samples(ctx, o.boots, func(h vmm.Host) (vmm.Machine, error) { return b.boot(ctx, h, shape) })
	if err != nil {
		return nil, err
	}
	store := template.NewStore(template.Options{Dir: dir, Driver: b.driver, Guest: b.guest, Confinement: vmm.Confinement{UID: unprivileged, GID: unprivileged}})
	loaded, err := store.Get(ctx, shape)
	if err != nil {
		return nil, err
	}
	defer loaded.Close()
	restored, err := b.samples(ctx, o.restores, func(h vmm.Host) (vmm.Machine, error) {
		return b.driver.Restore(ctx, vmm.Restore{Host: h, Template: loaded.Template()})
	})
	if err != nil {
		return nil, err
	}
	m := loaded.Manifest
	return append([]result{
		{"monitor", fmt.Sprintf("%s %s, %s, %d vCPUs", m.Monitor.Name, m.Monitor.Version, m.Monitor.Acceleration, shape.VCPUs)},
		{"template", fmt.Sprintf("%d kB of memory, %d kB of state", m.RAM.Bytes>>10, m.State.Bytes>>10)},
	}, append(rows("cold boot", booted), append(rows("restore", restored), ratio(booted, restored))...)...), nil
}

type bench struct {
	options
	dir    string
	driver vmm.Driver
	guest  template.Guest
}

func (b *bench) boot(ctx context.Context, h vmm.Host, shape vmm.Shape) (vmm.Machine, error) {
	ram, err := template.MemoryFile("ram")
	if err != nil {
		return nil, err
	}
	defer ram.Close()
	return b.driver.Boot(ctx, vmm.Boot{Host: h, Shape: shape, Kernel: b.guest.Kernel, Initrd: b.guest.Initrd, RAM: ram})
}

func (b *bench) samples(ctx context.Context, n int, start func(vmm.Host) (vmm.Machine, error)) ([]sample, error) {
	var all []sample
	for i := range n {
		s, err := b.sample(ctx, fmt.Sprintf("m%d", i), start)
		if err != nil {
			return nil, err
		}
		all = append(all, s)
	}
	return all, nil
}

func (b *bench) sample(ctx context.Context, name string, start func(vmm.Host) (vmm.Machine, error)) (s sample, err error) {
	tools, err := os.Open(b.guest.Tools)
	if err != nil {
		return s, err
	}
	defer tools.Close()
	host := vmm.Host{Name: name, AgentSocket: filepath.Join(b.dir, "agent"), Tools: tools,
		Confinement: vmm.Confinement{UID: unprivileged, GID: unprivileged}}
	began := time.Now()
	m, err := start(host)
	if err != nil {
		return s, err
	}
	defer func() { err = errors.Join(err, m.Kill()) }()
	s.resumed = time.Since(began)
	if err := ping(ctx, m); errors.Is(err, vmm.ErrGone) {
		exit, werr := m.Wait(ctx)
		return s, errors.Join(err, errors.New(exit.Detail), werr)
	} else if err != nil {
		return s, err
	}
	s.answered = time.Since(began)
	s.memory, err = memoryOf(m.PID())
	return s, err
}

func ping(ctx context.Context, m vmm.Machine) error {
	conn, err := m.Dial(ctx)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	if _, err := conn.Write([]byte(guestapi.Ping)); err != nil {
		return err
	}
	_, err = bufio.NewReader(conn).ReadString('\n')
	return err
}

func memoryOf(pid int) (m memory, err error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return m, err
	}
	for line := range strings.Lines(string(data)) {
		for name, to := range map[string]*int{"Rss:": &m.rss, "Pss:": &m.pss, "Anonymous:": &m.private} {
			if value, found := strings.CutPrefix(line, name); found {
				if _, err := fmt.Sscan(value, to); err != nil {
					return m, err
				}
			}
		}
	}
	return m, nil
}

func median[T any](all []sample, value func(sample) T, compare func(a, b T) int) T {
	values := make([]T, len(all))
	for i, s := range all {
		values[i] = value(s)
	}
	slices.SortFunc(values, compare)
	return values[len(values)/2]
}

func compareInts[T ~int | ~int64](a, b T) int { return int(a - b) }

func resumed(s sample) time.Duration  { return s.resumed }
func answered(s sample) time.Duration { return s.answered }

func rows(what string, all []sample) []result {
	ms := func(value func(sample) time.Duration) string {
		return fmt.Sprintf("%.1f ms (median of %d)", float64(median(all, value, compareInts))/float64(time.Millisecond), len(all))
	}
	mb := func(value func(sample) int) string {
		return fmt.Sprintf("%.1f MB", float64(median(all, value, compareInts))/1024)
	}
	return []result{
		{what + ": call to running", ms(resumed)},
		{what + ": call to the agent's first answer", ms(answered)},
		{what + ": QEMU's resident memory", mb(func(s sample) int { return s.memory.rss })},
		{what + ": QEMU's proportional memory", mb(func(s sample) int { return s.memory.pss })},
		{what + ": QEMU's own memory", mb(func(s sample) int { return s.memory.private })},
	}
}

func ratio(booted, restored []sample) result {
	return result{"restore answers", fmt.Sprintf("%.0f times sooner than cold boot",
		float64(median(booted, answered, compareInts))/float64(median(restored, answered, compareInts)))}
}
