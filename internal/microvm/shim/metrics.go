package shim

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	stats "github.com/containerd/cgroups/v3/cgroup2/stats"
)

// measured are the files of a container's control group (cgroup v2) that metrics reads, in its order.
var measured = []string{"cpu.stat", "cpu.pressure", "memory.stat", "memory.current", "memory.max", "memory.peak", "memory.swap.current", "memory.swap.max", "memory.swap.peak",
	"memory.pressure", "memory.events", "pids.current", "pids.max", "io.stat", "io.pressure"}

// metrics are containerd's, of the contents of measured. What the guest's kernel does not tell is zero. containerd's own library reads the same, but from files only.
func metrics(files []string) *stats.Metrics {
	file := map[string]string{}
	for i, name := range measured {
		file[name] = files[i]
	}
	cpu := &stats.CPUStat{PSI: pressure(file["cpu.pressure"])}
	fields(file["cpu.stat"], map[string]*uint64{
		"usage_usec": &cpu.UsageUsec, "user_usec": &cpu.UserUsec, "system_usec": &cpu.SystemUsec, "nr_periods": &cpu.NrPeriods,
		"nr_throttled": &cpu.NrThrottled, "throttled_usec": &cpu.ThrottledUsec, "nr_bursts": &cpu.NrBursts, "burst_usec": &cpu.BurstUsec,
	})
	m := &stats.MemoryStat{
		Usage: number(file["memory.current"]), UsageLimit: number(file["memory.max"]), MaxUsage: number(file["memory.peak"]),
		SwapUsage: number(file["memory.swap.current"]), SwapLimit: number(file["memory.swap.max"]), SwapMaxUsage: number(file["memory.swap.peak"]),
		PSI: pressure(file["memory.pressure"]),
	}
	fields(file["memory.stat"], map[string]*uint64{
		"anon": &m.Anon, "file": &m.File, "kernel_stack": &m.KernelStack, "slab": &m.Slab, "sock": &m.Sock, "shmem": &m.Shmem,
		"file_mapped": &m.FileMapped, "file_dirty": &m.FileDirty, "file_writeback": &m.FileWriteback, "anon_thp": &m.AnonThp,
		"inactive_anon": &m.InactiveAnon, "active_anon": &m.ActiveAnon, "inactive_file": &m.InactiveFile, "active_file": &m.ActiveFile,
		"unevictable": &m.Unevictable, "slab_reclaimable": &m.SlabReclaimable, "slab_unreclaimable": &m.SlabUnreclaimable,
		"pgfault": &m.Pgfault, "pgmajfault": &m.Pgmajfault, "workingset_refault": &m.WorkingsetRefault,
		"workingset_activate": &m.WorkingsetActivate, "workingset_nodereclaim": &m.WorkingsetNodereclaim, "pgrefill": &m.Pgrefill,
		"pgscan": &m.Pgscan, "pgsteal": &m.Pgsteal, "pgactivate": &m.Pgactivate, "pgdeactivate": &m.Pgdeactivate, "pglazyfree": &m.Pglazyfree,
		"pglazyfreed": &m.Pglazyfreed, "thp_fault_alloc": &m.ThpFaultAlloc, "thp_collapse_alloc": &m.ThpCollapseAlloc,
	})
	return &stats.Metrics{
		CPU: cpu, Memory: m, MemoryEvents: memoryEvents(file["memory.events"]),
		Pids: &stats.PidsStat{Current: number(file["pids.current"]), Limit: number(file["pids.max"])},
		Io:   &stats.IOStat{Usage: disks(file["io.stat"]), PSI: pressure(file["io.pressure"])},
	}
}

// memoryEvents is nil where the kernel does not count them.
func memoryEvents(text string) *stats.MemoryEvents {
	if text == "" {
		return nil
	}
	e := &stats.MemoryEvents{}
	fields(text, map[string]*uint64{
		"low": &e.Low, "high": &e.High, "max": &e.Max, "oom": &e.Oom, "oom_kill": &e.OomKill, "oom_group_kill": &e.OomGroupKill,
	})
	return e
}

// fields reads lines of a name and a number.
func fields(text string, into map[string]*uint64) {
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, " ")
		if field := into[name]; field != nil {
			*field = number(value)
		}
	}
}

// number is one; "max", which is none, is the highest.
func number(text string) uint64 {
	text = strings.TrimSpace(text)
	if text == "max" {
		return math.MaxUint64
	}
	n, _ := strconv.ParseUint(text, 10, 64)
	return n
}

// disks reads lines such as "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=0 dios=0".
func disks(text string) []*stats.IOEntry {
	var out []*stats.IOEntry
	for line := range strings.Lines(text) {
		e := &stats.IOEntry{}
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		if _, err := fmt.Sscanf(words[0], "%d:%d", &e.Major, &e.Minor); err != nil {
			continue
		}
		fields(strings.ReplaceAll(strings.Join(words[1:], "\n"), "=", " "), map[string]*uint64{
			"rbytes": &e.Rbytes, "wbytes": &e.Wbytes, "rios": &e.Rios, "wios": &e.Wios,
		})
		out = append(out, e)
	}
	return out
}

// pressure reads lines such as "some avg10=0.00 avg60=0.00 avg300=0.00 total=0"; nil: the kernel does not measure it.
func pressure(text string) *stats.PSIStats {
	if text == "" {
		return nil
	}
	out := &stats.PSIStats{}
	for line := range strings.Lines(text) {
		var kind string
		d := &stats.PSIData{}
		if _, err := fmt.Sscanf(line, "%s avg10=%f avg60=%f avg300=%f total=%d", &kind, &d.Avg10, &d.Avg60, &d.Avg300, &d.Total); err != nil {
			continue
		}
		switch kind {
		case "some":
			out.Some = d
		case "full":
			out.Full = d
		}
	}
	return out
}
