package e2e

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestRights is about what a profile may allow because the machine is the boundary: all that root can do on a machine, in a pod's own. Each is done
// by Debian's programs, and nothing of it is found on the host.
func TestRights(t *testing.T) {
	runsMachines(t)
	loadPackages(t, "rights", "dash", "bash", "coreutils", "grep", "sed", "mount", "e2fsprogs", "kmod", "iproute2", "iptables", "podman", "netavark", "fuse-overlayfs", "xdp-tools", "docker.io", "tar", "gzip", "procps")
	before := hostFacts(t)
	apply(t, "rights.yaml", "--isolation", "microvm", "--allow-privileged")
	kubectl(t, "wait", "--for=condition=Ready", "pod/strong", "pod/added", "--timeout=120s")
	address := func(pod string) string { return kubectl(t, "get", "pod", pod, "-o", "jsonpath={.status.podIP}") }
	// in runs a script in the pod and wants to be told all this.
	in := func(t *testing.T, pod, script string, wants ...string) {
		t.Helper()
		out, err := berth("kubectl", "exec", pod, "-c", "c", "--", "sh", "-euc", script)
		for _, want := range wants {
			if !strings.Contains(out, want) {
				t.Errorf("it does not say %q: %v\n%s", want, err, out)
			}
		}
		if err != nil {
			t.Fatalf("%s: %v\n%s", script, err, out)
		}
	}
	t.Run("sysctls", func(t *testing.T) {
		in(t, "strong", "cat /proc/sys/net/ipv4/ip_forward; echo 4242 > /proc/sys/vm/max_map_count; cat /proc/sys/vm/max_map_count", "1\n4242")
	})
	t.Run("added capabilities", func(t *testing.T) {
		in(t, "added", "ip link add own0 type dummy && ip link show own0", "own0")
	})
	t.Run("kernel modules", func(t *testing.T) {
		in(t, "strong", "modprobe dm-mod; grep dm_mod /proc/modules", "Live")
	})
	t.Run("a loop mount", func(t *testing.T) {
		in(t, "strong", `truncate -s 64M /disk; mkfs.ext4 -q /disk; mkdir -p /mnt/loop; mount -o loop /disk /mnt/loop; echo looped > /mnt/loop/x; cat /mnt/loop/x
grep /mnt/loop /proc/mounts; cat /sys/block/loop*/loop/backing_file`, "looped", "/dev/loop", "/disk")
	})
	t.Run("mount propagation", func(t *testing.T) {
		in(t, "strong", "mkdir /shared/x; mount -t tmpfs own /shared/x; echo propagated > /shared/x/y")
		if got := kubectl(t, "exec", "strong", "-c", "beside", "--", "cat", "/shared/x/y"); got != "propagated" {
			t.Errorf("the other container sees %q", got)
		}
	})
	t.Run("FUSE", func(t *testing.T) {
		in(t, "strong", `cd /tmp; mkdir -p lower upper work /mnt/fuse; echo below > lower/x; fuse-overlayfs -o lowerdir=lower,upperdir=upper,workdir=work /mnt/fuse
echo above > /mnt/fuse/y; cat /mnt/fuse/x upper/y; grep /mnt/fuse /proc/mounts`, "below\nabove", "fuse.fuse-overlayfs")
	})
	t.Run("eBPF", func(t *testing.T) {
		// A filter in the kernel's path of packets: what it drops is not refused any more, but lost.
		in(t, "strong", `connect() { timeout 2 bash -c 'exec 3<>/dev/tcp/127.0.0.9/9' 2>&1 || echo "connecting ended with $?"; }
mount -t bpf bpf /sys/fs/bpf; connect; xdp-filter load -m skb lo; xdp-filter ip 127.0.0.9; connect; ip link show lo`,
			"refused", "ended with 124", "xdp")
	})
	t.Run("a container engine", func(t *testing.T) {
		archive, err := os.Open(filepath.Join(top, "bin", "images", "busybox.tar"))
		if err != nil {
			t.Fatal(err)
		}
		defer archive.Close()
		load := exec.Command(filepath.Join(top, "bin", "berth"), "kubectl", "exec", "-i", "strong", "-c", "c", "--", "sh", "-c", "cat > /busybox.tar")
		load.Stdin = archive
		if out, err := load.CombinedOutput(); err != nil {
			t.Fatalf("copy the image: %v\n%s", err, out)
		}
		// The links and the directory are what Debian's packages make when they are configured; without podman's configuration for CNI it takes netavark.
		in(t, "strong", `mkdir -p /var/tmp; rm -r /etc/cni; ln -s xtables-nft-multi /usr/sbin/iptables; ln -s xtables-nft-multi /usr/sbin/ip6tables
podman run -d --name web -p 8080:80 --memory 32m $(podman pull -q oci-archive:/busybox.tar:latest) httpd -f -p 80 -h /etc
podman exec web sh -c 'cat /sys/fs/cgroup/memory.max; wget -qO- http://`+address("added")+`/passwd'
podman info --format '{{.Store.GraphDriverName}} {{.Store.GraphStatus}}'`, "33554432", "root:x:0:0", "overlay", "Native Overlay Diff:true")
		in(t, "added", "wget -qO- http://"+address("strong")+":8080/passwd", "root:x:0:0")
	})
	t.Run("Docker", func(t *testing.T) {
		in(t, "strong", `mkdir /layout; tar -xf /busybox.tar -C /layout
dockerd >/var/log/dockerd.log 2>&1 & for i in $(seq 120); do docker info >/dev/null 2>&1 && break; sleep 0.5; done; docker info --format '{{.Driver}} {{.CgroupVersion}}' || tail -n 20 /var/log/dockerd.log
docker import --change 'CMD ["sh"]' $(ls -S /layout/blobs/sha256/* | head -n 1) own:1
docker run -d --name served -p 8081:80 --memory 32m own:1 httpd -f -p 80 -h /etc
docker exec served sh -c 'cat /sys/fs/cgroup/memory.max; wget -qO- http://`+address("added")+`/passwd'`, "overlay2 2", "33554432", "root:x:0:0")
		in(t, "added", "wget -qO- http://"+address("strong")+":8081/passwd", "root:x:0:0")
	})
	if after := hostFacts(t); after != before {
		t.Errorf("the host is not as it was:\n%s\nbefore:\n%s", after, before)
	}
}

