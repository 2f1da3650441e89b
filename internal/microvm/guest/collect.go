package guest

import (
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// leastHeap is what the heap may grow to before its garbage is collected, in bytes, however little of it lives: Go's own minimum.
const leastHeap = 4 << 20

// collectOnDemand has garbage collected when the heap has doubled, as always, but not also every two minutes: in an idle guest there is nothing to collect, and an
// emulated processor that does it nevertheless costs the host 3 MB of translated code and a third of what an idle machine computes.
//
// Go collects by the clock unless its percentage is off. Then a limit of memory is what makes it collect, and that is set anew after each time.
func collectOnDemand() {
	debug.SetGCPercent(-1)
	limit()
	runtime.SetFinalizer(new(sentinel), again)
}

// sentinel is garbage at each collection.
type sentinel struct{ _ *byte }

func again(s *sentinel) {
	limit()
	runtime.SetFinalizer(s, again)
}

// limit is what Go has besides the heap, and twice the heap that lives.
func limit() {
	live, besides := heap()
	debug.SetMemoryLimit(besides + max(leastHeap, 2*live))
}

// heap is what lived of it when it was last collected, and what Go has besides, in bytes.
func heap() (live, besides int64) {
	samples := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/unused:bytes"}, {Name: "/memory/classes/heap/free:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(samples)
	value := func(i int) int64 { return int64(samples[i].Value.Uint64()) }
	return value(0), value(1) - value(2) - value(3) - value(4) - value(5)
}
