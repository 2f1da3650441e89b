package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/podcgroup"
)

// TestLimitsBite checks, in either isolation, that a pod cannot use more memory, CPU and disk than its size, and can use all of it (facts
// 3.4, 3.5). Processes and open files are TestRules'.
func TestLimitsBite(t *testing.T) {
	apply(t, "limits.yaml")
	kubectl(t, "wait", "--for=condition=Ready", "pod/spinner", "--timeout=90s")
	t.Run("memory", func(t *testing.T) {
		shows(t, "Failed", "get", "pod", "hog", "-o", "jsonpath={.status.phase}")
		// In gVisor the whole sandbox ends; in a machine of its own the guest's kernel ends the container.
		if reason := kubectl(t, "get", "pod", "hog", "-o", "jsonpath={.status.containerStatuses[0].state.terminated.reason}"); isolation == "microvm" && reason != "OOMKilled" {
			t.Errorf("its container ended by %q", reason)
		}
	})
	t.Run("memory, all of it", func(t *testing.T) {
		// dd fills a buffer of that size. The rest of 512 MiB is gVisor's, or the guest's: its kernel, and what serves the containers.
		most := map[string]string{"gvisor": "420M", "microvm": "300M"}[isolation]
		if out := kubectl(t, "exec", "spinner", "--", "sh", "-c", "dd if=/dev/zero of=/dev/null bs="+most+" count=1 2>&1"); !strings.Contains(out, "1+0 records out") {
			t.Errorf("a pod of 512 MiB cannot use %s: %s", most, out)
		}
		if restarts := kubectl(t, "get", "pod", "spinner", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"); restarts != "0" {
			t.Errorf("its container was restarted %s times", restarts)
		}
	})
	t.Run("cpu", testCPULimit)
	t.Run("disk", func(t *testing.T) {
		if out, err := berth("kubectl", "exec", "spinner", "--", "fallocate", "-l", "30G", "/x"); err == nil || !strings.Contains(out, "No space left on device") {
			t.Errorf("a pod of 20 GiB wrote 30: %v, %s", err, out)
		}
	})
	t.Run("disk, all of it", func(t *testing.T) {
		if isolation == "microvm" { // all but what the file system needs
			kubectl(t, "exec", "spinner", "--", "sh", "-c", "rm -f /x && fallocate -l 18G /x && rm /x")
			return
		}
		// To the last MiB, and no further. Most of it is only allocated, which counts as written: not every machine has 20 GiB to spare.
		out := kubectl(t, "exec", "spinner", "--", "sh", "-c", "rm -f /x; fallocate -l 19G /y; dd if=/dev/zero of=/x bs=1M 2>&1; stat -c %s /x; df -k / | awk 'END { print $(NF-2) }'; rm /x /y")
		lines := strings.Split(out, "\n")
		var written, left int
		if _, err := fmt.Sscan(strings.Join(lines[len(lines)-2:], " "), &written, &left); err != nil || !strings.Contains(out, "No space left on device") || written < 1023<<20 || written > 1<<30 || left > 1<<10 {
			t.Errorf("of 20 GiB, of which 19 are allocated, %d bytes were written and %d KiB are left, %v: %s", written, left, err, out)
		}
	})
	for pod, want := range map[string]string{
		"full-layer":  `Pod ephemeral local storage usage exceeds the total limit of containers 10Mi.`,
		"full-volume": `Usage of EmptyDir volume "scratch" exceeds the limit "10Mi".`,
	} {
		t.Run(pod, func(t *testing.T) {
			// A kubelet measures volumes every minute or two.
			kubectl(t, "wait", "--for=jsonpath={.status.reason}=Evicted", "pod/"+pod, "--timeout=180s")
			if got := kubectl(t, "get", "pod", pod, "-o", "jsonpath={.status.message}"); got != want {
				t.Errorf("pod %s was evicted: %q, want %q", pod, got, want)
			}
		})
	}
	t.Run("what programs see", func(t *testing.T) {
		var memory, disk int
		out := kubectl(t, "exec", "spinner", "--", "sh", "-c", "awk '/MemTotal/ { print $2 }' /proc/meminfo; df -k / | awk 'END { print $(NF-4) }'")
		if _, err := fmt.Sscan(out, &memory, &disk); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		// A guest's kernel and its file system take a part of the machine for themselves.
		least := map[string][2]int{"gvisor": {512 << 10, 20 << 20}, "microvm": {384 << 10, 18 << 20}}[isolation]
		if memory < least[0] || memory > 512<<10 || disk < least[1] || disk > 20<<20 {
			t.Errorf("a pod of 512 MiB and 20 GiB sees %d KiB of memory and %d KiB of disk", memory, disk)
		}
	})
}

// testCPULimit: two busy loops in a pod of a quarter of a CPU. The kernel holds them back, which it does when they have used all that they
// have in a tenth of a second; together they use no more than that, however long it takes.
func testCPULimit(t *testing.T) {
	uid := kubectl(t, "get", "pod", "spinner", "-o", "jsonpath={.metadata.uid}")
	use := func() time.Duration {
		t.Helper()
		u, err := podcgroup.Read(layout.PodCgroupPath(uid))
		if err != nil {
			t.Fatal(err)
		}
		return time.Duration(u.CPU)
	}
	began, before := time.Now(), use()
	kubectl(t, "exec", "spinner", "--", "sh", "-c", "loop() { i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; }; loop & loop & wait")
	// One period's worth may be left over from before, and one be given in advance.
	used, most := use()-before, time.Since(began)/4+50*time.Millisecond
	if used > most {
		t.Errorf("a pod of 250m used %s of CPU where it may have %s", used, most)
	}
	out, err := exec.Command("bash", "-c", "cat /sys/fs/cgroup/cpu/berth/"+uid+"/cpu.stat /sys/fs/cgroup/berth/"+uid+"/cpu.stat 2>/dev/null | grep nr_throttled").CombinedOutput()
	if text := strings.TrimSpace(string(out)); text == "" || text == "nr_throttled 0" {
		t.Errorf("a busy pod of 250m was never throttled: %q, %v", text, err)
	}
}