// hostFacts are those of the host that a pod changed in its own machine.
func hostFacts(t *testing.T) string {
	t.Helper()
	return shell(t, `cat /proc/sys/vm/max_map_count; grep -oE '^(dm_mod|fuse|loop|dummy) ' /proc/modules || true; ip -o link | grep -E 'podman|docker|own0|xdp' || true
cat /sys/block/loop*/loop/backing_file 2>/dev/null || true; grep -E 'fuse-overlayfs|/mnt/loop|/dev/loop' /proc/mounts || true
nft list tables | grep -iE 'netavark|table ip (nat|filter)' || true; ls -d /sys/fs/bpf/xdp* 2>/dev/null || true`)
}

// loadPackages makes an image of Debian's packages, called like that and tagged 1, and loads it.
func loadPackages(t *testing.T, name string, packages ...string) {
	t.Helper()
	archive := filepath.Join(top, "bin", "test", name+".tar")
	make := exec.Command(filepath.Join(top, "hack", "images", "packages.sh"), append([]string{archive, "docker.io/library/" + name + ":1"}, packages...)...)
	if out, err := make.CombinedOutput(); err != nil {
		t.Fatalf("make image %s: %v\n%s", name, err, out)
	}
	if out, err := berth("image", "load", archive); err != nil {
		t.Fatalf("load image %s: %v\n%s", name, err, out)
	}
}
