package qemu

import (
	"encoding/json"
	"fmt"
	"strconv"

	"github.com/berth-run/berth/internal/microvm/guestapi"
	"github.com/berth-run/berth/internal/microvm/jail"
	"github.com/berth-run/berth/internal/microvm/vmm"
)

const (
	// blocksStart is the address of the first block; a block begins at a multiple of its size.
	blocksStart = 2 * vmm.BlockMemory
	// holeStart and holeEnd: the microvm machine has no memory between them, but devices.
	holeStart, holeEnd = 0xc0000000, 0x1_0000_0000
	// translationCache, with many vCPUs translationCacheEach of them and once more, bounds the memory in which QEMU keeps the code it makes of the guest's, in MiB. It
	// fills up as the guest runs ever more different code, and is emptied when full. To configure a clone and start its first container fills some 40:
	// with 16 it takes twice the processor time that it takes with 32, and later containers four times.
	translationCache, translationCacheEach = 32, 8
	// processMemory is what QEMU needs besides, in bytes: 22 MB were seen.
	processMemory = 32 << 20
	// agentPorts is the agent's port and the console port that is always there.
	agentPorts = 2
	// anyCID stands for the address of a vsock.
	anyCID = 3
)

// How emulated vCPUs run. While a guest boots, several take turns: a kernel that boots changes its own code, and in QEMU before 8.1 a vCPU that translates code
// while another changes it may go on with the old one (mended there by "accel/tcg: Always lock pages before translation"). Now and then a boot hung. Besides, it is
// faster: vCPUs that wait for each other do not run in vain. A single one has nobody to race with, and QEMU tells the trimmer of one that takes turns nothing.
//
// A guest that is restored needs its vCPUs at once. It changes its code in few places, when it first does some things: starting a pod's first container changes
// four. That it hangs then is possible, and was not seen in 120 starts.
const (
	inTurns    = "single"
	concurrent = "multi"
)

// Kernel parameters. Emulation is too uneven for the kernel to calibrate its timers by each other: now and then it would fail.
const (
	kernelParameters    = "console=ttyS0 quiet panic=-1 reboot=t"
	emulationParameters = "tsc=reliable no_timer_check"
	// timerFrequency (HZ) of Debian's kernels; the guest's delay loops are only as good as this guess, and nothing depends on them.
	timerFrequency = 250
)

// totalMemory is the machine's, in bytes. The address space between BaseMemory and the first block is there, but not used.
func totalMemory(s vmm.Shape) int64 { return s.MaxMemory - vmm.BaseMemory + blocksStart }

func checkShape(s vmm.Shape) error {
	if s.VCPUs < 1 || s.VCPUs > 255 {
		return fmt.Errorf("a machine has 1 to 255 vCPUs, not %d", s.VCPUs)
	}
	if s.MaxMemory < vmm.BaseMemory+vmm.BlockMemory || (s.MaxMemory-vmm.BaseMemory)%vmm.BlockMemory != 0 {
		return fmt.Errorf("a machine's most memory is %d bytes and one or more blocks of %d, not %d", vmm.BaseMemory, vmm.BlockMemory, s.MaxMemory)
	}
	return nil
}

// blocks of the shape that bring its memory up to at least the given bytes.
func blocks(s vmm.Shape, memory int64) ([]guestapi.Range, error) {
	if err := checkShape(s); err != nil {
		return nil, err
	}
	if memory > s.MaxMemory {
		return nil, fmt.Errorf("%d bytes of memory are more than the %d of a machine with %d vCPUs", memory, s.MaxMemory, s.VCPUs)
	}
	low := max(0, memory-vmm.BaseMemory+vmm.BlockMemory-1) / vmm.BlockMemory * vmm.BlockMemory
	high := max(0, low-(holeStart-blocksStart))
	low -= high
	var ranges []guestapi.Range
	if low > 0 {
		ranges = append(ranges, guestapi.Range{Start: blocksStart, Bytes: uint64(low)})
	}
	if high > 0 {
		ranges = append(ranges, guestapi.Range{Start: holeEnd, Bytes: uint64(high)})
	}
	return ranges, nil
}

// fileOffset is where the memory at an address beyond vmm.BaseMemory is in its file, which leaves out the hole.
func fileOffset(address uint64) int64 {
	if address >= holeEnd {
		address -= holeEnd - holeStart
	}
	return int64(address) - vmm.BaseMemory
}

// descriptors of the files that QEMU is started with.
type descriptors struct {
	monitor, agent, console, tools, tap, ram int
	kernel, initrd                           int // to boot
	state                                    int // to restore
}

// firstDescriptors are handed over by start in this order.
var firstDescriptors = descriptors{monitor: jail.FirstFile, agent: jail.FirstFile + 1, console: jail.FirstFile + 2, tools: jail.FirstFile + 3,
	tap: jail.FirstFile + 4, ram: jail.FirstFile + 5, kernel: jail.FirstFile + 6, initrd: jail.FirstFile + 7, state: jail.FirstFile + 6}

