package shim

import (
	"testing"

	stats "github.com/containerd/cgroups/v3/cgroup2/stats"
)

// TestCPUTime: a container seems to take no more processor time than its machine, and all of what it takes of that.
func TestCPUTime(t *testing.T) {
	const second = 1_000_000
	for name, c := range map[string]struct {
		guest, machine []uint64 // at one measurement after another
		want           uint64
	}{
		"alone":                   {[]uint64{second, 3 * second}, []uint64{2 * second, 5 * second}, 3 * second},
		"idle":                    {[]uint64{second, second}, []uint64{2 * second, 3 * second}, second},
		"held back":               {[]uint64{4 * second, 8 * second, 12 * second}, []uint64{second, 2 * second, 3 * second}, 3 * second},
		"not in the same moment":  {[]uint64{second, 2 * second, 2 * second}, []uint64{second + cpuSlack/2, 2*second - cpuSlack/4, 2 * second}, 2 * second},
		"held back after leisure": {[]uint64{0, 4 * second}, []uint64{10 * second, 11 * second}, second + cpuSlack},
	} {
		t.Run(name, func(t *testing.T) {
			var corrected cpuTime
			var got stats.CPUStat
			for i := range c.guest {
				got = stats.CPUStat{UsageUsec: c.guest[i], UserUsec: c.guest[i]}
				corrected.correct(&got, c.machine[i])
			}
			if got.UsageUsec != c.want || got.UserUsec != c.want {
				t.Errorf("%d µs, user %d, want %d", got.UsageUsec, got.UserUsec, c.want)
			}
		})
	}
}
