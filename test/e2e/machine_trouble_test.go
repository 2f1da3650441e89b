package e2e

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
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
	t.Run("disk", func(t *testing.T) {
		// What is allocated takes no room on the host; the rest is written, until the disk is full.
		fill := "free=$(df -k / | awk 'END { print $(NF-2) }'); fallocate -l $((free - 8192))k /hole; dd if=/dev/zero of=/rest bs=1M count=64 2>&1"
		if got := in(t, "victim", fill+" || true"); !strings.Contains(got, "No space left on device") {
			t.Errorf("a full disk says %q", got)
		}
		if got := in(t, "victim", "rm /hole /rest; echo again > /x; cat /x"); got != "again" {
			t.Errorf("when there is room again, it says %q", got)
		}
		unharmed(t, "neighbour")
	})
	t.Run("memory", func(t *testing.T) {
		out, _ := berth("kubectl", "exec", "victim", "--", "sh", "-c", "tail /dev/zero; echo ended $?")
		if !strings.Contains(out, "ended 137") && !strings.Contains(out, "exit code 137") {
			t.Errorf("a process that takes all memory: %s", out)
		}
		kubectl(t, "wait", "--for=condition=Ready", "pod/victim", "--timeout=90s")
		unharmed(t, "neighbour")
	})
	t.Run("memory, by a volume in it", func(t *testing.T) {
		shows(t, "1 true", "get", "pod", "hoarder", "-o", "jsonpath={.status.containerStatuses[0].restartCount} {.status.containerStatuses[0].ready}")
		if before := kubectl(t, "logs", "hoarder", "--previous"); !strings.Contains(before, "No space left on device") {
			t.Errorf("what fills a volume in memory hears %q", before)
		}
		unharmed(t, "neighbour")
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
		unharmed(t, "neighbour")
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
			for _, reason := range []string{"MachineEnded", "SandboxChanged"} {
				shows(t, reason, "get", "events", "--field-selector", "involvedObject.name="+pod, "-o", "jsonpath={.items[*].reason}")
			}
			unharmed(t, "neighbour")
		})
	}
	t.Run("a machine that hangs", func(t *testing.T) {
		uid := kubectl(t, "get", "pod", "monitorless", "-o", "jsonpath={.metadata.uid}")
		node := kubectl(t, "get", "pod", "monitorless", "-o", "jsonpath={.spec.nodeName}")
		signalPart(t, "monitorless", "qemu", syscall.SIGSTOP)
		kubectl(t, "delete", "pod", "monitorless", "--timeout=60s")
		eventually(t, func() string { return remains(uid, "monitorless", node) })
		unharmed(t, "neighbour")
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

// unharmed fails the test if a pod of which nothing was wanted has noticed anything.
func unharmed(t *testing.T, pod string) {
	t.Helper()
	if got := kubectl(t, "exec", pod, "--", "echo", "alive"); got != "alive" {
		t.Errorf("another pod says %q", got)
	}
	if got := kubectl(t, "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].restartCount}"); got != "0" {
		t.Errorf("another pod's container was started again: %s times", got)
	}
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
