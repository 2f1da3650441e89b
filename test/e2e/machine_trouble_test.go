package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestMachineTrouble is about pods that exhaust their virtual machines, and about processes of a machine that are killed: each is that pod's
// trouble alone.
func TestMachineTrouble(t *testing.T) {
	runsMachines(t)
	apply(t, "trouble.yaml", "--isolation", "microvm")
	kubectl(t, "wait", "--for=condition=Ready", "pod/victim", "pod/neighbour", "pod/bomb", "pod/shimless", "pod/monitorless", "--timeout=180s")
	in := func(t *testing.T, pod, script string) string {
		t.Helper()
		return kubectl(t, "exec", pod, "--", "sh", "-c", script)
	}
	unharmed := func(t *testing.T) {
		t.Helper()
		if got := in(t, "neighbour", "echo alive"); got != "alive" {
			t.Errorf("another pod says %q", got)
		}
		if got := kubectl(t, "get", "pod", "neighbour", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"); got != "0" {
			t.Errorf("another pod's container was started again: %s times", got)
		}
	}
	t.Run("disk", func(t *testing.T) {
		// What is allocated takes no room on the host; the rest is written, until the disk is full.
		fill := "free=$(df -k / | awk 'END { print $(NF-2) }'); fallocate -l $((free - 8192))k /hole; dd if=/dev/zero of=/rest bs=1M count=64 2>&1"
		if got := in(t, "victim", fill+" || true"); !strings.Contains(got, "No space left on device") {
			t.Errorf("a full disk says %q", got)
		}
		if got := in(t, "victim", "rm /hole /rest; echo again > /x; cat /x"); got != "again" {
			t.Errorf("when there is room again, it says %q", got)
		}
		unharmed(t)
	})
	t.Run("memory", func(t *testing.T) {
		out, _ := berth("kubectl", "exec", "victim", "--", "sh", "-c", "tail /dev/zero; echo ended $?")
		if !strings.Contains(out, "ended 137") && !strings.Contains(out, "exit code 137") {
			t.Errorf("a process that takes all memory: %s", out)
		}
		kubectl(t, "wait", "--for=condition=Ready", "pod/victim", "--timeout=90s")
		unharmed(t)
	})
	t.Run("processes", func(t *testing.T) {
		uid := kubectl(t, "get", "pod", "bomb", "-o", "jsonpath={.metadata.uid}")
		node := kubectl(t, "get", "pod", "bomb", "-o", "jsonpath={.spec.nodeName}")
		before := processorTime(t, uid)
		// One whose processes end when they cannot fork may be over before anybody looks; these stay.
		go berth("kubectl", "exec", "bomb", "--", "sh", "-c", "b() { b & b & while :; do :; done; }; b") //nolint:errcheck // how it ends is the machine's business
		// A second of processor time takes a machine of a quarter of a processor four seconds, and an idle one minutes.
		eventually(t, func() string {
			if used := processorTime(t, uid) - before; used < time.Second {
				return fmt.Sprintf("the machine is not busy: it has used %v of processor time", used)
			}
			return ""
		})
		unharmed(t)
		kubectl(t, "delete", "pod", "bomb", "--timeout=90s")
		eventually(t, func() string { return remains(uid, "bomb", node) })
	})
	// Each has a pod of its own: a kubelet waits the longer, the more often a container ended.
	for pod, part := range map[string]string{"shimless": "containerd-shim-berth-v1", "monitorless": "qemu"} {
		t.Run(part+" is killed", func(t *testing.T) {
			before := kubectl(t, "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].containerID}")
			signalPart(t, pod, part, syscall.SIGKILL)
			eventually(t, func() string {
				after, _ := berth("kubectl", "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].containerID} {.status.containerStatuses[0].ready}")
				if strings.HasPrefix(after, before) || !strings.HasSuffix(after, " true") {
					return "the container is " + after
				}
				return ""
			})
			shows(t, "SandboxChanged", "get", "events", "--field-selector", "involvedObject.name="+pod, "-o", "jsonpath={.items[*].reason}")
			unharmed(t)
		})
	}
	t.Run("a machine that hangs", func(t *testing.T) {
		uid := kubectl(t, "get", "pod", "monitorless", "-o", "jsonpath={.metadata.uid}")
		node := kubectl(t, "get", "pod", "monitorless", "-o", "jsonpath={.spec.nodeName}")
		signalPart(t, "monitorless", "qemu", syscall.SIGSTOP)
		kubectl(t, "delete", "pod", "monitorless", "--timeout=60s")
		eventually(t, func() string { return remains(uid, "monitorless", node) })
		unharmed(t)
	})
	late := func(t *testing.T, name string) {
		kubectl(t, "run", name, "--image=busybox", "--labels=profile=trouble", "--command", "--", "sleep", "3600")
		t.Cleanup(func() { kubectl(t, "delete", "pod", name, "--grace-period=0", "--timeout=60s") })
	}
	// The pod's event and its Berth both say what is wrong.
	complains := func(t *testing.T, pod, why string) {
		t.Helper()
		shows(t, why, "get", "events", "--field-selector", "involvedObject.name="+pod, "-o", "jsonpath={.items[*].message}")
		shows(t, why, "get", "berths", "-o", `jsonpath={.items[?(@.spec.pod.name=="`+pod+`")].status.conditions[?(@.type=="SandboxReady")].message}`)
		unharmed(t)
	}
	for name, tc := range map[string]struct{ content, why string }{
		"no guest image":              {"", "make it with make guest"},
		"a kernel that does not boot": {"no kernel", "build the template"},
	} {
		t.Run(name, func(t *testing.T) {
			restore := exchange(t, filepath.Join(top, "bin", "guest", "vmlinux"), tc.content)
			late(t, "late")
			complains(t, "late", tc.why)
			restore()
			kubectl(t, "wait", "--for=condition=Ready", "pod/late", "--timeout=90s")
		})
	}
	t.Run("no room on the host's disk", func(t *testing.T) {
		const disks = "/var/lib/berth/microvm/disks"
		shell(t, "mount -t tmpfs -o size=1m small "+disks)
		t.Cleanup(func() { shell(t, "umount -l "+disks) })
		late(t, "late")
		complains(t, "late", "no space left on device: 1 MiB are left, at least 64 are needed; free some space there")
		shell(t, "mount -o remount,size=100m "+disks)
		kubectl(t, "wait", "--for=condition=Ready", "pod/late", "--timeout=90s")
		written := make(chan string, 1)
		go func() {
			out, err := berth("kubectl", "exec", "late", "--", "sh", "-c", "dd if=/dev/zero of=/x bs=1M count=200 conv=fsync && echo written")
			written <- fmt.Sprint(out, err)
		}()
		eventually(t, func() string {
			if left := shell(t, "df --output=avail -k "+disks+" | tail -n 1"); left != "0" {
				return "the host's disk has room for " + left + " KiB"
			}
			return ""
		})
		unharmed(t)
		shell(t, "mount -o remount,size=1g "+disks)
		if said := <-written; !strings.Contains(said, "written") {
			t.Errorf("when there is room, the pod does not go on: %s", said)
		}
	})
	t.Run("an image of a gigabyte", func(t *testing.T) {
		bigImage(t, "docker.io/library/big:1")
		kubectl(t, "wait", "--for=condition=Ready", "pod/big", "--timeout=180s")
		sum := shell(t, "head -c 1M /dev/zero | tr '\\0' x | md5sum | cut -d ' ' -f 1")
		if got := in(t, "big", "stat -c %s /data; dd if=/data bs=1M skip=1023 2>/dev/null | md5sum | cut -d ' ' -f 1"); got != "1073741824\n"+sum {
			t.Errorf("its file is %q, want the sum %s", got, sum)
		}
	})
}