// boot arguments: the kernel's command line aside, they decide together with restore's what a template fits.
func bootArguments(accel string, s vmm.Shape, d descriptors, cid uint32, tscKHz int) []string {
	parameters := fmt.Sprintf("%s mem=%dM", kernelParameters, vmm.BaseMemory>>20)
	if accel == TCG {
		parameters += fmt.Sprintf(" %s tsc_early_khz=%d lpj=%d", emulationParameters, tscKHz, tscKHz*1000/timerFrequency)
	}
	threads := concurrent
	if s.VCPUs > 1 {
		threads = inTurns
	}
	return append(machineArguments(accel, s, d, cid, "on", threads),
		"-kernel", byDescriptor(d.kernel), "-initrd", byDescriptor(d.initrd), "-append", parameters)
}

func restoreArguments(accel string, s vmm.Shape, d descriptors, cid uint32) []string {
	return append(machineArguments(accel, s, d, cid, "off", concurrent), "-incoming", "defer")
}

// machineArguments are the same for booting and restoring, except that the template's memory is written through in one case, copied on write in
// the other, and in how emulated vCPUs run. The vsock's address may differ, too: a guest that is restored is told.
func machineArguments(accel string, s vmm.Shape, d descriptors, cid uint32, share, threads string) []string {
	more := totalMemory(s) - vmm.BaseMemory
	args := []string{
		"-no-user-config", "-nodefaults", "-no-reboot", "-display", "none",
		"-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
		// The old timer would tick 36 times a second for nobody: the guest knows its processor's rate and uses the local APIC's timer.
		"-machine", "microvm,acpi=on,rtc=off,pit=off",
		"-smp", strconv.Itoa(s.VCPUs),
		"-m", fmt.Sprintf("%dM", totalMemory(s)>>20),
		"-object", fmt.Sprintf("memory-backend-file,id=base,size=%d,mem-path=%s,share=%s", vmm.BaseMemory, byDescriptor(d.ram), share),
		"-object", fmt.Sprintf("memory-backend-memfd,id=more,size=%d,share=on", more),
		"-numa", fmt.Sprintf("node,memdev=base,cpus=0-%d", s.VCPUs-1), "-numa", "node,memdev=more",

		"-chardev", fmt.Sprintf("socket,id=monitor,fd=%d", d.monitor), "-mon", "chardev=monitor,mode=control",
		"-add-fd", fmt.Sprintf("fd=%d,set=%d", d.console, consoleSet),
		"-chardev", fmt.Sprintf("file,id=console,append=on,path=%s", bySet(consoleSet)), "-serial", "chardev:console",

		"-add-fd", fmt.Sprintf("fd=%d,set=%d", d.tools, toolsSet), "-blockdev", toJSON(blockNode(toolsSet, guestapi.ToolsLUN, true)),
		"-device", "virtio-scsi-device,id=scsi0",
		"-device", toJSON(diskDevice(guestapi.ToolsLUN)),

		"-netdev", fmt.Sprintf("tap,id=net,fd=%d", d.tap),
		"-device", "virtio-net-device,netdev=net,mac=" + vmm.PlaceholderMAC,
		"-object", "rng-builtin,id=random", "-device", "virtio-rng-device,rng=random",
	}
	if cid != 0 {
		args = append(args, "-device", fmt.Sprintf("vhost-vsock-device,guest-cid=%d,vhostfd=%d", cid, d.agent))
	} else {
		args = append(args, "-chardev", fmt.Sprintf("socket,id=agent,fd=%d,server=on,wait=off", d.agent),
			"-device", fmt.Sprintf("virtio-serial-device,max_ports=%d", agentPorts),
			"-device", "virtserialport,chardev=agent,name="+guestapi.PortName)
	}
	if accel == KVM {
		return append(args, "-accel", "kvm", "-cpu", "host")
	}
	return append(args, "-accel", fmt.Sprintf("tcg,thread=%s,tb-size=%d", threads, codeCache(s)), "-cpu", "max")
}

// codeCache is the most that QEMU keeps of the code that it makes of the guest's, in MiB.
func codeCache(s vmm.Shape) int { return max(translationCache, (s.VCPUs+1)*translationCacheEach) }

// Descriptor sets are QEMU's names for files that it is given. Those of attached disks get their numbers from QEMU.
const (
	consoleSet = 1
	toolsSet   = 2
)

func byDescriptor(fd int) string { return fmt.Sprintf("/proc/self/fd/%d", fd) }
func bySet(set int) string       { return fmt.Sprintf("/dev/fdset/%d", set) }

func nodeName(lun int) string   { return fmt.Sprintf("disk%d", lun) }
func deviceName(lun int) string { return fmt.Sprintf("lun%d", lun) }

// blockNode describes a disk's file to QEMU. A disk that is written gives blocks back to its file system when the guest discards them.
func blockNode(set, lun int, readOnly bool) arguments {
	file := arguments{"driver": "file", "filename": bySet(set)}
	if readOnly {
		// Many machines read the same image; nobody may write it, whatever locks say.
		file["locking"] = "off"
	}
	return arguments{"driver": "raw", "node-name": nodeName(lun), "read-only": readOnly, "discard": "unmap", "file": file}
}

// diskDevice is a disk as the guest sees it.
func diskDevice(lun int) arguments {
	return arguments{"driver": "scsi-hd", "id": deviceName(lun), "bus": "scsi0.0", "scsi-id": 0, "lun": lun, "drive": nodeName(lun)}
}

func toJSON(a arguments) string {
	text, err := json.Marshal(a)
	if err != nil {
		panic(err) // strings, numbers and booleans
	}
	return string(text)
}
