package e2e

import (
	"bytes"
	"debug/elf"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	qemu = "qemu-system-x86_64"
	// bootLimit is how long a guest may take to boot (package template).
	bootLimit = 90 * time.Second
)

// programs are links to all programs of PATH, which the cluster finds there: what one of them is to a cluster can be changed, and nothing of the machine.
var programs string

// linkPrograms makes programs what PATH names.
func linkPrograms(dir string) error {
	for _, from := range filepath.SplitList(os.Getenv("PATH")) {
		entries, err := os.ReadDir(from)
		if err != nil {
			continue // PATH may name what is not there
		}
		for _, e := range entries {
			if err := os.Symlink(filepath.Join(from, e.Name()), filepath.Join(dir, e.Name())); err != nil && !os.IsExist(err) {
				return err
			}
		}
	}
	programs = dir
	return os.Setenv("PATH", dir)
}

// TestMachineCauses is about what keeps a virtual machine from starting, or from running: the pod's events and its Berth name the cause and the remedy, it goes
// on when the cause is gone, and other pods do not notice.
func TestMachineCauses(t *testing.T) {
	runsMachines(t)
	apply(t, "causes.yaml", "--isolation", "microvm")
	kubectl(t, "wait", "--for=condition=Ready", "pod", "--all", "--timeout=180s")
	late := func(t *testing.T) {
		kubectl(t, "run", "late", "--image=busybox", "--labels=profile=causes", "--command", "--", "sleep", "3600")
		t.Cleanup(func() { kubectl(t, "delete", "pod", "late", "--grace-period=0", "--timeout=60s") })
	}
	condition := func(pod, kind string) []string {
		return []string{"get", "berths", "-o", `jsonpath={range .items[?(@.spec.pod.name=="` + pod + `")].status.conditions[?(@.type=="` + kind + `")]}{.status} {.reason} {.message}{end}`}
	}
	tells := func(t *testing.T, pod, why string) {
		t.Helper()
		shows(t, why, "get", "events", "--field-selector", "involvedObject.name="+pod, "-o", "jsonpath={.items[*].message}")
	}
	complains := func(t *testing.T, pod, why string) {
		t.Helper()
		tells(t, pod, why)
		for _, kind := range []string{"SandboxReady", "Ready"} {
			shows(t, "False", condition(pod, kind)...)
			shows(t, why, condition(pod, kind)...)
		}
		unharmed(t, "bystander")
	}
	recovers := func(t *testing.T, pod string) {
		t.Helper()
		kubectl(t, "wait", "--for=condition=Ready", "pod/"+pod, "--timeout=120s")
		for _, kind := range []string{"SandboxReady", "Ready"} {
			shows(t, "True Done", condition(pod, kind)...)
		}
		unharmed(t, "bystander")
	}
	t.Run("no QEMU, then one that is too old", func(t *testing.T) {
		restore := exchange(t, filepath.Join(programs, qemu), nil)
		shows(t, "command "+qemu+" is missing: install Debian package qemu-system-x86", "get", "hosts", "-o", `jsonpath={.items[*].status.probes[*].message}`)
		late(t)
		tells(t, "late", "install Debian package qemu-system-x86")
		unharmed(t, "bystander")
		restore()
		restore = exchange(t, filepath.Join(programs, qemu), []byte("#!/bin/sh\necho QEMU emulator version 5.2.0\n"))
		tells(t, "late", "is QEMU 5.2.0; install QEMU 7.2 or later")
		unharmed(t, "bystander")
		restore()
		recovers(t, "late")
	})
	// A pod whose machine is lost needs another; the host has its template in memory, and sees that the guest's files are others.
	for pod, tc := range map[string]struct {
		kernel []byte
		why    string
	}{
		"imageless":  {nil, "make it with make guest"},
		"kernelless": {kernelOf(0x0f, 0x01, 0x1d, 0x00, 0x00, 0x10, 0x00, 0xcc), "the guest does not boot, the machine ended (Reset)"}, // lidt of nothing; int3
	} {
		t.Run(pod, func(t *testing.T) {
			restore := exchange(t, filepath.Join(top, "bin", "guest", "vmlinux"), tc.kernel)
			signalPart(t, pod, "qemu", syscall.SIGKILL)
			complains(t, pod, tc.why)
			restore()
			recovers(t, pod)
		})
	}
	t.Run("a kernel that is silent", func(t *testing.T) {
		restore := exchange(t, filepath.Join(top, "bin", "guest", "vmlinux"), kernelOf(0xfa, 0xf4, 0xeb, 0xfd)) // cli; hlt; and again
		before := builds(t)
		signalPart(t, "silent", "qemu", syscall.SIGKILL)
		eventually(t, func() string {
			if builds(t) == before {
				return "no guest is booted for the pod's template"
			}
			return ""
		})
		// The agent may be looking just now whether guests boot, and say so in the same words: so the pod must have asked for its template, and QEMU have the kernel.
		eventually(t, func() string {
			return shell(t, "ss -Hx state connected | grep -q template.sock || echo the pod has not asked yet; pgrep -f '[m]achine microvm.* -kernel' >/dev/null || echo no guest is booted")
		})
		restore() // the next try is to be the last
		within(t, bootLimit+patience, func() string {
			out, err := berth("kubectl", "get", "events", "--field-selector", "involvedObject.name=silent", "-o", "jsonpath={.items[*].message}")
			return missing(out, "the guest does not boot within 1m30s", err)
		})
		recovers(t, "silent")
	})
	t.Run("no room for a template", func(t *testing.T) {
		const templates, changed = "/var/lib/berth/microvm/templates", "touch $0/bin/guest/vmlinux" // for all that the host knows
		shell(t, "mount -t tmpfs -o size=1m small "+templates)
		end := sync.OnceFunc(func() { shell(t, "umount -l "+templates+"; "+changed, top) })
		t.Cleanup(end)
		shell(t, changed, top)
		signalPart(t, "roomless", "qemu", syscall.SIGKILL)
		complains(t, "roomless", "no space left on device: free some space there, a template needs about 100 MB")
		end()
		recovers(t, "roomless")
	})
	t.Run("no room on the host's disk", func(t *testing.T) {
		const disks = "/var/lib/berth/microvm/disks"
		shell(t, "mount -t tmpfs -o size=1m small "+disks)
		t.Cleanup(func() { shell(t, "umount -l "+disks) })
		late(t)
		complains(t, "late", "no space left on device: 1 MiB are left, at least 64 are needed; free some space there")
		shell(t, "mount -o remount,size=100m "+disks)
		recovers(t, "late")
		written := make(chan string, 1)
		go func() {
			out, err := berth("kubectl", "exec", "late", "--", "sh", "-c", "dd if=/dev/zero of=/x bs=1M count=200 conv=fsync && echo written")
			written <- fmt.Sprint(out, err)
		}()
		complains(t, "late", "the host's disk is full: the pod's machine stands still at what it writes, and goes on by itself when there is room; free some space")
		shell(t, "mount -o remount,size=1g "+disks)
		if said := <-written; !strings.Contains(said, "written") {
			t.Errorf("when there is room, the pod does not go on: %s", said)
		}
		tells(t, "late", "the pod's machine runs again")
		recovers(t, "late")
	})
	t.Run("no memory on the host", func(t *testing.T) {
		uid := kubectl(t, "get", "pod", "starved", "-o", "jsonpath={.metadata.uid}")
		limit := shell(t, fmt.Sprintf("ls /sys/fs/cgroup/memory/berth/%[1]s/memory.limit_in_bytes /sys/fs/cgroup/berth/%[1]s/memory.max 2>/dev/null || true", uid))
		before := shell(t, "cat "+limit)
		// A little more than it uses: what a new machine of this size takes is more.
		shell(t, "used=$(cat ${0%/*}/memory.current 2>/dev/null || cat ${0%/*}/memory.usage_in_bytes); echo $((used + (8 << 20))) > $0", limit)
		t.Cleanup(func() { shell(t, "echo "+before+" > "+limit) })
		seen := watch(t, "pod", "starved", "jsonpath={.status.containerStatuses[0]}{\"\\n\"}")
		go berth("kubectl", "exec", "starved", "--", "sh", "-c", "tail /dev/zero") //nolint:errcheck // how it ends is the machine's business
		const want = "the host's kernel ended the machine for want of memory; free memory on the host"
		tells(t, "starved", want)
		// Until there is memory, the container is started again and again, and soon says what came of that: its machine ends before it has started, or after.
		eventually(t, func() string {
			if strings.Contains(seen(), want) {
				return ""
			}
			return missing(seen(), "OOMKilled", nil)
		})
		shell(t, "echo "+before+" > "+limit)
		recovers(t, "starved")
		// Before it has another machine, there is no room for one.
		signalPart(t, "starved", "qemu", syscall.SIGKILL)
		shell(t, "until echo $((16 << 20)) > "+limit+"; do :; done 2>/dev/null")
		tells(t, "starved", "Failed to create pod sandbox")
		complains(t, "starved", want)
		shell(t, "echo "+before+" > "+limit)
		recovers(t, "starved")
	})
	t.Run("a guest that hangs", func(t *testing.T) {
		signalPart(t, "hung", "qemu", syscall.SIGSTOP)
		complains(t, "hung", "the pod's machine has not answered for 10s")
		signalPart(t, "hung", "qemu", syscall.SIGCONT)
		recovers(t, "hung")
		unharmed(t, "hung")
	})
}

