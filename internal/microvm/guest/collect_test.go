package guest

import (
	"runtime"
	"runtime/debug"
	"testing"
)

// piece of garbage, in bytes.
const piece = 64 << 10

// TestCollectOnDemand: the heap may double, however much of it lives, and then its garbage is collected.
func TestCollectOnDemand(t *testing.T) {
	collectOnDemand()
	const garbage, tolerance = 256 << 20, 1 << 20
	for _, live := range []int64{0, 32 << 20, 0} {
		kept := pieces(int(live / piece))
		collect()
		lives, besides := heap()
		if lives < live || lives > live+leastHeap {
			t.Fatalf("%d KiB live, where the test has %d and little else does", lives>>10, live>>10)
		}
		if got, want := debug.SetMemoryLimit(-1)-besides, max(leastHeap, 2*lives); got < want-tolerance || got > want+tolerance {
			t.Errorf("with %d KiB that live the heap may grow to %d KiB, not %d", lives>>10, got>>10, want>>10)
		}
		before := collections()
		for range garbage / piece {
			pieces(1)
		}
		if collections() == before {
			t.Errorf("%d MiB of garbage are not collected", garbage>>20)
		}
		runtime.KeepAlive(kept)
	}
}

// collect returns when the limit follows what lives: finalizers run one after another, those of the first collection before that of the second.
func collect() {
	for range 2 {
		done := make(chan struct{})
		runtime.SetFinalizer(new(sentinel), func(*sentinel) { close(done) })
		runtime.GC()
		<-done
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
