// Package reaper starts processes and collects exits for process 1 of the guest, which is the parent of its own children and of every
// orphan. Nothing else in the agent may wait for a process (os/exec's Wait would find that its child is gone). For internal/microvm/guest only.
package reaper

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Path is where programs of the tools image are found.
const Path = "/usr/sbin:/usr/bin:/sbin:/bin"

// maxSaid is how much of a program's output is kept.
const maxSaid = 16 << 10

// Exit is how a process ended. Status is its exit code, or 128 and the signal that ended it.
type Exit struct {
	PID    int
	Status int
	Time   time.Time
}

// Reaper collects the exits of all children.
type Reaper struct {
	mu       sync.Mutex
	waiting  map[int]chan Exit
	captures map[*Capture]struct{}
}

// New begins to collect. One per process.
func New() *Reaper {
	r := &Reaper{waiting: map[int]chan Exit{}, captures: map[*Capture]struct{}{}}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGCHLD)
	go func() {
		for range signals {
			r.collect()
		}
	}()
	return r
}

// collect takes every exit there is: signals may be merged.
func (r *Reaper) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var status unix.WaitStatus
		pid, err := unix.Wait4(-1, &status, unix.WNOHANG, nil)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		if status.Exited() || status.Signaled() {
			r.publish(Exit{PID: pid, Status: exitStatus(status), Time: time.Now()})
		}
	}
}

func (r *Reaper) publish(exit Exit) {
	if waiting, ok := r.waiting[exit.PID]; ok {
		delete(r.waiting, exit.PID)
		waiting <- exit
		return
	}
	for capture := range r.captures {
		capture.exits[exit.PID] = exit
	}
}

func exitStatus(status unix.WaitStatus) int {
	if status.Signaled() {
		return 128 + int(status.Signal())
	}
	return status.ExitStatus()
}

// fixedAddresses is ADDR_NO_RANDOMIZE of personality(2), a constant that package unix does not have.
const fixedAddresses = 0x0040000

// Start runs a program; its descriptors 0, 1, ... are files. The channel yields its exit, once. The program and its libraries lie at the same
// addresses each time: an emulated processor then finds their code translated from the time before.
func (r *Reaper) Start(argv, env []string, files ...uintptr) (int, <-chan Exit, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// It belongs to the thread, from which the program inherits it.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	own, _, errno := unix.Syscall(unix.SYS_PERSONALITY, fixedAddresses, 0, 0)
	if errno != 0 {
		return 0, nil, fmt.Errorf("start %s: set its personality: %w", argv[0], errno)
	}
	defer func() { _, _, _ = unix.Syscall(unix.SYS_PERSONALITY, own, 0, 0) }()
	pid, err := syscall.ForkExec(argv[0], argv, &syscall.ProcAttr{Dir: "/", Env: env, Files: files})
	if err != nil {
		return 0, nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	return pid, r.wait(pid), nil
}

func (r *Reaper) wait(pid int) <-chan Exit {
	waiting := make(chan Exit, 1)
	r.waiting[pid] = waiting
	return waiting
}

// Capture keeps the exits of processes that nobody waits for yet, so that one whose id becomes known late is not missed. Close it.
type Capture struct {
	reaper *Reaper
	exits  map[int]Exit
}

// Capture begins before the process is started by another program.
func (r *Reaper) Capture() *Capture {
	r.mu.Lock()
	defer r.mu.Unlock()
	capture := &Capture{reaper: r, exits: map[int]Exit{}}
	r.captures[capture] = struct{}{}
	return capture
}

// Claim yields the exit of the process, once, also if it has ended since the capture began.
func (c *Capture) Claim(pid int) <-chan Exit {
	c.reaper.mu.Lock()
	defer c.reaper.mu.Unlock()
	if exit, ok := c.exits[pid]; ok {
		waiting := make(chan Exit, 1)
		waiting <- exit
		return waiting
	}
	return c.reaper.wait(pid)
}

// Close ends the capture.
func (c *Capture) Close() {
	c.reaper.mu.Lock()
	defer c.reaper.mu.Unlock()
	delete(c.reaper.captures, c)
}

// Run runs a program to its end and returns what it said. An exit status other than 0 is an error.
func (r *Reaper) Run(ctx context.Context, argv []string) (string, error) {
	read, write, err := os.Pipe()
	if err != nil {
		return "", err
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		_ = read.Close()
		_ = write.Close()
		return "", err
	}
	pid, exited, err := r.Start(argv, []string{"PATH=" + Path}, null.Fd(), write.Fd(), write.Fd())
	_ = null.Close()
	_ = write.Close()
	if err != nil {
		_ = read.Close()
		return "", err
	}
	stop := context.AfterFunc(ctx, func() {
		_ = unix.Kill(pid, unix.SIGKILL)
		_ = read.SetReadDeadline(time.Now())
	})
	defer stop()
	said, _ := io.ReadAll(io.LimitReader(read, maxSaid))
	// What says more than that ends by SIGPIPE instead of waiting for a reader.
	_ = read.Close()
	exit := <-exited
	if ctx.Err() != nil {
		return string(said), ctx.Err()
	}
	if exit.Status != 0 {
		return string(said), fmt.Errorf("%s ended with status %d", argv[0], exit.Status)
	}
	return string(said), nil
}
