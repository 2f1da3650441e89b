package still

import (
	"errors"
	"testing"
	"time"
)

// TestAnswer: an answer is given once more as long as the pod did next to nothing, and never when something happened.
func TestAnswer(t *testing.T) {
	broken := errors.New("the cgroup is gone")
	for name, c := range map[string]struct {
		later  time.Duration
		taken  uint64 // nanoseconds meanwhile
		cpuErr error
		askErr error // of the first question
		event  bool
		asked  int
	}{
		"nothing":                   {later: 10 * time.Second, asked: 1},
		"what a machine always has": {later: 4 * time.Minute, taken: 400e6, asked: 1},
		"some work":                 {later: 10 * time.Second, taken: 100e6, asked: 2},
		"some work, slowly":         {later: 4 * time.Minute, taken: 600e6, asked: 2},
		"some work at once":         {later: time.Millisecond, taken: 51e6, asked: 2},
		"too long":                  {later: 5 * time.Minute, asked: 2},
		"a container ended":         {later: time.Second, event: true, asked: 2},
		"use not known":             {later: time.Second, cpuErr: broken, asked: 2},
		"no answer":                 {later: time.Second, askErr: broken, asked: 2},
	} {
		t.Run(name, func(t *testing.T) {
			now, taken, asked := time.Now(), uint64(5e9), 0
			var cpuErr error
			change := uint64(7)
			s := New[[]int](5*time.Minute, func() (uint64, error) { return taken, cpuErr })
			s.now = func() time.Time { return now }
			get := func(failed error) {
				got, err := s.Get(change, func() ([]int, error) {
					asked++
					taken += 500e6 // to answer costs the pod something, too
					return []int{1}, failed
				})
				if len(got) != 1 || !errors.Is(err, failed) {
					t.Errorf("got %v, %v", got, err)
				}
			}
			get(c.askErr)
			now, taken, cpuErr = now.Add(c.later), taken+c.taken, c.cpuErr
			if c.event {
				change++
			}
			get(nil)
			if asked != c.asked {
				t.Errorf("asked %d times, want %d", asked, c.asked)
			}
		})
	}
}
