package node

import (
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"
)

const (
	// settleTime is how long after its start a node process becomes as cheap as it can be.
	settleTime = 15 * time.Second
	// settledThreads run Go code from then on. The volume manager wakes up twenty times a second, and most of what that
	// costs is waking other threads.
	settledThreads = 1
	// settledSlack is how late the kernel may wake a settled kubelet by the clock, so that several wakings become one.
	// What comes from outside, such as the end of a container, is not held back.
	settledSlack = 100 * time.Millisecond
)

// settle gives the memory that starting took back to the machine, and saves processor time: there are many such processes
// on a host, and what is left to do has time.
func settle() {
	debug.FreeOSMemory()
	runtime.GOMAXPROCS(settledThreads)
	threads, err := filepath.Glob("/proc/self/task/*")
	if err != nil {
		return
	}
	for _, t := range threads { // those that are made later inherit it
		file := filepath.Join("/proc", filepath.Base(t), "timerslack_ns")
		if err := os.WriteFile(file, []byte(strconv.FormatInt(int64(settledSlack), 10)), 0); err != nil && !os.IsNotExist(err) {
			slog.Warn("the kubelet wakes up more often than it needs to", "error", err)
			return
		}
	}
}
