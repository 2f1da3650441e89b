// Package jail confines a process before it becomes a virtual machine monitor. A driver starts the program berth-jail in new namespaces
// (Command), and that program, still root, enters the cgroup, makes a small read-only tree its whole file system, gives up every
// privilege for good and executes the monitor (Enter). Whatever the monitor works with comes as open files.
//
// It imports little on purpose: the program starts in a millisecond or two, before every machine.
package jail

import (
	"errors"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// FirstFile is the descriptor of the first of a command's ExtraFiles.
const FirstFile = 3

// Config of a jail.
type Config struct {
	// Program is the path of berth-jail.
	Program string
	// Root is the directory that becomes the file system. It has the directories proc and dev, and the monitor. It is the same for all
	// machines: nobody can write there.
	Root string
	// UID and GID of the monitor. It is in no other group.
	UID, GID int
	// Cgroups are the directories, one in each hierarchy, that the process enters.
	Cgroups []string
	// KVM lets the monitor open /dev/kvm.
	KVM bool
	// SmallPages refuses the monitor pages of 2 MiB, which QEMU asks for where it needs some KB, until it allows them itself.
	SmallPages bool
	// Lifeline is the descriptor of a socket or pipe whose other end the caller holds: the program ends if it is closed.
	Lifeline int
}

// Command runs a program of the jail's tree with these arguments and this environment. The caller adds ExtraFiles and starts it
// from a thread that lives as long as the process may: the kernel ends the process with that thread.
func Command(c Config, program []string, env []string) (*exec.Cmd, error) {
	if c.UID <= 0 || c.GID <= 0 {
		return nil, errors.New("a jail needs a uid and gid other than root's")
	}
	cmd := exec.Command(c.Program, append(c.arguments(), program...)...)
	cmd.Env = env
	if cmd.Env == nil {
		cmd.Env = []string{}
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		Pdeathsig:  unix.SIGKILL,
		Setsid:     true,
	}
	return cmd, nil
}

// fixedArguments come before the monitor's own; see parse.
const fixedArguments = 7

func (c Config) arguments() []string {
	return []string{c.Root, strconv.Itoa(c.UID), strconv.Itoa(c.GID), strings.Join(c.Cgroups, ":"), strconv.FormatBool(c.KVM), strconv.FormatBool(c.SmallPages), strconv.Itoa(c.Lifeline)}
}

// parse is the inverse of arguments; the rest is the monitor's command line.
func parse(args []string) (c Config, command []string, err error) {
	if len(args) <= fixedArguments {
		return c, nil, errors.New("this program is started by Berth; it has no use for people")
	}
	c.Root = args[0]
	number := func(text string) int {
		n, e := strconv.Atoi(text)
		err = errors.Join(err, e)
		return n
	}
	c.UID, c.GID = number(args[1]), number(args[2])
	if args[3] != "" {
		c.Cgroups = strings.Split(args[3], ":")
	}
	c.KVM, c.SmallPages, c.Lifeline = args[4] == "true", args[5] == "true", number(args[6])
	return c, args[fixedArguments:], err
}
