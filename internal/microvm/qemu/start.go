package qemu

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/jail"
	"github.com/berth-run/berth/internal/microvm/vmm"
)

// environment keeps QEMU's own memory small: one heap for all threads, given back early.
var environment = []string{"MALLOC_ARENA_MAX=1", "MALLOC_TRIM_THRESHOLD_=65536", "MALLOC_MMAP_THRESHOLD_=65536"}

// start starts a QEMU with the files that firstDescriptors name; last are those from ram on. tap may be nil. args depend on the vsock's address, if there is one.
func (d *Driver) start(h vmm.Host, transport, root string, tap *os.File, last []*os.File, args func(cid uint32) []string) (_ *machine, err error) {
	var mine []*os.File // to be closed here
	defer func() {
		for _, f := range mine {
			f.Close()
		}
	}()
	keep := func(f *os.File, err error) (*os.File, error) {
		if err == nil {
			mine = append(mine, f)
		}
		return f, err
	}
	if tap == nil {
		if tap, err = keep(placeholderTap()); err != nil {
			return nil, err
		}
	}
	tools, err := keep(forReading(h.Tools))
	if err != nil {
		return nil, err
	}
	near, far, err := socketPair()
	if err != nil {
		return nil, err
	}
	mine = append(mine, far)
	m := &machine{name: h.Name, done: make(chan struct{}), disks: map[int]int{}, deleted: map[string]chan struct{}{},
		migrated: make(chan string, 8), diagnosis: newTail(diagnosisBytes), printed: newTail(printedBytes), space: newSpace(h.Stalled)}
	if m.port, err = openPort(transport, h.AgentSocket); err != nil {
		return nil, errors.Join(err, near.Close())
	}
	mine = append(mine, m.port.far)
	console, err := keep(m.openConsole(h.Console))
	if err != nil {
		return nil, errors.Join(err, near.Close(), m.port.remove())
	}
	cmd, err := d.command(h, root, args(m.port.cid))
	if err == nil {
		cmd.Stderr, cmd.Stdout = m.diagnosis, m.diagnosis
		cmd.ExtraFiles = append([]*os.File{far, m.port.far, console, tools, tap}, last...)
		err = m.run(cmd)
	}
	if err != nil {
		console.Close()
		m.consoles.Wait()
		return nil, errors.Join(err, near.Close(), m.port.remove())
	}
	m.monitor = newMonitor(near, m.event)
	go m.bury()
	return m, nil
}

func (d *Driver) command(h vmm.Host, root string, args []string) (*exec.Cmd, error) {
	dirs, err := cgroupDirs(h.Cgroup)
	if err != nil {
		return nil, err
	}
	program, err := programIn(root)
	if err != nil {
		return nil, err
	}
	_, err = os.Stat(filepath.Join(root, trimmerPath))
	trims := err == nil
	if trims {
		args = append(args, "-plugin", trimmerPath)
	}
	return jail.Command(jail.Config{Program: d.options.Jail, Root: root, UID: h.UID, GID: h.GID, Cgroups: dirs,
		KVM: d.options.Acceleration == KVM, SmallPages: trims, Lifeline: firstDescriptors.monitor}, append([]string{program}, args...), environment)
}

// programIn finds QEMU in a tree: where the distribution has it.
func programIn(root string) (string, error) {
	for _, pattern := range []string{"usr/bin", "bin", "usr/libexec", "usr/local/bin", "opt/*/bin"} {
		found, err := filepath.Glob(filepath.Join(root, pattern, "qemu*"))
		if err == nil && len(found) == 1 {
			return strings.TrimPrefix(found[0], filepath.Clean(root)), nil
		}
	}
	return "", fmt.Errorf("%w: no QEMU in %s; remove that directory, and build the template anew with berth template build", vmm.ErrTemplate, root)
}

// cgroupDirs are the directories of a cgroup, in every hierarchy that has it. The one that limits memory must.
func cgroupDirs(path string) ([]string, error) {
	if path == "" {
		return nil, nil
	}
	m, err := manager.New(&cgroups.Cgroup{Path: path, Resources: &cgroups.Resources{SkipDevices: true}})
	if err != nil {
		return nil, fmt.Errorf("find cgroup %s: %w", path, err)
	}
	var dirs []string
	for controller, dir := range m.GetPaths() {
		_, err := os.Stat(dir)
		if err == nil {
			dirs = append(dirs, dir)
		} else if controller == "" || controller == "memory" { // cgroup v2 or v1
			return nil, fmt.Errorf("find cgroup %s: %w", path, err)
		}
	}
	return dirs, nil
}

func socketPair() (near *net.UnixConn, far *os.File, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("make a connection to QEMU: %w", err)
	}
	file := os.NewFile(uintptr(fds[0]), "monitor")
	defer file.Close()
	far = os.NewFile(uintptr(fds[1]), "monitor")
	conn, err := net.FileConn(file)
	if err != nil {
		return nil, nil, errors.Join(err, far.Close())
	}
	near, ok := conn.(*net.UnixConn)
	if !ok {
		return nil, nil, errors.Join(errors.New("a socket pair is no unix connection"), conn.Close(), far.Close())
	}
	return near, far, nil
}

// run starts the program and leaves a goroutine waiting for its end, on the very thread that started it: the kernel ends the program with
// that thread, and Go ends a thread when a goroutine that is locked to it returns.
func (m *machine) run(cmd *exec.Cmd) error {
	started := make(chan error)
	m.exited = make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		m.ending = cmd.Wait() // also for all that it wrote to be read
		close(m.exited)
	}()
	if err := <-started; err != nil {
		return fmt.Errorf("start %s: %w; it is one of Berth's programs (make build)", cmd.Path, err)
	}
	m.process = cmd.Process
	return nil
}
