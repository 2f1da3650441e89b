// Package vmm is the port to a virtual machine monitor: what Berth needs of QEMU, Cloud Hypervisor or Firecracker, and no more.
// The template store boots and saves machines through it, the shim restores and runs them. It imports no adapter; package
// vmmtest has a fake, and the suite that every adapter passes.
//
// # Vocabulary
//
// A machine is one virtual machine and the one process of the monitor that runs it. A template is what a machine was saved as:
// its memory (RAM) and the state of its devices. Any number of machines are restored from one template; each sees the template's
// memory as its own (copy on write) and the devices of the template, with its own files behind them.
//
// Base memory is what every machine has, and all whose contents a template holds. A machine's further memory is there from the start as
// address space that costs nothing; the guest plugs as much of it in as the pod's size says (Driver.Blocks). A template's guest may have plugged some
// in already, as long as it has not touched it (Machine.Snapshot).
//
// Disks are SCSI disks on host 0, channel 0, target 0 of the guest, named by their LUN. LUN 0, the guest's own programs, is there
// in the template; all others are attached while the machine runs.
//
// The agent's port is a stream between the host and the guest (guestapi), over whatever the monitor and the host have for it: a vsock, a serial port, a
// unix socket. A machine has one network device, whose MAC address is PlaceholderMAC until the guest sets its own.
//
// # Life cycle
//
//	Boot ─► running ─► Pause ─► Snapshot ─► Kill                (a template)
//	Restore ─► running ◄─► paused (Pause, Resume) ─► ended      (a pod's machine)
//
// A machine ends by Kill, by what its guest does (it powers off, resets, panics), by its monitor's failure, or with the process
// that started it: a machine never outlives its starter. It does not come back. Wait tells how it ended.
//
// # Ownership
//
// Files handed to a driver stay the caller's: the driver takes duplicates, and the caller may close its own as soon as the call has
// returned. What a driver makes (sockets, console logs, processes, its places in a cgroup) it removes when the machine ends, except
// console logs. Cgroups, network devices and directories are the caller's.
package vmm