// exchange puts other content in the place of a file, or none, until the function that it returns is called, or the test ends.
func exchange(t *testing.T, path, content string) (restore func()) {
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
	if content != "" {
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return restore
}

// processorTime is what a pod's cgroup has used.
func processorTime(t *testing.T, uid string) time.Duration {
	t.Helper()
	command := fmt.Sprintf("cat /sys/fs/cgroup/cpuacct/berth/%[1]s/cpuacct.usage || awk '/usage_usec/ { print $2 * 1000 }' /sys/fs/cgroup/berth/%[1]s/cpu.stat", uid)
	out, _ := exec.Command("bash", "-c", command).Output() // one of them is there
	nanoseconds, err := strconv.ParseInt(strings.TrimSpace(string(out)), 10, 64)
	if err != nil {
		t.Fatalf("read the processor time of pod %s: %v", uid, err)
	}
	return time.Duration(nanoseconds)
}

// signalPart signals the process of a pod that runs the program: its monitor, or its shim, which is the monitor's parent.
func signalPart(t *testing.T, pod, program string, signal syscall.Signal) {
	t.Helper()
	uid := kubectl(t, "get", "pod", pod, "-o", "jsonpath={.metadata.uid}")
	var monitor, shim int
	find := fmt.Sprintf("for p in $(cat /sys/fs/cgroup/berth/%[1]s/cgroup.procs /sys/fs/cgroup/memory/berth/%[1]s/cgroup.procs 2>/dev/null); do "+
		"readlink /proc/$p/exe | grep -q qemu && echo $p $(awk '/PPid/ { print $2 }' /proc/$p/status); done | head -n 1", uid)
	if _, err := fmt.Sscan(shell(t, find), &monitor, &shim); err != nil {
		t.Fatalf("find the monitor of pod %s: %v", pod, err)
	}
	pid := monitor
	if program != "qemu" {
		pid = shim
	}
	if exe := shell(t, fmt.Sprintf("readlink /proc/%d/exe", pid)); !strings.Contains(exe, program) {
		t.Fatalf("process %d of pod %s is %s, not %s", pid, pod, exe, program)
	}
	if err := syscall.Kill(pid, signal); err != nil {
		t.Fatal(err)
	}
}

// bigImage makes an image of busybox and a file of a gigabyte, and loads it.
func bigImage(t *testing.T, name string) {
	t.Helper()
	dir := t.TempDir()
	build := exec.Command("bash", "-euc", `
mkdir $1/busybox $1/root
tar -xf bin/images/busybox.tar -C $1/busybox
head -c 1G /dev/zero | tr '\0' x > $1/root/data
go build -o $1/mkimage ./hack/images/mkimage
$1/mkimage layer -o $1/data.tar.gz $1/root
echo '{}' > $1/config.json
$1/mkimage image -o $1/big.tar -config $1/config.json -layer $(ls -S $1/busybox/blobs/sha256/* | head -n 1) -layer $1/data.tar.gz `+name+`
bin/berth image load $1/big.tar`, "bash", dir)
	build.Dir = top
	out, err := build.CombinedOutput()
	if err != nil {
		t.Fatalf("make an image of a gigabyte: %v\n%s", err, out)
	}
}
