package machine

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
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

// memoryKept is what a file system in memory leaves, in bytes. Its files stay when the kernel ends programs for want of memory, and without room for another
// container nobody could delete them.
const memoryKept = 32 << 20

// fitMemory lowers the size of a tmpfs, among its options, to the memory that is there for it and for programs, those that run already included.
func fitMemory(options []string) ([]string, error) {
	content, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return nil, fmt.Errorf("ask for the free memory: %w", err)
	}
	room, err := memoryRoom(string(content))
	if err != nil {
		return nil, err
	}
	return limitSize(options, max(room, 2*memoryKept)-memoryKept), nil
}

// memoryRoom is what is available and what programs have, in bytes, by /proc/meminfo.
func memoryRoom(meminfo string) (uint64, error) {
	found, room := 0, uint64(0)
	for line := range strings.Lines(meminfo) {
		var name string
		var kib uint64
		if n, _ := fmt.Sscanf(line, "%s %d kB", &name, &kib); n == 2 && (name == "MemAvailable:" || name == "AnonPages:") {
			found, room = found+1, room+kib<<10
		}
	}
	if found != 2 {
		return 0, errors.New("the kernel does not tell its free memory")
	}
	return room, nil
}

// limitSize lowers a size, in bytes, to the most.
func limitSize(options []string, most uint64) []string {
	out := slices.Clone(options)
	for i, option := range out {
		if text, ok := strings.CutPrefix(option, "size="); ok {
			if size, err := strconv.ParseUint(text, 10, 64); err == nil && size > most {
				out[i] = fmt.Sprintf("size=%d", most)
			}
		}
	}
	return out
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
