package e2e

import (
	"os/exec"
	"strings"
	"testing"
)

// fleetSize is how many machines are started at once.
const fleetSize = "20"

// TestMachines is about what only a virtual machine gives a pod, and what all of them have in common, and what not. Its profile asks for microVMs,
// whatever the cluster's isolation is, and needs a host that runs them.
func TestMachines(t *testing.T) {
	runsMachines(t)
	apply(t, "machines.yaml", "--isolation", "microvm", "--allow-privileged")
	in := func(t *testing.T, pod, container, script string) string {
		t.Helper()
		return kubectl(t, "exec", pod, "-c", container, "--", "sh", "-c", script)
	}
	kubectl(t, "wait", "--for=condition=Ready", "pod/many", "pod/strong", "--timeout=180s")
	t.Run("one machine for all containers", func(t *testing.T) {
		boot := "cat /proc/sys/kernel/random/boot_id"
		if a, c := in(t, "many", "a", boot), in(t, "many", "c", boot); a != c {
			t.Errorf("containers of one pod have boot ids %s and %s", a, c)
		}
		if got := in(t, "many", "a", "cat /shared/first /shared/second"); !strings.Contains(got, "from busybox") || !strings.Contains(got, "Debian") {
			t.Errorf("the init containers left %q", got)
		}
	})
	t.Run("volumes", func(t *testing.T) {
		in(t, "many", "a", "echo hello > /part/file")
		if got := in(t, "many", "b", "cat /shared/part/file; touch /shared/x 2>&1 || true"); !strings.Contains(got, "hello") || !strings.Contains(got, "Read-only") {
			t.Errorf("the volume shows %q", got)
		}
		if got := in(t, "many", "a", "dd if=/dev/zero of=/memory/x bs=1M count=20 2>&1 || true; rm -f /memory/x"); !strings.Contains(got, "No space left") {
			t.Errorf("20 MiB in a volume of 8: %q", got)
		}
	})
	t.Run("a container's memory limit ends that container only", func(t *testing.T) {
		shows(t, "OOMKilled", "get", "pod", "hungry", "-o", `jsonpath={.status.containerStatuses[?(@.name=="limited")].state.terminated.reason}`)
		if got := in(t, "hungry", "beside", "echo alive"); got != "alive" {
			t.Errorf("the other container says %q", got)
		}
	})
	t.Run("the ephemeral disk", func(t *testing.T) {
		if got := in(t, "many", "a", "df -k /shared | tail -n 1 | awk '{print $2}'"); len(got) != len("20000000") {
			t.Errorf("the ephemeral disk has %s KiB, want about 20 GiB", got)
		}
	})
	t.Run("all rights, inside", func(t *testing.T) {
		script := `dd if=/dev/zero of=/tmp/disk bs=1M count=8 2>/dev/null && mkdir -p /mnt/x && mount -t tmpfs none /mnt/x && mount --bind /tmp /mnt/x &&
sysctl -w kernel.pid_max=12345 >/dev/null 2>&1 || echo 12345 > /proc/sys/kernel/pid_max; cat /proc/sys/kernel/pid_max; ls /dev/fuse /dev/loop-control; unshare --mount --pid --fork echo unshared`
		got := in(t, "strong", "c", script)
		for _, want := range []string{"12345", "/dev/fuse", "/dev/loop-control", "unshared"} {
			if !strings.Contains(got, want) {
				t.Errorf("it says %q, want %q", got, want)
			}
		}
		if host := shell(t, "cat /proc/sys/kernel/pid_max"); host == "12345" {
			t.Error("a sysctl of the guest reached the host")
		}
	})
	t.Run("nothing of the host inside", func(t *testing.T) {
		got := in(t, "strong", "c", "cat /proc/mounts /proc/cmdline /proc/partitions; ls / /run /dev")
		for _, hosts := range []string{"/var/lib/berth", "containerd", "vda", "agent.sock"} {
			if strings.Contains(got, hosts) {
				t.Errorf("the guest shows %q of the host:\n%s", hosts, got)
			}
		}
		for _, address := range []string{"10.90.255.1/22", "10.90.255.1/23790", "169.254.169.254/80"} {
			if out, err := berth("kubectl", "exec", "strong", "-c", "c", "--", "timeout", "2", "bash", "-c", "exec 3<>/dev/tcp/"+address); err == nil {
				t.Errorf("the guest reaches %s: %s", address, out)
			}
		}
	})
	t.Run("SCTP, to the pod and through its Service", func(t *testing.T) {
		kubectl(t, "wait", "--for=condition=Ready", "pod/streams", "--timeout=60s")
		ip := func(pod string) string { return kubectl(t, "get", "pod", pod, "-o", "jsonpath={.status.podIP}") }
		want := "hello " + ip("strong")
		for _, at := range []string{ip("streams") + " 9999", "streams 7777"} {
			eventually(t, func() string {
				out, err := berth("kubectl", "exec", "strong", "-c", "c", "--", "timeout", "5", "perl", "-MSocket", "-e",
					`socket(S, PF_INET, SOCK_STREAM, 132) or die "socket: $!"; connect(S, sockaddr_in($ARGV[1], inet_aton($ARGV[0]))) or die "connect: $!"; sysread(S, $x, 99); print $x`,
					"--", strings.Fields(at)[0], strings.Fields(at)[1])
				return missing(out, want, err)
			})
		}
	})
	t.Run("no two machines are alike", func(t *testing.T) {
		kubectl(t, "scale", "deployment", "fleet", "--replicas="+fleetSize)
		kubectl(t, "rollout", "status", "deployment/fleet", "--timeout=300s")
		pods := strings.Fields(kubectl(t, "get", "pods", "-l", "app=fleet", "-o", "jsonpath={.items[*].metadata.name}"))
		for what, script := range map[string]string{
			"boot id": "cat /proc/sys/kernel/random/boot_id", "random numbers": "head -c 16 /dev/urandom | od -An -tx1", "MAC address": "cat /sys/class/net/eth0/address",
		} {
			seen := map[string]string{}
			for _, pod := range pods {
				got := in(t, pod, "c", script)
				if other, twice := seen[got]; twice || got == "" {
					t.Errorf("%s %q of %s is that of %s, too", what, got, pod, other)
				}
				seen[got] = pod
			}
		}
	})
}

// runsMachines waits until the host has found out that it runs virtual machines.
func runsMachines(t *testing.T) {
	t.Helper()
	eventually(t, func() string {
		if err := hostRuns("microvm"); err != nil {
			return err.Error()
		}
		return ""
	})
}

// shell runs a command of bash, with arguments from $0 on, and returns what it printed.
func shell(t *testing.T, command string, arguments ...string) string {
	t.Helper()
	out, err := exec.Command("bash", append([]string{"-c", command}, arguments...)...).Output()
	if err != nil {
		t.Fatalf("%s: %v", command, err)
	}
	return strings.TrimSpace(string(out))
}
