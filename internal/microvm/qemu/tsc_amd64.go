package qemu

import (
	"context"
	"math"
	"time"
)

// readTSC reads the processor's time stamp counter.
func readTSC() uint64

const (
	tscInterval = 200 * time.Millisecond
	tscReadings = 9
)

// tscKHz measures the rate of the time stamp counter against the clock, to well below a millionth. Under emulation the guest's counter
// is the host's, and a guest that is told the rate need not find it out by a timer that emulation makes unreliable.
func tscKHz(ctx context.Context) (int, error) {
	began, first := readBoth()
	select {
	case <-time.After(tscInterval):
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	ended, last := readBoth()
	return int(math.Round(float64(last-first) / (float64(ended.Sub(began)) / float64(time.Millisecond)))), nil
}

// readBoth takes the reading that was least disturbed: the one between whose two looks at the counter the least time passed.
func readBoth() (at time.Time, tsc uint64) {
	shortest := uint64(math.MaxUint64)
	for range tscReadings {
		before := readTSC()
		now := time.Now()
		after := readTSC()
		if after-before < shortest {
			shortest, at, tsc = after-before, now, before+(after-before)/2
		}
	}
	return at, tsc
}
