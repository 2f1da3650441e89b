// Package guestapi is the contract between the two ends of a microVM's agent port: the containerd shim on the host and the
// agent, process 1 of the guest. Both import it; it imports neither. Pure types and framing.
//
// # Wire
//
// The port is a byte stream (by vsock or virtio-serial). While a template is made, the host writes Ping and the
// guest answers Pong when it has nothing left to do; or Plug, a space and a Range (PlugLine), and the guest answers Pong when it has plugged that memory in, and else a line
// that says why not. After a restore, or whenever the host connects anew, the host writes Hello, the
// guest ends what an earlier session left open (its streams, not its containers), answers Hello, and from then on the port carries a yamux session
// (github.com/hashicorp/yamux, keep-alive off) whose client is the host.
//
// Each yamux stream begins with one line of JSON, a Request. What follows depends on its Op:
//
//   - OpTasks: the guest answers a Response; then the stream is a ttrpc connection on which the guest serves containerd's task service, version 3
//     (github.com/containerd/containerd/api/runtime/task/v3). One such stream is enough.
//   - OpStdio: the guest answers a Response; then raw bytes of one stream of a process, until either side closes it. What a process wrote before
//     is delivered. Closing stdin's stream closes the process's stdin.
//   - OpDial: the guest answers a Response; then raw bytes of a connection made inside the guest.
//   - OpPut: the host sends a tar archive right after the request, closes its side, and the guest answers a Response when the files are in place.
//   - OpGet: the guest answers a Response whose Size says how many bytes of the file follow.
//   - OpEvents: the guest answers a Response; then one line of JSON, an Event, whenever something happens, until the host closes.
//   - OpMeasure: the guest answers a Response with the Files as they are; to read them is left to the host, which does not emulate its own processor.
//   - OpClock: the guest answers a Response whose UnixNano is its time, before the correction.
//   - all others: the guest answers a Response and closes the stream.
//
// # Names inside the guest
//
// Disks are named by their LUN on SCSI host 0, channel 0, target 0. ToolsLUN is the guest's own image; the host chooses the others.
package guestapi

import (
	"encoding/json"
	"fmt"
)

// What is written on the port outside of a session, one line each.
const (
	Ping  = "PING\n"
	Pong  = "PONG\n"
	Hello = "BERTH 1\n"
	Plug  = "PLUG"
)

// PlugLine asks the guest of a template to plug memory in.
func PlugLine(r Range) string { return fmt.Sprintf("%s %x %x\n", Plug, r.Start, r.Bytes) }

// The agent's port: VsockPort of the machine's vsock, for the host only and until the guest is configured; or, in a machine without vsock, the virtio-serial
// port of this name.
const (
	PortName  = "agent"
	VsockPort = 1
	// LastHostPort is the highest port that the host connects from by vsock: only root can take one up to it.
	LastHostPort = 1023
)

// ToolsLUN is the disk with the guest's programs and kernel modules. It is there in the template.
const ToolsLUN = 0

// Directories of the guest that both ends know.
const (
	// PodDir is where the pod's ephemeral disk is mounted: containers' writable layers, emptyDir volumes.
	PodDir = "/run/berth/pod"
	// VolumesDir holds the emptyDir volumes that are on the ephemeral disk.
	VolumesDir = PodDir + "/volumes"
	// FilesDir holds what the host puts: configMaps, secrets, hosts files; in memory, never on a disk.
	FilesDir = "/run/berth/files"
	// MountsDir holds what the guest mounts for the pod: emptyDir volumes in memory (MemoryDir), shares of file servers, and parts of volumes
	// (PartsDir, by the container that they are for: they go with it).
	MountsDir = "/run/berth/mounts"
	MemoryDir = MountsDir + "/volumes"
	PartsDir  = MountsDir + "/parts"
)

// Op is what a stream is for.
type Op string

// The operations.
const (
	OpTasks     Op = "tasks"
	OpStdio     Op = "stdio"
	OpDial      Op = "dial"
	OpPut       Op = "put"
	OpGet       Op = "get"
	OpEvents    Op = "events"
	OpConfigure Op = "configure"
	OpMemory    Op = "memory"
	OpClock     Op = "clock"
	OpMount     Op = "mount"
	OpRelease   Op = "release"
	OpUsage     Op = "usage"
	OpMeasure   Op = "measure"
)