// watch returns what kubectl has printed of the object since now.
func watch(t *testing.T, kind, name, output string) (seen func() string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "seen")
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	cmd := exec.Command(filepath.Join(top, "bin", "berth"), "kubectl", "get", kind, name, "--watch", "-o", output)
	cmd.Stdout = file
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	text := func() string {
		data, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(data)
	}
	eventually(t, func() string { // it watches
		if text() == "" {
			return name + " is not there"
		}
		return ""
	})
	return text
}

// kernelOf is a kernel that is nothing but some instructions, at 1 MiB. QEMU starts it by its PVH note.
func kernelOf(code ...byte) []byte {
	const address, align = 1 << 20, 4
	header := elf.Header64{Ident: [elf.EI_NIDENT]byte{0x7f, 'E', 'L', 'F', byte(elf.ELFCLASS64), byte(elf.ELFDATA2LSB), byte(elf.EV_CURRENT)}, Type: uint16(elf.ET_EXEC),
		Machine: uint16(elf.EM_X86_64), Version: uint32(elf.EV_CURRENT), Entry: address, Phoff: 64, Ehsize: 64, Phentsize: 56, Phnum: 2}
	type note struct {
		Name, Desc, Type uint32
		Owner            [4]byte
		Entry            uint64
	}
	const size = 64 + 2*56 + 24
	code = append(make([]byte, 16), code...) // zeros to point at
	whole := uint64(size + len(code))
	var b bytes.Buffer
	for _, part := range []any{
		header,
		elf.Prog64{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Off: size, Vaddr: address, Paddr: address, Filesz: whole - size, Memsz: whole - size, Align: align},
		elf.Prog64{Type: uint32(elf.PT_NOTE), Off: size - 24, Filesz: 24, Memsz: 24, Align: align},
		note{4, 8, 18, [4]byte{'X', 'e', 'n'}, address + 16}, // XEN_ELFNOTE_PHYS32_ENTRY
		code, make([]byte, 4096),
	} {
		_ = binary.Write(&b, binary.LittleEndian, part) // of fixed size, into memory
	}
	return b.Bytes()
}

// exchange puts other content in the place of a file, or none, until the function that it returns is called, or the test ends.
func exchange(t *testing.T, path string, content []byte) (restore func()) {
	t.Helper()
	aside := path + ".aside"
	if err := os.Rename(path, aside); err != nil {
		t.Fatal(err)
	}
	restore = sync.OnceFunc(func() {
		if err := os.Rename(aside, path); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(restore)
	if content != nil {
		if err := os.WriteFile(path, content, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return restore
}

// builds is how many templates the host agent has begun to build.
func builds(t *testing.T) int {
	t.Helper()
	out, err := berth("logs", "berth-host")
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return strings.Count(out, "booting a guest")
}
