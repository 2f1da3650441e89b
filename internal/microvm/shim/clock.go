package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// clockPeriod is how often a guest's clock is compared with the host's. Emulated processors drift by some 6 ms in that time, at worst.
	clockPeriod = time.Minute
	// clockLimit bounds one comparison: a guest that takes longer does not answer. It is asked again after clockPause.
	clockLimit, clockPause = 10 * time.Second, 5 * time.Second
	// clockNotable is a correction that is logged.
	clockNotable = time.Second
)

// hostClock ticks once in a period of the host's time of day, and at once when that jumps: somebody has set it, or the host was suspended.
type hostClock struct {
	timer  *os.File
	period time.Duration
}

func newHostClock(period time.Duration) (*hostClock, error) {
	fd, err := unix.TimerfdCreate(unix.CLOCK_REALTIME, unix.TFD_CLOEXEC|unix.TFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("watch the host's clock: %w", err)
	}
	return &hostClock{os.NewFile(uintptr(fd), "clock"), period}, nil
}

// tick returns at the next tick, or with an error once the clock is closed.
func (c *hostClock) tick() error {
	control, err := c.timer.SyscallConn()
	if err != nil {
		return err
	}
	next := unix.ItimerSpec{Value: unix.NsecToTimespec(time.Now().Add(c.period).UnixNano())}
	var set error
	err = control.Control(func(fd uintptr) {
		set = unix.TimerfdSettime(int(fd), unix.TFD_TIMER_ABSTIME|unix.TFD_TIMER_CANCEL_ON_SET, &next, nil)
	})
	if errors.Is(set, unix.ECANCELED) {
		return nil // it has jumped since the last tick
	}
	if err = errors.Join(err, set); err != nil {
		return fmt.Errorf("watch the host's clock: %w", err)
	}
	var times [8]byte
	if _, err = c.timer.Read(times[:]); errors.Is(err, unix.ECANCELED) {
		return nil // it has jumped
	}
	return err
}

func (c *hostClock) Close() error { return c.timer.Close() }

// keepClock keeps the guest's clock right until the host's is closed. A guest that does not answer is asked again until it does.
func (p *pod) keepClock(host *hostClock) {
	for host.tick() == nil {
		for !p.correctClock() {
			select {
			case <-p.guest.Done(): // the machine has ended
				return
			case <-time.After(clockPause):
			}
		}
	}
}

// correctClock sets the guest's clock if it is wrong. It is false if the guest does not answer, or cannot.
func (p *pod) correctClock() bool {
	if p.health.standsStill() {
		return false
	}
	answered := p.health.asking()
	ctx, cancel := context.WithTimeout(context.Background(), clockLimit)
	defer cancel()
	ahead, err := p.guest.CorrectClock(ctx)
	if err == nil && ahead.Abs() >= clockNotable {
		logger().Info("set the guest's clock", "ahead", ahead)
	}
	silent := errors.Is(err, context.DeadlineExceeded)
	answered(!silent)
	if err != nil && !silent {
		logger().Warn("compare the guest's clock with the host's", "error", err)
	}
	return !silent
}