// Request is the first line of a stream. The field of its Op is set, the others are not.
type Request struct {
	Op        Op          `json:"op"`
	Stdio     *Stdio      `json:"stdio,omitempty"`
	Dial      *Dial       `json:"dial,omitempty"`
	Put       *Put        `json:"put,omitempty"`
	Get       *Get        `json:"get,omitempty"`
	Configure *Configure  `json:"configure,omitempty"`
	Memory    []Range     `json:"memory,omitempty"`
	Clock     *Correction `json:"clock,omitempty"`
	Mount     *Mount      `json:"mount,omitempty"`
	Release   *Release    `json:"release,omitempty"`
	Measure   *Measure    `json:"measure,omitempty"`
}

// Response answers a Request. Error is empty when all went well; else it says what failed, for people.
type Response struct {
	Error string `json:"error,omitempty"`
	// Size of what follows (OpGet), in bytes.
	Size int64 `json:"size,omitempty"`
	// UnixNano is the guest's time (OpClock), in nanoseconds since 1970.
	UnixNano int64 `json:"unixNano,omitempty"`
	// Usage is what the pod uses of its disk (OpUsage).
	Usage *Usage `json:"usage,omitempty"`
	// Files are the contents of what OpMeasure names, in that order.
	Files []string `json:"files,omitempty"`
}

// Configure makes a restored guest this pod's machine. It is the first request after a restore, sent once.
type Configure struct {
	Clock Clock `json:"clock"`
	// Entropy is at least 64 random bytes of the host, credited to the guest's generator before anything else is done.
	Entropy []byte `json:"entropy"`
	// Hostname of the machine (a container's own is in its spec); MachineID is 32 hexadecimal digits.
	Hostname  string `json:"hostname"`
	MachineID string `json:"machineID"`
	// Links of the pod; the first is the virtio-net device.
	Links []Link `json:"links,omitempty"`
	// Memory to plug in; what the template has of it is left out.
	Memory []Range `json:"memory,omitempty"`
	// EphemeralLUN is the disk (ext4) that is mounted at PodDir.
	EphemeralLUN int `json:"ephemeralLUN"`
	// Sysctls by dotted name, such as net.ipv4.ip_unprivileged_port_start.
	Sysctls map[string]string `json:"sysctls,omitempty"`
}

// Clock sets the guest's time, in nanoseconds since 1970.
type Clock struct {
	UnixNano int64 `json:"unixNano"`
}

// Correction of the guest's time: what is to be added, in nanoseconds; 0 only asks for the time. Less than half a second is added little by little,
// so that time never goes back, and teaches the guest how fast its clock is; more is added at once.
type Correction struct {
	Add int64 `json:"add,omitempty"`
}

// Measure names files of a running container's control group (cgroup v2), such as memory.current. One that the guest's kernel does not have is empty.
type Measure struct {
	ID    string   `json:"id"`
	Files []string `json:"files"`
}

// Usage is what a pod uses of its ephemeral disk.
type Usage struct {
	Disk Space `json:"disk"`
	// Containers' writable layers, by the container's id, and emptyDir volumes, by name: those in memory, too, which alone have a capacity of their own.
	Containers map[string]Space `json:"containers,omitempty"`
	Volumes    map[string]Space `json:"volumes,omitempty"`
}

// Space in bytes and inodes; what is zero is not known.
type Space struct {
	Used       uint64 `json:"used,omitempty"`
	Capacity   uint64 `json:"capacity,omitempty"`
	Available  uint64 `json:"available,omitempty"`
	InodesUsed uint64 `json:"inodesUsed,omitempty"`
	Inodes     uint64 `json:"inodes,omitempty"`
	InodesFree uint64 `json:"inodesFree,omitempty"`
}

// BlockBytes is the unit in which memory is plugged in.
const BlockBytes = 128 << 20

// Range is memory to plug in, by its address in the guest; both are whole blocks.
type Range struct {
	Start uint64 `json:"start"`
	Bytes uint64 `json:"bytes"`
}

