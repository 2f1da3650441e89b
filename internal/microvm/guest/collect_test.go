package guest

import (
	"runtime"
	"testing"
)

// piece of garbage, in bytes.
const piece = 64 << 10

// TestCollectOnDemand: garbage is collected about as often as Go would by its percentage of 100, however much lives.
func TestCollectOnDemand(t *testing.T) {
	collectOnDemand()
	const garbage = 256 << 20
	for _, live := range []int{0, 32 << 20, 0} {
		kept := pieces(live / piece)
		runtime.GC()
		before := collections()
		for range garbage / piece {
			pieces(1)
		}
		took := collections() - before
		each := max(leastHeap, live)
		if usual := uint32(garbage / each); took < usual/4 || took > 4*usual {
			t.Errorf("with %d MiB that live, %d MiB of garbage are collected %d times, not some %d", live>>20, garbage>>20, took, usual)
		}
		runtime.KeepAlive(kept)
	}
}

// pieces are on the heap.
func pieces(n int) [][]byte {
	var all [][]byte
	for range n {
		all = append(all, make([]byte, piece))
	}
	return all
}

func collections() uint32 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.NumGC
}
