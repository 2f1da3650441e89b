package hostagent

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/nodeconfig"
)

const (
	pidFile = "pid"
	// refillPause keeps the start of the next waiting process out of the way of the pod that took one.
	refillPause = 2 * time.Second
	// waitingNice is how much a process yields that is started ahead of need.
	waitingNice = 10
	// stopLimit is how long a node process may take to end by itself.
	stopLimit = 2 * time.Second
)

// nodeProcesses starts and ends the kubelet processes of pods. They are in sessions of their own and outlive the agent;
// what is needed to find them again is in each node's run directory.
type nodeProcesses struct {
	dirs    layout.Dirs
	program string

	mu      sync.Mutex
	pool    []*waitingProcess
	want    int
	watched map[int]bool // process ids of nodes whose end somebody waits for
}

// waitingProcess has been started ahead of need and waits for its configuration.
type waitingProcess struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	log   string
}

// dismiss lets the process go: with an empty configuration it ends by itself.
func (p *waitingProcess) dismiss() {
	p.stdin.Close()
	_ = p.cmd.Wait() // how it ended is in its log
	os.Remove(p.log)
}

func newNodeProcesses(dirs layout.Dirs, program string, ahead int) *nodeProcesses {
	return &nodeProcesses{dirs: dirs, program: program, want: ahead, watched: map[int]bool{}}
}

// refill starts processes until enough wait.
func (n *nodeProcesses) refill() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for len(n.pool) < n.want {
		p, err := n.launch()
		if err != nil {
			slog.Error("start a node process ahead of need", "error", err)
			return
		}
		n.pool = append(n.pool, p)
	}
}

func (n *nodeProcesses) launch() (*waitingProcess, error) {
	dir := filepath.Join(n.dirs.Log, "nodes")
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return nil, fmt.Errorf("make the log directory of nodes: %w", err)
	}
	log, err := os.CreateTemp(dir, "waiting-*.log")
	if err != nil {
		return nil, fmt.Errorf("make a log for a node process: %w", err)
	}
	defer log.Close()
	cmd := exec.Command(n.program)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe to a node process: %w", err)
	}
	if err := cmd.Start(); err != nil {
		os.Remove(log.Name())
		return nil, fmt.Errorf("start %s: %w", n.program, err)
	}
	yield(cmd.Process.Pid, waitingNice)
	return &waitingProcess{cmd, stdin, log.Name()}, nil
}

// yield sets the niceness of all threads of a process, which is the only one of its process group.
func yield(pid, nice int) {
	if err := unix.Setpriority(unix.PRIO_PGRP, pid, nice); err != nil {
		slog.Warn("set a node process's priority", "pid", pid, "nice", nice, "error", err)
	}
}

// dismiss lets the waiting processes go.
func (n *nodeProcesses) dismiss() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.want = 0
	for _, p := range n.pool {
		p.dismiss()
	}
	n.pool = nil
}

func (n *nodeProcesses) take() (*waitingProcess, error) {
	n.mu.Lock()
	for len(n.pool) > 0 {
		p := n.pool[0]
		n.pool = n.pool[1:]
		if _, err := startTime(p.cmd.Process.Pid); err == nil {
			n.mu.Unlock()
			return p, nil
		}
		p.dismiss()
	}
	n.mu.Unlock()
	return n.launch()
}

// start gives a process the configuration of a node; ended is called when it ends, whoever ended it.
func (n *nodeProcesses) start(cfg nodeconfig.Config, ended func()) error {
	p, err := n.take()
	if err != nil {
		return err
	}
	time.AfterFunc(refillPause, n.refill)
	uid := string(cfg.PodUID)
	if err := os.Rename(p.log, n.dirs.NodeLog(uid)); err != nil {
		slog.Warn("name a node's log", "error", err)
	}
	pid := p.cmd.Process.Pid
	if err := remember(n.dirs.NodeRun(uid), pid); err != nil {
		p.dismiss()
		return err
	}
	yield(pid, 0)
	data, err := json.Marshal(cfg)
	if err == nil {
		_, err = p.stdin.Write(data)
	}
	if err = errors.Join(err, p.stdin.Close()); err != nil {
		_ = p.cmd.Process.Kill()
		p.dismiss()
		return fmt.Errorf("configure the node process of %s: %w", cfg.NodeName, err)
	}
	n.watch(pid, p.cmd.Wait, ended)
	return nil
}

// watch calls ended once when the process has ended, for which wait waits. It is false if the process is watched already.
func (n *nodeProcesses) watch(pid int, wait func() error, ended func()) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.watched[pid] {
		return false
	}
	n.watched[pid] = true
	go func() {
		_ = wait() // how a kubelet ended is in its log
		n.mu.Lock()
		delete(n.watched, pid)
		n.mu.Unlock()
		ended()
	}()
	return true
}

// adopt watches a node's process that an earlier agent started; ended is called when it ends. One that this agent started
// or adopted already stays as it is.
func (n *nodeProcesses) adopt(pid int, ended func()) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return fmt.Errorf("watch node process %d: %w", pid, err)
	}
	wait := func() error {
		defer unix.Close(fd)
		for {
			if _, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, -1); !errors.Is(err, unix.EINTR) {
				return err
			}
		}
	}
	if !n.watch(pid, wait, ended) {
		return unix.Close(fd)
	}
	return nil
}

// remember keeps a process's id and start time, which together name it for good.
func remember(dir string, pid int) error {
	started, err := startTime(pid)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, pidFile), []byte(fmt.Sprintf("%d %s\n", pid, started)), 0o600); err != nil {
		return fmt.Errorf("keep the node process's id: %w", err)
	}
	return nil
}

// startTime is field 22 of /proc/PID/stat: clock ticks after boot.
func startTime(pid int) (string, error) {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return "", fmt.Errorf("look at process %d: %w", pid, err)
	}
	rest := string(stat[strings.LastIndexByte(string(stat), ')')+1:])
	fields := strings.Fields(rest)
	if len(fields) < 20 || fields[0] == "Z" {
		return "", fmt.Errorf("process %d has ended", pid)
	}
	return fields[19], nil
}

// running is the id of a node's process, or 0 if it does not run.
func (n *nodeProcesses) running(uid string) int {
	data, err := os.ReadFile(filepath.Join(n.dirs.NodeRun(uid), pidFile))
	if err != nil {
		return 0
	}
	id, started, _ := strings.Cut(strings.TrimSpace(string(data)), " ")
	pid, err := strconv.Atoi(id)
	if err != nil {
		return 0
	}
	if now, err := startTime(pid); err != nil || now != started {
		return 0
	}
	return pid
}

// stop ends a node's process: politely, and after stopLimit for certain.
func (n *nodeProcesses) stop(uid string) error {
	pid := n.running(uid)
	if pid == 0 {
		return nil
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // it ended meanwhile
	}
	defer unix.Close(fd)
	for _, signal := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if n.running(uid) != pid {
			return nil
		}
		if err := unix.PidfdSendSignal(fd, signal, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("end node process %d: %w", pid, err)
		}
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if ready, err := unix.Poll(poll, int(stopLimit.Milliseconds())); err == nil && ready > 0 {
			return nil
		}
	}
	return fmt.Errorf("node process %d does not end", pid)
}
