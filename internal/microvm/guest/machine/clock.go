package machine

import (
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

const (
	// stepAt is the most that the kernel corrects little by little, in nanoseconds (MAXPHASE).
	stepAt = int64(500 * time.Millisecond)
	// loopConstant makes the kernel's phase-locked loop correct a 32nd of what is wrong in each second, and settle within some ten corrections
	// that are a minute apart.
	loopConstant = 3
)

// setClock sets the time of day.
func setClock(c guestapi.Clock) error {
	now := unix.NsecToTimespec(c.UnixNano)
	if err := unix.ClockSettime(unix.CLOCK_REALTIME, &now); err != nil {
		return fmt.Errorf("set the clock: %w", err)
	}
	return nil
}

// CorrectClock corrects the time of day, and tells what it was. The kernel learns from small corrections how fast the clock is.
func CorrectClock(c guestapi.Correction) (time.Time, error) {
	now := time.Now()
	if c.Add == 0 {
		return now, nil
	}
	request := unix.Timex{Modes: unix.ADJ_NANO | unix.ADJ_STATUS | unix.ADJ_TIMECONST | unix.ADJ_OFFSET,
		Status: unix.STA_PLL, Constant: loopConstant, Offset: c.Add}
	if c.Add >= stepAt || c.Add <= -stepAt {
		// The part of a second is never negative.
		seconds, rest := c.Add/int64(time.Second), c.Add%int64(time.Second)
		if rest < 0 {
			seconds, rest = seconds-1, rest+int64(time.Second)
		}
		request = unix.Timex{Modes: unix.ADJ_NANO | unix.ADJ_SETOFFSET, Time: unix.Timeval{Sec: seconds, Usec: rest}}
	}
	if _, err := unix.Adjtimex(&request); err != nil {
		return now, fmt.Errorf("correct the clock by %v: %w", time.Duration(c.Add), err)
	}
	return now, nil
}
