package machine

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// A kernel derives many of its limits from the memory that it boots with. A template boots with little, and the pod's memory comes later: what follows
// are the limits of a machine of usual size, and the rules by which the kernel derives those that protect the memory itself.

// boundlessly many threads, files and namespaces: memory and control groups bound them.
const boundless = "4194304"

// fixedLimits are the same for every pod.
var fixedLimits = map[string]string{
	"kernel/pid_max":                boundless,
	"kernel/threads-max":            boundless,
	"fs/file-max":                   "9223372036854775807",
	"fs/inotify/max_user_watches":   "1048576",
	"fs/inotify/max_user_instances": "8192",
	"fs/epoll/max_user_watches":     boundless,
	"net/core/somaxconn":            "4096",
	"net/ipv4/tcp_rmem":             "4096 131072 6291456",
	"net/ipv4/tcp_wmem":             "4096 16384 4194304",
	"net/ipv4/tcp_max_tw_buckets":   "65536",
	"net/ipv4/tcp_max_orphans":      "65536",
	"net/ipv4/tcp_max_syn_backlog":  "1024",
}

// resources that containers inherit when their configuration says nothing: as many files as on Fargate, any number of processes.
var resources = map[int]unix.Rlimit{
	unix.RLIMIT_NOFILE:     {Cur: 65535, Max: 1048576},
	unix.RLIMIT_NPROC:      {Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY},
	unix.RLIMIT_SIGPENDING: {Cur: 65536, Max: 65536},
}

func setFixedLimits() error {
	for name, value := range fixedLimits {
		if err := setLimit(name, value); err != nil {
			return err
		}
	}
	namespaces, err := filepath.Glob("/proc/sys/user/max_*_namespaces")
	if err != nil {
		return err
	}
	for _, path := range namespaces {
		if err := setLimit(strings.TrimPrefix(path, "/proc/sys/"), "65536"); err != nil {
			return err
		}
	}
	for resource, limit := range resources {
		if err := unix.Setrlimit(resource, &limit); err != nil {
			return fmt.Errorf("set resource limit %d: %w", resource, err)
		}
	}
	return nil
}

func setLimit(name, value string) error {
	if err := os.WriteFile(filepath.Join("/proc/sys", name), []byte(value), 0); err != nil {
		return fmt.Errorf("set limit %s: %w", name, err)
	}
	return nil
}

// setMemoryLimits follows the memory that the machine now has.
func setMemoryLimits() error {
	var info unix.Sysinfo_t
	if err := unix.Sysinfo(&info); err != nil {
		return fmt.Errorf("ask for the machine's memory: %w", err)
	}
	pages := info.Totalram * uint64(info.Unit) / uint64(os.Getpagesize())
	tcp, udp := bufferLimits(pages)
	if err := setLimit("net/ipv4/tcp_mem", tcp); err != nil {
		return err
	}
	return setLimit("net/ipv4/udp_mem", udp)
}

// bufferLimits are the pages that all TCP, and all UDP sockets may fill, by the kernel's own rules (tcp_init_mem, udp_init).
func bufferLimits(pages uint64) (tcp, udp string) {
	triple := func(pressure uint64) string {
		low := pressure / 4 * 3
		return fmt.Sprintf("%d %d %d", low, pressure, 2*low)
	}
	return triple(max(pages/16, 128)), triple(max(pages/8, 128))
}
