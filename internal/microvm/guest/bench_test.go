package guest_test

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/runtime/task/v3"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

// privatePages of the template's memory are those that the machine has written to; all others it shares with every machine of the template.
func (m *vm) privatePages() int {
	m.t.Helper()
	const entry, present, ofFile = 8, 1 << 63, 1 << 61
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", m.command.Process.Pid))
	if err != nil {
		m.t.Fatal(err)
	}
	var low, high int64
	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, "/memfd:template") {
			if _, err := fmt.Sscanf(line, "%x-%x", &low, &high); err != nil {
				m.t.Fatal(err)
			}
		}
	}
	pagemap, err := os.Open(fmt.Sprintf("/proc/%d/pagemap", m.command.Process.Pid))
	if err != nil {
		m.t.Fatal(err)
	}
	defer func() { _ = pagemap.Close() }()
	size := int64(os.Getpagesize())
	entries := make([]byte, (high-low)/size*entry)
	if _, err := pagemap.ReadAt(entries, low/size*entry); err != nil {
		m.t.Fatal(err)
	}
	private := 0
	for page := range slices.Chunk(entries, entry) {
		if bits := binary.LittleEndian.Uint64(page); bits&present != 0 && bits&ofFile == 0 {
			private++
		}
	}
	return private
}

// processorTime is the machine's so far, of all threads of its monitor.
func (m *vm) processorTime() time.Duration {
	m.t.Helper()
	threads, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", m.command.Process.Pid))
	if err != nil {
		m.t.Fatal(err)
	}
	var sum time.Duration
	for _, file := range threads {
		var spent int64
		content, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		if _, err := fmt.Sscan(string(content), &spent); err != nil {
			m.t.Fatal(err)
		}
		sum += time.Duration(spent)
	}
	return sum
}

// privateMemory of the machine's monitor, in KiB, the guest's included.
func (m *vm) privateMemory() float64 {
	m.t.Helper()
	content, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", m.command.Process.Pid))
	if err != nil {
		m.t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		if rest, ok := strings.CutPrefix(line, "Anonymous:"); ok {
			kib, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			if err != nil {
				m.t.Fatal(err)
			}
			return kib
		}
	}
	return 0
}

// BenchmarkStart measures a restored machine's way to its first containers, and what it then has for itself. The first container comes
// at once; the later ones find warm what the first one needed.
func BenchmarkStart(b *testing.B) {
	built(b)
	stages := map[string][]float64{}
	for b.Loop() {
		var m *vm
		stage := func(name string, do func()) {
			began := time.Now()
			var worked time.Duration
			if m != nil {
				worked = m.processorTime()
			}
			do()
			stages[name+"-cpu-ms"] = append(stages[name+"-cpu-ms"], float64((m.processorTime()-worked).Microseconds())/1000)
			stages[name+"-ms"] = append(stages[name+"-ms"], float64(time.Since(began).Microseconds())/1000)
		}
		stage("restore", func() { m = restore(b) })
		stage("hello", m.begin)
		configuration := m.configuration()
		stage("configure", func() {
			if err := m.do(guestapi.Request{Op: guestapi.OpConfigure, Configure: configuration}); err != nil {
				b.Fatal(err)
			}
		})
		image := m.busybox()
		for i, name := range []string{"first", "second", "third"} {
			id := fmt.Sprintf("c%d", i)
			options := containerOptions(b, shell(id, "exec sleep 1000", nil), image)
			stage(name, func() {
				if _, err := m.tasks.Create(b.Context(), &api.CreateTaskRequest{ID: id, Stdout: "1", Options: options}); err != nil {
					b.Fatal(err)
				}
				if _, err := m.tasks.Start(b.Context(), &api.StartRequest{ID: id}); err != nil {
					b.Fatal(err)
				}
			})
			if i == 0 {
				stages["private-KiB"] = append(stages["private-KiB"], float64(m.privatePages()*os.Getpagesize()/1024))
				stages["monitor-KiB"] = append(stages["monitor-KiB"], m.privateMemory())
			}
		}
		m.end()
	}
	for name, values := range stages {
		slices.Sort(values)
		b.ReportMetric(values[len(values)/2], name)
	}
}
