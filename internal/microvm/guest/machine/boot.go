// Package machine makes and changes the guest as a machine: its file systems, modules, disks, network, memory, clock and entropy. Every
// function acts on the kernel it runs on. For internal/microvm/guest only, as process 1 of a guest.
package machine

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

const (
	// modulesDir of the initramfs holds the modules to load; its file "order" names them, one a line.
	modulesDir = "/modules"
	cgroupDir  = "/sys/fs/cgroup"
	// PodCgroup is the parent of all containers' control groups.
	PodCgroup = "/pod"
	etcDir    = "/run/etc"
)

// controllers that containers may use.
const controllers = "+cpuset +cpu +io +memory +hugetlb +pids +rdma +misc"

// Boot turns the initramfs into a running machine whose root file system is the tools image. It is called once, first of all.
func Boot(ctx context.Context, disks *Disks) error {
	for _, step := range []func() error{mountKernel, loadModules} {
		if err := step(); err != nil {
			return err
		}
	}
	slog.Info("modules are loaded")
	if err := disks.Watch(); err != nil {
		return err
	}
	tools, err := disks.device(ctx, guestapi.ToolsLUN)
	if err != nil {
		return fmt.Errorf("find the tools image: %w", err)
	}
	if err := switchRoot(tools); err != nil {
		return err
	}
	for _, step := range []func() error{mountRun, mountCgroup, prepareKernel, setFixedLimits} {
		if err := step(); err != nil {
			return err
		}
	}
	return nil
}

type mount struct {
	source, target, fstype string
	flags                  uintptr
	data                   string
}

func (m mount) do() error {
	if err := os.MkdirAll(m.target, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(m.source, m.target, m.fstype, m.flags, m.data); err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.fstype, m.target, err)
	}
	return nil
}

func mountAll(mounts ...mount) error {
	for _, m := range mounts {
		if err := m.do(); err != nil {
			return err
		}
	}
	return nil
}

func mountKernel() error {
	const quiet = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	return mountAll(
		mount{"proc", "/proc", "proc", quiet, ""},
		mount{"sysfs", "/sys", "sysfs", quiet, ""},
		mount{"devtmpfs", "/dev", "devtmpfs", unix.MS_NOSUID, "mode=755"},
	)
}

// loadModules in the order of the list. A module for a processor's feature that this one has not is left out.
func loadModules() error {
	order, err := os.Open(filepath.Join(modulesDir, "order"))
	if err != nil {
		return fmt.Errorf("read the list of modules: %w", err)
	}
	defer func() { _ = order.Close() }()
	lines := bufio.NewScanner(order)
	for lines.Scan() {
		if err := loadModule(filepath.Join(modulesDir, lines.Text())); err != nil {
			return err
		}
	}
	return lines.Err()
}

func loadModule(path string) error {
	file, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("load module: %w", err)
	}
	defer func() { _ = file.Close() }()
	err = unix.FinitModule(int(file.Fd()), "", 0)
	if err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.ENODEV) {
		return fmt.Errorf("load module %s: %w", filepath.Base(path), err)
	}
	return nil
}

// switchRoot makes the tools image the root file system, also of the kernel's own helpers (modprobe), and frees what the initramfs still
// holds. Containers cannot pivot away from an initramfs. The agent's own file stays: it is running.
func switchRoot(tools string) error {
	const root = "/tools"
	if err := (mount{tools, root, "erofs", unix.MS_RDONLY, ""}).do(); err != nil {
		return err
	}
	for _, dir := range []string{"/proc", "/sys", "/dev"} {
		if err := unix.Mount(dir, root+dir, "", unix.MS_MOVE, ""); err != nil {
			return fmt.Errorf("move %s: %w", dir, err)
		}
	}
	if err := os.RemoveAll(modulesDir); err != nil {
		return err
	}
	if err := os.Chdir(root); err != nil {
		return err
	}
	if err := unix.Mount(root, "/", "", unix.MS_MOVE, ""); err != nil {
		return fmt.Errorf("move the root file system: %w", err)
	}
	if err := unix.Chroot("."); err != nil {
		return fmt.Errorf("change the root directory: %w", err)
	}
	if err := os.Chdir("/"); err != nil {
		return err
	}
	if err := unix.Mount("", "/", "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("share mounts below /: %w", err)
	}
	return nil
}

