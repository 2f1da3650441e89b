package agent

import (
	"bufio"
	"encoding/json"
	"net"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

// TestCorrectClock: what is wrong with certainty is corrected, and not more.
func TestCorrectClock(t *testing.T) {
	const delay = 40 * time.Millisecond // of each answer, half of which is in doubt
	for name, c := range map[string]struct {
		off     time.Duration
		correct bool
	}{
		"an hour ahead":        {time.Hour, true},
		"an hour behind":       {-time.Hour, true},
		"less than is certain": {5 * time.Millisecond, false},
	} {
		t.Run(name, func(t *testing.T) {
			corrections := make(chan time.Duration, 1)
			client := guest(t, "", func(r guestapi.Request, _ *bufio.Reader, out net.Conn) {
				if r.Clock.Add != 0 {
					corrections <- time.Duration(r.Clock.Add)
				}
				time.Sleep(delay / 2)
				now := time.Now().Add(c.off)
				time.Sleep(delay / 2)
				_ = json.NewEncoder(out).Encode(guestapi.Response{UnixNano: now.UnixNano()})
			})
			ahead, err := client.CorrectClock(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			select {
			case added := <-corrections:
				if left := c.off + added; !c.correct || added != -ahead || left.Abs() > time.Second || added.Abs() >= c.off.Abs() {
					t.Errorf("%v was added, %v told", added, ahead)
				}
			default:
				if c.correct || ahead != 0 {
					t.Errorf("nothing was corrected, %v told", ahead)
				}
			}
		})
	}
}
