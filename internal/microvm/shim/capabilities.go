package shim

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// capabilities of Linux, by their number (linux/capability.h); the guest's kernel and crun know all of them.
var capabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
	"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER",
	"CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE",
	"CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP",
	"CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF",
	"CAP_CHECKPOINT_RESTORE",
}

// widen gives all capabilities to who has all of the host's: containerd gives a privileged process those that it has itself, and on some hosts it lacks a few. In
// a machine of its own such a process is to lack none.
func widen(c *specs.LinuxCapabilities, hosts []string) {
	if c == nil {
		return
	}
	for _, set := range []*[]string{&c.Bounding, &c.Effective, &c.Permitted} {
		if !slices.ContainsFunc(hosts, func(name string) bool { return !slices.Contains(*set, name) }) {
			*set = slices.Clone(capabilities)
		}
	}
}

// hostCapabilities are this process's, and so those of the containerd that started it.
var hostCapabilities = sync.OnceValue(func() []string {
	status, _ := os.ReadFile("/proc/self/status") // who cannot read it has all, and nobody is given more
	_, rest, _ := strings.Cut(string(status), "CapEff:")
	line, _, _ := strings.Cut(rest, "\n")
	mask, err := strconv.ParseUint(strings.TrimSpace(line), 16, 64)
	var names []string
	for number, name := range capabilities {
		if err != nil || mask&(1<<number) != 0 {
			names = append(names, name)
		}
	}
	return names
})