func mountRun() error {
	const quiet = unix.MS_NOSUID | unix.MS_NODEV
	err := mountAll(
		mount{"tmpfs", "/run", "tmpfs", quiet, "mode=755,size=100%"},
		mount{"tmpfs", "/tmp", "tmpfs", quiet, "mode=1777"},
		mount{"devpts", "/dev/pts", "devpts", unix.MS_NOSUID | unix.MS_NOEXEC, "mode=620,gid=5,ptmxmode=666"},
		mount{"tmpfs", "/dev/shm", "tmpfs", quiet, "mode=1777"},
		mount{"mqueue", "/dev/mqueue", "mqueue", quiet | unix.MS_NOEXEC, ""},
	)
	if err != nil {
		return err
	}
	for _, dir := range []string{etcDir, guestapi.PodDir, guestapi.FilesDir, guestapi.MountsDir, imagesDir} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	for link, target := range map[string]string{"/dev/fd": "/proc/self/fd", "/dev/stdin": "fd/0", "/dev/stdout": "fd/1", "/dev/stderr": "fd/2"} {
		if err := os.Symlink(target, link); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return os.WriteFile(etcDir+"/hosts", []byte("127.0.0.1 localhost\n::1 localhost\n"), 0o644)
}

// mountCgroup mounts control groups with all controllers for containers. Delegated (nsdelegate): a container cannot leave its own.
func mountCgroup() error {
	const flags = unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	if err := (mount{"cgroup2", cgroupDir, "cgroup2", flags, "nsdelegate,memory_recursiveprot"}).do(); err != nil {
		return err
	}
	if err := os.WriteFile(cgroupDir+"/cgroup.subtree_control", []byte(controllers), 0); err != nil {
		return fmt.Errorf("enable controllers: %w", err)
	}
	if err := os.Mkdir(cgroupDir+PodCgroup, 0o755); err != nil {
		return err
	}
	if err := os.WriteFile(cgroupDir+PodCgroup+"/cgroup.subtree_control", []byte(controllers), 0); err != nil {
		return fmt.Errorf("enable controllers for containers: %w", err)
	}
	return nil
}

// prepareKernel sets what is the same in every guest.
func prepareKernel() error {
	for path, value := range map[string]string{
		// Plugged memory is used at once.
		"/sys/devices/system/memory/auto_online_blocks": "online",
		// A huge page is cleared, and taken from the host, as a whole: only who asks for one gets it.
		"/sys/kernel/mm/transparent_hugepage/enabled": "madvise",
		// A pod's machine forwards only if the pod says so; one address answers on one link.
		"/proc/sys/net/ipv4/ip_forward": "0",
		// Nothing is done ahead of need in an idle machine: each waking costs the host more than the guest.
		"/proc/sys/vm/compaction_proactiveness": "0",
		"/proc/sys/vm/stat_interval":            "30",
		"/proc/sys/kernel/watchdog":             "0",
		// As a kubelet sets them on a node of its own.
		"/proc/sys/vm/overcommit_memory":     "1",
		"/proc/sys/kernel/panic_on_oops":     "1",
		"/proc/sys/kernel/keys/root_maxkeys": "1000000",
		// Nobody reads the console: the kernel's warnings are enough.
		"/proc/sys/kernel/printk": "4 4 1 7",
	} {
		if err := os.WriteFile(path, []byte(value), 0); err != nil {
			return fmt.Errorf("set %s: %w", path, err)
		}
	}
	return linkUp("lo")
}

// Emulated tells whether the processor is emulated: a kernel on one that is not has KVM's clock.
func Emulated() bool {
	clocks, err := os.ReadFile("/sys/devices/system/clocksource/clocksource0/available_clocksource")
	return err == nil && !strings.Contains(string(clocks), "kvm-clock")
}
