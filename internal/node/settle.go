package node

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"
)

const (
	// settleTime is how long after the last change of the pod's containers a node process becomes as cheap as it can be.
	settleTime = 15 * time.Second
	// settledThreads run Go code from then on. The volume manager wakes up twenty times a second, and most of what that
	// costs is waking other threads.
	settledThreads = 1
	// settledSlack is how late the kernel may wake a settled kubelet by the clock, so that several wakings become one. A probe
	// may be that late, too. What comes from outside, such as the end of a container, is not held back.
	settledSlack = 500 * time.Millisecond
	// settledCollect is how often a settled process collects its garbage and gives its memory back. Go would collect every two minutes, and give back less.
	settledCollect = 110 * time.Second
	// usualSlack is the kernel's default.
	usualSlack = 50 * time.Microsecond
)

// settleWhenQuiet lets the node process settle when nothing was busy for a while, and has it awake at once when something is: a pod that ends is not
// to wait for a kubelet that is half asleep.
func settleWhenQuiet(ctx context.Context, busy <-chan struct{}) {
	threads := runtime.GOMAXPROCS(0)
	for settled := false; ; {
		wait := settleTime
		if settled {
			wait = settledCollect
		}
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
			debug.FreeOSMemory()
			if settled {
				continue
			}
			settled = true
			runtime.GOMAXPROCS(settledThreads)
			setSlack(settledSlack)
		case <-busy:
			if settled {
				settled = false
				setSlack(usualSlack)
				runtime.GOMAXPROCS(threads)
			}
		}
	}
}

// setSlack sets how late the kernel may wake this process's threads by the clock.
func setSlack(slack time.Duration) {
	threads, err := filepath.Glob("/proc/self/task/*")
	if err != nil {
		return
	}
	for _, t := range threads { // those that are made later inherit it
		file := filepath.Join("/proc", filepath.Base(t), "timerslack_ns")
		if err := os.WriteFile(file, []byte(strconv.FormatInt(int64(slack), 10)), 0); err != nil && !os.IsNotExist(err) {
			slog.Warn("the kubelet wakes up more often than it needs to", "error", err)
			return
		}
	}
}
