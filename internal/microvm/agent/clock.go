package agent

import (
	"context"
	"time"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

const (
	// clockTries is how often the guest is asked for its time; the quickest answer counts.
	clockTries = 4
	// clockGood is an answer that is quick enough.
	clockGood = time.Millisecond
)

// CorrectClock compares the guest's clock with the host's and corrects what is certain to be wrong of it: not more than the time that the answer took
// leaves open. It returns how far the guest was ahead, at least; 0 if it may be right.
func (c *Client) CorrectClock(ctx context.Context) (time.Duration, error) {
	ahead, doubt, err := c.compareClocks(ctx)
	if err != nil {
		return 0, err
	}
	switch {
	case ahead > doubt:
		ahead -= doubt
	case ahead < -doubt:
		ahead += doubt
	default:
		return 0, nil
	}
	_, err = c.clock(ctx, -ahead)
	return ahead, err
}

// compareClocks tells how far the guest's clock is ahead, and how far that may be wrong in either direction.
func (c *Client) compareClocks(ctx context.Context) (ahead, doubt time.Duration, err error) {
	for try := range clockTries {
		asked := time.Now()
		guest, err := c.clock(ctx, 0)
		if err != nil {
			return 0, 0, err
		}
		half := time.Since(asked) / 2
		if try == 0 || half < doubt {
			// Without the monotonic clock: the host's time may have been set.
			ahead, doubt = guest.Sub(asked.Round(0))-half, half
		}
		if doubt <= clockGood {
			break
		}
	}
	return ahead, doubt, nil
}

// clock corrects the guest's clock by d, and tells its time before that.
func (c *Client) clock(ctx context.Context, d time.Duration) (time.Time, error) {
	s, response, err := c.request(ctx, guestapi.Request{Op: guestapi.OpClock, Clock: &guestapi.Correction{Add: d.Nanoseconds()}})
	if err != nil {
		return time.Time{}, err
	}
	return time.Unix(0, response.UnixNano), s.Close()
}
