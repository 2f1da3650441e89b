package shim

import stats "github.com/containerd/cgroups/v3/cgroup2/stats"

// cpuSlack is how much processor time, in microseconds, a container may take earlier or later than its machine: the two are not measured in the same moment.
const cpuSlack = 100_000

// cpuTime corrects the processor time of a container. A guest does not know when the pod's control group keeps its processors from running, and takes
// that for work: a container that computes all the time in a pod of a quarter of a CPU would seem to take a whole one. No container takes more than its
// machine does.
type cpuTime struct {
	guest, machine uint64 // when it was last corrected
	owed, credit   uint64 // what the container took and the machine did not, yet; and the other way round
	usage          uint64
}

// correct corrects c, given the processor time of the machine, in microseconds.
func (t *cpuTime) correct(c *stats.CPUStat, machine uint64) {
	if c.UsageUsec < t.guest || machine < t.machine {
		return // it is another container, or another group: leave it as it is
	}
	t.credit += machine - t.machine
	t.owed += c.UsageUsec - t.guest
	took := min(t.owed, t.credit)
	t.owed, t.credit = min(t.owed-took, cpuSlack), min(t.credit-took, cpuSlack)
	t.guest, t.machine = c.UsageUsec, machine
	t.usage += took
	if c.UsageUsec > 0 {
		share := float64(t.usage) / float64(c.UsageUsec)
		c.UserUsec, c.SystemUsec = uint64(float64(c.UserUsec)*share), uint64(float64(c.SystemUsec)*share)
	}
	c.UsageUsec = t.usage
}
