package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/berth-run/berth/internal/layout"
)

// clockTick is the unit of CPU times in /proc (USER_HZ, which is 100 on every architecture that Go runs on).
const clockTick = time.Second / 100

// process is one of the machine's that exists for a pod, or for all pods.
type process struct {
	pid  int
	kind string
}

// processes are those of the pods, by what they are, and those that all pods share.
type processes struct{ pods, shared []process }

// find lists the processes of the pods with these UIDs: each one's kubelet, whatever is in the pod's cgroup, and the shims
// that name one of its containers or, as those of virtual machines do, started what is there. Every other process of a program in our
// directory is shared.
func find(uids []string, binDir string) (processes, error) {
	var out processes
	known, parents := map[int]bool{}, map[int]bool{}
	var containers []string
	for _, uid := range uids {
		pid, err := kubelet(uid)
		if err != nil {
			return out, err
		}
		known[pid] = true
		out.pods = append(out.pods, process{pid, "kubelet (berth-node)"})
		ids, members, err := cgroup(uid)
		if err != nil {
			return out, err
		}
		containers = append(containers, ids...)
		for _, pid := range members {
			if !known[pid] {
				known[pid] = true
				out.pods = append(out.pods, process{pid, kind(pid)})
				parents[parent(pid)] = true
			}
		}
	}
	entries, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return out, err
	}
	for _, exe := range entries {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(exe)))
		if err != nil || known[pid] {
			continue
		}
		program, err := os.Readlink(exe)
		if err != nil || filepath.Dir(program) != binDir {
			continue
		}
		line := strings.Join(arguments(pid), " ")
		switch {
		case namesOne(line, containers), parents[pid] && strings.HasPrefix(filepath.Base(program), "containerd-shim-"):
			out.pods = append(out.pods, process{pid, kind(pid)})
		case pid != os.Getpid():
			out.shared = append(out.shared, process{pid, filepath.Base(program)})
		}
	}
	return out, nil
}

func namesOne(line string, containers []string) bool {
	for _, id := range containers {
		if strings.Contains(line, id) {
			return true
		}
	}
	return false
}

func kubelet(uid string) (int, error) {
	data, err := os.ReadFile(filepath.Join(layout.Default.NodeRun(uid), "pid"))
	if err != nil {
		return 0, fmt.Errorf("find the kubelet of pod %s: %w", uid, err)
	}
	id, _, _ := strings.Cut(strings.TrimSpace(string(data)), " ")
	return strconv.Atoi(id)
}

// cgroup lists what is in the pod's cgroup: one cgroup for each container, named by its id, and all processes.
func cgroup(uid string) (containers []string, pids []int, err error) {
	dir := podDirectory(uid)
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || d.IsDir() || d.Name() != "cgroup.procs" {
			return err
		}
		if in := filepath.Dir(path); in != dir && filepath.Dir(in) == dir {
			containers = append(containers, filepath.Base(in))
		}
		data, err := os.ReadFile(path)
		for field := range strings.FieldsSeq(string(data)) {
			pid, perr := strconv.Atoi(field)
			pids, err = append(pids, pid), errors.Join(err, perr)
		}
		return err
	})
	return containers, pids, err
}

// podDirectory is the pod's cgroup that limits its memory.
func podDirectory(uid string) string {
	for _, root := range []string{"/sys/fs/cgroup/memory", "/sys/fs/cgroup"} {
		dir := filepath.Join(root, layout.PodCgroupPath(uid))
		if _, err := os.Stat(dir); err == nil {
			return dir
		}
	}
	return filepath.Join("/sys/fs/cgroup", layout.PodCgroupPath(uid))
}

// parent is the process that started it; of one that has ended, none.
func parent(pid int) int {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "PPid:"); ok {
			id, _ := strconv.Atoi(strings.TrimSpace(rest)) // a number
			return id
		}
	}
	return 0
}

func arguments(pid int) []string {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return nil
	}
	return strings.Split(strings.TrimRight(string(data), "\x00"), "\x00")
}

// kind is what a process calls itself, or the kernel it.
func kind(pid int) string {
	if arguments := arguments(pid); len(arguments) > 0 && arguments[0] != "" {
		return filepath.Base(arguments[0])
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil {
		return "ended"
	}
	return strings.TrimSpace(string(name))
}

// private is how much memory a process has dirtied and shares with nobody, in bytes.
func private(pid int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, fmt.Errorf("read the memory of process %d: %w", pid, err)
	}
	for line := range strings.Lines(string(data)) {
		if rest, ok := strings.CutPrefix(line, "Private_Dirty:"); ok {
			kb, err := strconv.ParseUint(strings.Fields(rest)[0], 10, 64)
			return kb << 10, err
		}
	}
	return 0, fmt.Errorf("smaps_rollup of process %d has no Private_Dirty", pid)
}

// cpu is the CPU time of a process so far; of one that has ended, none.
func cpu(pid int) time.Duration {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	fields := strings.Fields(string(data[strings.LastIndexByte(string(data), ')')+1:]))
	user, uerr := strconv.Atoi(fields[11])
	system, serr := strconv.Atoi(fields[12])
	if uerr != nil || serr != nil {
		return 0
	}
	return time.Duration(user+system) * clockTick
}