// Link is a network link as it is to be in the guest, lo aside.
type Link struct {
	Name       string      `json:"name"`
	MAC        string      `json:"mac"`
	MTU        int         `json:"mtu"`
	Addresses  []string    `json:"addresses"` // with prefix length
	Routes     []Route     `json:"routes,omitempty"`
	Neighbours []Neighbour `json:"neighbours,omitempty"`
}

// Route out of a Link. An empty Gateway means that the destination is on the link. Destination has a prefix length.
type Route struct {
	Destination string `json:"destination"`
	Gateway     string `json:"gateway,omitempty"`
	Source      string `json:"source,omitempty"`
}

// Neighbour is a hardware address that nobody needs to ask for.
type Neighbour struct {
	IP  string `json:"ip"`
	MAC string `json:"mac"`
}

// Container is what a task's Create carries in its options (an Any of type ContainerType whose value is the JSON). Its other
// fields that matter are ID, Terminal, and whether Stdin, Stdout and Stderr are empty: a stream that is not empty is kept for OpStdio.
type Container struct {
	// Spec is the OCI runtime configuration (config.json). The host has rewritten what names the host: mounts, cgroup path,
	// namespaces with a path, root. The guest sets root.path.
	Spec   json.RawMessage `json:"spec"`
	Rootfs Rootfs          `json:"rootfs"`
}

// ImageVolume is the source of a bind mount of what the image itself has at its destination: of a volume that the image declares.
const ImageVolume = "berth.run/image"

// ContainerType is the type URL of a Container in an Any.
const ContainerType = "berth.run/guest.Container"

// Rootfs is a container's file system: read-only disks (erofs), the uppermost first, below a writable layer on the ephemeral disk.
// The writable layer is kept until the task is deleted.
type Rootfs struct {
	LUNs []int `json:"luns"`
}

// Stdio names a stream of a process; Exec is empty for the container's first process.
type Stdio struct {
	ID   string `json:"id"`
	Exec string `json:"exec,omitempty"`
	// FD is 0, 1 or 2. A terminal has 0 and 1.
	FD int `json:"fd"`
}

// Dial connects inside the guest.
type Dial struct {
	// Network and Address as for net.Dial: tcp and 127.0.0.1:80.
	Network string `json:"network"`
	Address string `json:"address"`
}

// Put writes files. Target is a directory below FilesDir, or a file if the archive holds the one member ".".
type Put struct {
	Target string `json:"target"`
	// Atomic: the archive is the whole of a directory as the kubelet's AtomicWriter keeps it (a symbolic link ..data to a dated directory).
	// New files come first, then ..data changes in one step, then what is not in the archive goes.
	Atomic bool `json:"atomic,omitempty"`
}

// Get reads a file below FilesDir or MountsDir.
type Get struct {
	Path string `json:"path"`
	// Limit in bytes; 0 is none. A longer file's end is left out.
	Limit int64 `json:"limit,omitempty"`
}

// Mount makes a file system or directory at Target, with its owner and mode. Doing so twice is no error.
type Mount struct {
	// Target is a directory below MountsDir or VolumesDir.
	Target string `json:"target"`
	// Type is a file system such as tmpfs or nfs4 with Source and Options as for mount(8); empty for a plain directory; erofs or ext4 for a disk
	// (LUN); bind for Part of the volume at Source, a directory below MountsDir or VolumesDir.
	Type   string `json:"type,omitempty"`
	Source string `json:"source,omitempty"`
	// Part is a file or directory of a volume, by its path in it. Links do not lead out of the volume. What is not there is made, as directories.
	Part    string   `json:"part,omitempty"`
	LUN     int      `json:"lun,omitempty"`
	Options []string `json:"options,omitempty"`
	// Mode (permission bits, set-group-ID), UID and GID of Target's root. They are left alone if Mode is 0.
	Mode uint32 `json:"mode,omitempty"`
	UID  int    `json:"uid,omitempty"`
	GID  int    `json:"gid,omitempty"`
}

// Release tells the guest to let go of a disk, before the host takes it away.
type Release struct {
	LUN int `json:"lun"`
}

// Event is what happens in the guest by itself. Exits are not among them: wait for them with the task service.
type Event struct {
	// OOM is the id of a container in which the kernel ended a process for want of memory; "" with GuestOOM: the whole machine had none left.
	OOM      string `json:"oom,omitempty"`
	GuestOOM bool   `json:"guestOOM,omitempty"`
}
