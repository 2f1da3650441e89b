package task

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/cgroups/v3/cgroup2"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/guest/reaper"
)

const (
	crunProgram = "/usr/bin/crun"
	crunState   = "/run/crun"
	// killedStatus is that of a process that the kernel ended for want of memory: nothing else here kills crun.
	killedStatus = 128 + int(unix.SIGKILL)
	// failedStatus is the exit status of a process that could not be started.
	failedStatus = 128
	// lowestPriority as a nice value.
	lowestPriority = 19
)

// crunEnvironment spares crun to copy itself into memory and run the copy, its way to keep a container from writing to it: it lies on a read-only disk.
var crunEnvironment = []string{"PATH=" + reaper.Path, "_LIBCONTAINER_CLONED_BINARY=1"}

// crunCommand is crun's command line. It logs to a file: its descriptors are the container's.
func crunCommand(log string, args ...string) []string {
	return append([]string{crunProgram, "--root", crunState, "--cgroup-manager", "cgroupfs", "--log", log, "--log-format", "json"}, args...)
}

// crun runs a command that starts nothing.
func (c *container) crun(ctx context.Context, args ...string) error {
	log := filepath.Join(c.dir(), args[0]+".log")
	defer func() { _ = os.Remove(log) }()
	said, err := c.service.reaper.Run(ctx, crunCommand(log, args...))
	if err != nil {
		return errors.Join(crunError(log, said), err)
	}
	return nil
}

// crunError is what crun logged last as an error.
func crunError(log, otherwise string) error {
	content, err := os.ReadFile(log)
	if err != nil {
		return err
	}
	message := strings.TrimSpace(otherwise)
	for line := range bytes.Lines(content) {
		var entry struct{ Msg, Level string }
		if json.Unmarshal(line, &entry) == nil && entry.Level == "error" {
			message = entry.Msg
		}
	}
	if message == "" {
		message = "crun failed and said nothing"
	}
	return errors.New(message)
}

// memoryError says why there is no memory for another process.
func memoryError() error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("the pod's memory is full: ask how much there is: %w", err)
	}
	mib := func(amount uint64) uint64 { return amount * uint64(info.Unit) >> 20 }
	return fmt.Errorf("the pod's memory is full: of %d MiB are %d free, and files in memory (emptyDir volumes of medium Memory, /dev/shm) take %d; "+
		"give the pod more memory, or delete files there", mib(info.Totalram), mib(info.Freeram), mib(info.Sharedram))
}

// start runs the process by crun, which ends when the process is running, and leaves the process to this one.
func (c *container) start(p *process) (int, error) {
	p.starting.Lock()
	defer p.starting.Unlock()
	if err := p.startable(); err != nil {
		return 0, err
	}
	if p.exec != "" {
		if pid, _ := c.init.running(); pid == 0 {
			p.stop(reaper.Exit{Status: failedStatus})
			return 0, fmt.Errorf("container %s is not running: %w", c.id, errdefs.ErrFailedPrecondition)
		}
	}
	pid, exited, err := c.launch(p)
	if err != nil {
		p.stop(reaper.Exit{Status: failedStatus})
		return 0, err
	}
	p.run(pid)
	if p.exec == "" {
		c.service.oom.watch(c.id, c.cgroup)
	}
	go func() {
		exit := <-exited
		// Before the exit is known, so that whoever learns of it knows why.
		c.service.oom.check(c.id)
		if p.exec == "" && !c.privatePID {
			if group, err := cgroup2.Load(c.cgroup); err == nil {
				_ = group.Kill()
			}
		}
		p.stop(exit)
	}()
	return pid, nil
}

// launch runs crun and finds the id of the process that it left.
func (c *container) launch(p *process) (int, <-chan reaper.Exit, error) {
	prefix := filepath.Join(c.dir(), "init")
	if p.exec != "" {
		prefix = filepath.Join(c.dir(), "exec-"+p.exec)
	}
	pidFile, log := prefix+".pid", prefix+".log"
	defer func() { _, _ = os.Remove(pidFile), os.Remove(log) }()
	args := []string{"run", "--detach", "--bundle", c.dir(), "--pid-file", pidFile}
	if p.exec != "" {
		spec := prefix + ".json"
		if err := os.WriteFile(spec, p.spec, 0o600); err != nil {
			return 0, nil, err
		}
		defer func() { _ = os.Remove(spec) }()
		args = []string{"exec", "--detach", "--process", spec, "--pid-file", pidFile}
	}
	child, err := p.streams.child()
	if err != nil {
		return 0, nil, err
	}
	defer child.close()
	if child.console != "" {
		args = append(args, "--console-socket", child.console)
	}
	capture := c.service.reaper.Capture()
	defer capture.Close()
	if p.exec == "" {
		c.ran = true
	}
	launcher, crun, err := c.service.reaper.Start(crunCommand(log, append(args, c.id)...), crunEnvironment, child.files...)
	if err != nil {
		return 0, nil, err
	}
	if c.id == warmID {
		// Whatever else there is to do comes first.
		_ = unix.Setpriority(unix.PRIO_PROCESS, launcher, lowestPriority)
	}
	switch exit := <-crun; exit.Status {
	case 0:
	case killedStatus:
		return 0, nil, memoryError()
	default:
		return 0, nil, crunError(log, "")
	}
	pid, err := readPID(pidFile)
	if errors.Is(err, os.ErrNotExist) {
		// crun does not notice that the kernel has killed what it left to make the container.
		return 0, nil, memoryError()
	}
	if err != nil {
		return 0, nil, err
	}
	if err := child.receiveConsole(); err != nil {
		return 0, nil, err
	}
	return pid, capture.Claim(pid), nil
}

func readPID(path string) (int, error) {
	content, err := os.ReadFile(path)
	if err != nil {
		return 0, fmt.Errorf("read the process id from crun: %w", err)
	}
	return strconv.Atoi(strings.TrimSpace(string(content)))
}
