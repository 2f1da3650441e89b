package e2e

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// TestUp starts the cluster where that cannot work or is interrupted. Each time one sentence says why, nothing stays, and
// afterwards it starts. It stops the cluster of the other tests for as long.
func TestUp(t *testing.T) {
	if out, err := berth("down"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if log, err := os.ReadFile("/var/log/berth/supervisor.log"); err != nil || strings.Contains(string(log), "is killed") {
		t.Errorf("a part of the cluster did not end by itself: %v\n%s", err, log)
	}
	t.Cleanup(func() {
		if out, err := berth("up"); err != nil {
			t.Errorf("the cluster does not start any more: %v\n%s", err, out)
		}
		if out, err := berth("status", "-o", "json"); err != nil || !strings.Contains(out, `"isolation": "`+isolation+`"`) {
			t.Errorf("the cluster's isolation is not %s any more: %v\n%s", isolation, err, out)
		}
	})
	program := filepath.Join(top, "bin", "berth")
	refused := func(t *testing.T, want string, command ...string) {
		t.Helper()
		out, err := exec.Command(command[0], command[1:]...).CombinedOutput()
		if err == nil || !strings.Contains(string(out), want) {
			t.Errorf("%v, %q; want %q", err, out, want)
		}
		nothingRuns(t)
	}
	t.Run("no root", func(t *testing.T) {
		refused(t, "needs root", "unshare", "--user", program, "up")
	})
	t.Run("no such isolation", func(t *testing.T) {
		refused(t, `--isolation: "runc" is not an isolation: use auto, microvm or gvisor`, program, "up", "--isolation", "runc")
	})
	t.Run("no QEMU", func(t *testing.T) {
		refused(t, "--isolation microvm: command qemu-system-x86_64 is missing: install Debian package qemu-system-x86", "env", "PATH="+t.TempDir(), program, "up", "--isolation", "microvm")
	})
	t.Run("port taken", func(t *testing.T) {
		l, err := net.Listen("tcp", "127.0.0.1:6443")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		refused(t, "port 6443 is taken by another program", program, "up")
	})
	t.Run("no cgroups", func(t *testing.T) {
		refused(t, `cgroup controller "memory" is not there`, "unshare", "--mount", "bash", "-c", "mount -t tmpfs none /sys/fs/cgroup && exec "+program+" up")
	})
	t.Run("no nftables", func(t *testing.T) {
		refused(t, "command nft is missing: install Debian package nftables", "env", "PATH="+t.TempDir(), program, "up")
	})
	for _, at := range []string{"", "etcd is ready", "kube-apiserver is ready"} {
		t.Run("interrupted at "+at, func(t *testing.T) {
			cmd := exec.Command(program, "up")
			stdout, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			var stderr bytes.Buffer
			cmd.Stderr = &stderr
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			for lines := bufio.NewScanner(stdout); at != "" && lines.Scan() && !strings.Contains(lines.Text(), at); {
			}
			if err := cmd.Process.Signal(syscall.SIGINT); err != nil {
				t.Fatal(err)
			}
			if err := errors.Join(drain(stdout), cmd.Wait()); err == nil {
				t.Error("berth up did not notice the interruption")
			}
			if at != "" && !strings.Contains(stderr.String(), "interrupted before the cluster was ready") {
				t.Errorf("berth up said: %s", &stderr)
			}
			nothingRuns(t)
		})
	}
}

func drain(r io.Reader) error {
	_, err := io.Copy(io.Discard, r)
	return err
}

// nothingRuns fails if anything of Berth but its state is on the machine.
func nothingRuns(t *testing.T) {
	t.Helper()
	for _, left := range leftovers() {
		if left != "directory: /var/lib/berth" {
			t.Errorf("left behind: %s", left)
		}
	}
}

// TestSecondCluster starts another cluster on this machine, with directories and processes of its own: the network is taken. The first one does
// not notice (docs/decisions/20261126-one-cluster-per-host.md).
func TestSecondCluster(t *testing.T) {
	const network = "nft list table ip berth | grep -v counter; ip -o -4 addr show dev berth0"
	// The test before may have started the cluster just now: its own pods are in the network when they run again.
	var before string
	eventually(t, func() string {
		before = shell(t, network)
		ips := strings.Fields(kubectl(t, "get", "pods", "-n", "kube-system", "-l", "k8s-app=kube-dns", "-o", "jsonpath={.items[*].status.podIP}"))
		for _, ip := range ips {
			if !strings.Contains(before, ip+" : ") {
				return fmt.Sprintf("%s of CoreDNS is not in the network:\n%s", ip, before)
			}
		}
		if len(ips) < 2 {
			return fmt.Sprintf("CoreDNS has the addresses %v, want two", ips)
		}
		return ""
	})
	out, err := exec.Command("unshare", "--mount", "--pid", "--fork", "--mount-proc", "bash", "-ec",
		"mount -t tmpfs none /run; mount -t tmpfs none /var/lib/berth; "+filepath.Join(top, "bin", "berth")+" up").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "port 6443 is taken by another program") {
		t.Errorf("a second berth up: %v, %s", err, out)
	}
	if after := shell(t, network); after != before {
		t.Errorf("the second changed the first's network: %s became %s", before, after)
	}
	if out, err := berth("status", "-o", "json"); err != nil || !strings.Contains(out, `"ready": true,`) || strings.Contains(out, `"ready": false`) {
		t.Errorf("the first cluster: %v\n%s", err, out)
	}
}