import (
	"context"
	"net"
	"os"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

const (
	// BaseMemory is what every machine begins with, in bytes.
	BaseMemory = 192 << 20
	// BlockMemory is the unit in which further memory is plugged in, in bytes.
	BlockMemory = guestapi.BlockBytes
	// PlaceholderMAC is the network device's address in every template.
	PlaceholderMAC = "02:be:00:00:00:01"
)

// Driver runs machines of one monitor with one kind of processor (hardware virtualization, or emulation). Its methods may be called
// from many goroutines.
type Driver interface {
	// Fingerprint identifies the monitor: a template made by one may be restored by another of the same fingerprint only. It
	// fails with ErrUnavailable if the monitor is missing or unfit, and says what to do about it. It starts no machine.
	Fingerprint(ctx context.Context) (Fingerprint, error)

	// Blocks are the addresses at which a guest plugs memory in until it has at least the given number of bytes, BaseMemory
	// included; in order, and the blocks of less memory are the first ones of more. It fails if the shape holds less.
	Blocks(shape Shape, memory int64) ([]guestapi.Range, error)

	// Overhead is what the monitor of a machine of this shape needs for itself, beside the guest's memory, in bytes, at most.
	Overhead(shape Shape) int64

	// Boot starts a machine from a kernel, to make a template. It returns as soon as the machine runs; that the guest is up is
	// seen on the agent's port. If ctx ends before, or anything fails, nothing is left of the machine.
	Boot(ctx context.Context, config Boot) (Machine, error)

	// Restore starts a machine from a template, and returns when it runs. It fails with ErrTemplate if the template does not fit the
	// driver. If ctx ends before, or anything fails, nothing is left of the machine. A machine lives on when ctx ends later.
	Restore(ctx context.Context, config Restore) (Machine, error)
}

// Machine is one virtual machine. Its methods may be called from many goroutines. Those that ask something of the machine fail
// with ErrGone once it has ended.
type Machine interface {
	// PID is the process id of the monitor, as the caller sees it. It stays reserved until the machine has ended.
	PID() int

	// Dial connects to the agent's port, at which one connection at a time is served. A guest that does not listen yet is waited for as long as ctx allows, or
	// finds later what was written. A guest that was restored just now may drop the first connection.
	Dial(ctx context.Context) (net.Conn, error)

	// Attach gives the guest a disk, and returns its LUN: the lowest that is free, at least 1.
	Attach(ctx context.Context, disk Disk) (lun int, err error)

	// Detach takes a disk away and closes it. The guest must have let go of it (unmounted); it is taken away in any case. It
	// fails with ErrNotAttached if there is no such disk; LUN 0 stays.
	Detach(ctx context.Context, lun int) error

	// Pause stops the processors and finishes disk writes. A paused machine pauses again without error.
	Pause(ctx context.Context) error

	// Resume lets a paused machine run on. A running one resumes without error.
	Resume(ctx context.Context) error

	// Snapshot saves a paused, booted machine: its memory is then in the file Boot.RAM, and the state of its devices is written
	// to state. The guest has so many bytes of memory; it fails with ErrTouched if the guest has used what of it is beyond BaseMemory, and would be lost.
	// The machine stays paused and is of no further use but to be killed.
	Snapshot(ctx context.Context, memory int64, state *os.File) error

	// Kill ends the machine at once, and returns when nothing is left of it. A machine that has ended is killed without error.
	Kill() error

	// Wait returns when the machine has ended and nothing is left of it; at once if that is so already. Any number may wait.
	// It fails only if ctx ends first.
	Wait(ctx context.Context) (Exit, error)
}

// Fingerprint identifies a monitor.
type Fingerprint struct {
	// Name and Version of the program, for people: qemu, 7.2.22.
	Name    string `json:"name"`
	Version string `json:"version"`
	// Acceleration runs the guest's processors: kvm or tcg.
	Acceleration string `json:"acceleration"`
	// Transport carries what host and agent say: vsock or virtio-serial.
	Transport string `json:"transport"`
	// Digest (sha256, hexadecimal) of the program and of all that decides what its machines are like.
	Digest string `json:"digest"`
}

// Emulated says that the guest's processors are programs, to which code that runs for the first time costs the most.
func (f Fingerprint) Emulated() bool { return f.Acceleration == "tcg" }

// Shape is what machines of one template have in common.
type Shape struct {
	// VCPUs that the guest sees.
	VCPUs int `json:"vcpus"`
	// MaxMemory is the most memory a guest can have, in bytes: BaseMemory and whole blocks.
	MaxMemory int64 `json:"maxMemory"`
}

// Disk is a file with an image of a file system, open for reading, and for writing unless it is read-only. Whatever it is open for, a monitor gets a
// read-only disk's file for reading only.
type Disk struct {
	File     *os.File
	ReadOnly bool
}

// Confinement is what holds the process of a monitor.
type Confinement struct {
	// UID and GID that the monitor runs as. They must not be 0, and no other machine or user should have them.
	UID, GID int
	// Cgroup is the monitor's, below the root of each hierarchy, such as /berth/<pod uid>. It must exist. Empty leaves
	// the monitor in the caller's.
	Cgroup string
}

// Host is what a machine has on the host's side.
type Host struct {
	// Name of the machine in messages.
	Name string
	// AgentSocket is the path of the agent's port where that is a unix socket. The driver makes the socket (for root only) and removes it when the machine
	// ends. Connect by Machine.Dial.
	AgentSocket string
	// Console is the file that gets what the guest's kernel prints, as far as it is the beginning; empty: nowhere.
	Console string
	// Tools is the image of LUN 0, read-only.
	Tools *os.File
	// Stalled is told when a monitor stops the machine because the host has no room for what it writes to a disk, and when it goes on, which it does by
	// itself; not of a machine that ends. It must not call the machine. nil: nobody wants to know. A monitor whose guests get errors instead never calls it.
	Stalled func(stalled bool)
	Confinement
}

// Boot describes a machine to be made into a template.
type Boot struct {
	Host
	Shape  Shape
	Kernel string // path of an uncompressed kernel
	Initrd string // path of an initramfs
	// RAM is an empty memfd, which becomes BaseMemory long and has the machine's memory after Snapshot. What the guest never
	// touched stays a hole.
	RAM *os.File
}

// Template is a saved machine. Both files are read only, from their beginning, whatever their offset.
type Template struct {
	// Monitor made it, and is the one that restores it.
	Monitor Fingerprint
	Shape   Shape
	// RAM should be sealed against writing, since machines cannot be trusted not to try.
	RAM   *os.File
	State *os.File
}

// Restore describes a machine made from a template.
type Restore struct {
	Host
	Template Template
	// Tap is an open tap device (IFF_TAP, IFF_NO_PI, IFF_VNET_HDR); nil: the network device has no link.
	Tap *os.File
}

// Reason says why a machine ended.
type Reason string

// The reasons.
const (
	ReasonKilled   Reason = "Killed"   // by Kill
	ReasonPowerOff Reason = "PowerOff" // the guest powered off
	ReasonReset    Reason = "Reset"    // the guest reset itself, which is also how its kernel ends after a panic
	ReasonFailed   Reason = "Failed"   // the monitor ended by itself, or somebody else ended it
)

// Exit tells how a machine ended.
type Exit struct {
	Reason Reason
	// Detail, for people: how the monitor's process ended, what it said, and the last that the guest's kernel printed.
	Detail string
}
