package jail

import (
	"errors"
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

const (
	// openFiles bounds the monitor's descriptors: disks, sockets, event descriptors.
	openFiles = 1024
	// lastCapability is beyond those of any kernel; dropping one that there is not ends the loop.
	lastCapability = 63
)

// Enter is the program: it returns only if it fails.
func Enter(args []string) error {
	// Privileges and the signal of the parent's death belong to a thread; the one that executes the monitor is the one that remains.
	runtime.LockOSThread()
	c, command, err := parse(args)
	if err != nil {
		return err
	}
	for _, step := range []struct {
		name string
		do   func(Config) error
	}{
		{"enter the cgroup", enterCgroups},
		{"make the file system", enterRoot},
		{"set limits", setLimits},
		{"give up privileges", dropPrivileges},
		{"end with the parent", endWithParent},
	} {
		if err := step.do(c); err != nil {
			return fmt.Errorf("%s: %w", step.name, err)
		}
	}
	return fmt.Errorf("execute %s: %w", command[0], unix.Exec(command[0], command, os.Environ()))
}

func enterCgroups(c Config) error {
	for _, dir := range c.Cgroups {
		fd, err := unix.Open(dir+"/cgroup.procs", unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
		_, err = unix.Write(fd, []byte("0"))
		unix.Close(fd)
		if err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
	}
	return nil
}

// enterRoot makes the tree the root of the mount namespace, and lets go of the host's file systems.
func enterRoot(c Config) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("keep mounts to ourselves: %w", err)
	}
	if err := unix.Mount(c.Root, c.Root, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("mount %s: %w", c.Root, err)
	}
	// Through /proc the monitor opens the descriptors that it has by name; it shows no more than the process itself.
	err := unix.Mount("proc", c.Root+"/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "subset=pid,hidepid=invisible")
	if errors.Is(err, unix.EINVAL) { // Linux before 5.8
		err = unix.Mount("proc", c.Root+"/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "hidepid=2")
	}
	if err != nil {
		return fmt.Errorf("mount proc: %w", err)
	}
	if c.KVM {
		if err := makeKVM(c); err != nil {
			return fmt.Errorf("make /dev/kvm: %w", err)
		}
	}
	if err := unix.Mount("", c.Root, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY|unix.MS_NOSUID|unix.MS_NODEV, ""); err != nil {
		return fmt.Errorf("make %s read-only: %w", c.Root, err)
	}
	if err := unix.Chdir(c.Root); err != nil {
		return err
	}
	// The old root is stacked below the new one, and taken from there.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("pivot: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leave the host's file systems: %w", err)
	}
	if err := unix.Chdir("/"); err != nil {
		return err
	}
	return unix.Sethostname([]byte("microvm"))
}

// makeKVM makes a device of the monitor's own, whomever the host's belongs to.
func makeKVM(c Config) error {
	var host unix.Stat_t
	if err := unix.Stat("/dev/kvm", &host); err != nil {
		return err
	}
	const flags = unix.MS_NOSUID | unix.MS_NOEXEC
	if err := unix.Mount("dev", c.Root+"/dev", "tmpfs", flags, "mode=0755,size=64k"); err != nil {
		return err
	}
	device := c.Root + "/dev/kvm"
	if err := unix.Mknod(device, unix.S_IFCHR|0o600, int(host.Rdev)); err != nil {
		return err
	}
	if err := unix.Chown(device, c.UID, c.GID); err != nil {
		return err
	}
	return unix.Mount("", c.Root+"/dev", "", unix.MS_REMOUNT|unix.MS_RDONLY|flags, "")
}

func setLimits(c Config) error {
	for resource, most := range map[int]uint64{
		unix.RLIMIT_CORE:   0, // it would hold the guest's memory
		unix.RLIMIT_NOFILE: openFiles,
	} {
		if err := unix.Setrlimit(resource, &unix.Rlimit{Cur: most, Max: most}); err != nil {
			return err
		}
	}
	if !c.SmallPages {
		return nil
	}
	if err := unix.Prctl(unix.PR_SET_THP_DISABLE, 1, 0, 0, 0); err != nil && !errors.Is(err, unix.EINVAL) { // a kernel without them
		return fmt.Errorf("refuse huge pages: %w", err)
	}
	return nil
}

func dropPrivileges(c Config) error {
	if err := unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("no_new_privs: %w", err)
	}
	for capability := uintptr(0); capability <= lastCapability; capability++ {
		err := unix.Prctl(unix.PR_CAPBSET_DROP, capability, 0, 0, 0)
		if errors.Is(err, unix.EINVAL) {
			break
		}
		if err != nil {
			return fmt.Errorf("drop capability %d: %w", capability, err)
		}
	}
	if err := unix.Setgroups(nil); err != nil {
		return fmt.Errorf("leave groups: %w", err)
	}
	if err := unix.Setresgid(c.GID, c.GID, c.GID); err != nil {
		return fmt.Errorf("become gid %d: %w", c.GID, err)
	}
	// Capabilities go with the last user id that is root's.
	if err := unix.Setresuid(c.UID, c.UID, c.UID); err != nil {
		return fmt.Errorf("become uid %d: %w", c.UID, err)
	}
	return nil
}

// endWithParent asks for the signal again, which changing the user has cancelled, and looks whether the parent has died meanwhile.
func endWithParent(c Config) error {
	if err := unix.Prctl(unix.PR_SET_PDEATHSIG, uintptr(unix.SIGKILL), 0, 0, 0); err != nil {
		return err
	}
	poll := []unix.PollFd{{Fd: int32(c.Lifeline), Events: unix.POLLIN}}
	if _, err := unix.Poll(poll, 0); err != nil {
		return err
	}
	if poll[0].Revents&(unix.POLLHUP|unix.POLLERR|unix.POLLNVAL) != 0 {
		return errors.New("the parent has ended")
	}
	return nil
}
