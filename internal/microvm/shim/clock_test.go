package shim

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestHostClock moves the machine's clock, by a nanosecond: only root can.
func TestHostClock(t *testing.T) {
	ticks := func(period time.Duration) (*hostClock, chan error) {
		clock, err := newHostClock(period)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { clock.Close() })
		out := make(chan error)
		go func() {
			for {
				err := clock.tick()
				out <- err
				if err != nil {
					return
				}
			}
		}()
		return clock, out
	}
	clock, out := ticks(time.Millisecond)
	for range 3 {
		if err := <-out; err != nil {
			t.Fatal(err)
		}
	}
	clock.Close()
	for err := range out { // a tick may have been on its way
		if err != nil {
			break
		}
	}
	_, out = ticks(time.Hour)
	for {
		// A jump before the timer is set is not seen: it is made until it is.
		if _, err := unix.Adjtimex(&unix.Timex{Modes: unix.ADJ_SETOFFSET | unix.ADJ_NANO, Time: unix.Timeval{Usec: 1}}); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-out:
			if err != nil {
				t.Error(err)
			}
			return
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// TestHostClockJumpsBetweenTicks: that is a tick, too, and not the last.
func TestHostClockJumpsBetweenTicks(t *testing.T) {
	clock, err := newHostClock(time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	defer clock.Close()
	for range 3 {
		if err := clock.tick(); err != nil {
			t.Fatal(err)
		}
		if _, err := unix.Adjtimex(&unix.Timex{Modes: unix.ADJ_SETOFFSET | unix.ADJ_NANO, Time: unix.Timeval{Usec: 1}}); err != nil {
			t.Fatal(err)
		}
	}
}
