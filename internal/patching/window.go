// Package patching says which pods are to be recycled because their nodes are old, in which order and when, in the words of
// Amazon EKS (facts 6: user guide, fargate-pod-patching). Pure: the time is handed in.
package patching

import (
	"fmt"
	"slices"
	"strings"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/api/v1alpha1"
)

const (
	clock = "15:04"
	day   = 24 * time.Hour
	week  = 7
)

// Days are the names of the days of the week, as time.Weekday counts them.
var Days = []string{"Sun", "Mon", "Tue", "Wed", "Thu", "Fri", "Sat"}

// Open is the opening of the window that is open at the time, or else the next one; open tells which. No window is always open.
func Open(w *v1alpha1.MaintenanceWindow, at time.Time) (opening time.Time, open bool) {
	if w == nil {
		return at, true
	}
	start, err := time.Parse(clock, w.Start)
	if err != nil { // the API server let nothing else pass
		return at.Add(day), false
	}
	at = at.UTC()
	midnight := time.Date(at.Year(), at.Month(), at.Day(), 0, 0, 0, 0, time.UTC)
	for i := -1; i <= week; i++ { // one that opened yesterday may still be open
		begins := midnight.AddDate(0, 0, i).Add(time.Duration(start.Hour())*time.Hour + time.Duration(start.Minute())*time.Minute)
		if len(w.Days) > 0 && !slices.Contains(w.Days, Days[begins.Weekday()]) || !at.Before(begins.Add(w.Duration.Duration)) {
			continue
		}
		return begins, !at.Before(begins)
	}
	return at.Add(week * day), false
}

// Termination is when a pod is terminated that could not be evicted now: after the delay, and while the window is open.
func Termination(w *v1alpha1.MaintenanceWindow, delay time.Duration, now time.Time) time.Time {
	at := now.Add(delay)
	if opening, open := Open(w, at); !open {
		return opening
	}
	return at
}

// ParseWindow reads "03:00/4h" or "Sun,Wed 03:00/4h".
func ParseWindow(text string) (*v1alpha1.MaintenanceWindow, error) {
	fail := func(what string) error {
		return fmt.Errorf("window %q: %s; write it as \"Sun,Wed 03:00/4h\" (UTC), without days for every day", text, what)
	}
	days, rest, found := strings.Cut(text, " ")
	if !found {
		days, rest = "", text
	}
	start, length, found := strings.Cut(rest, "/")
	if !found {
		return nil, fail("it has no duration")
	}
	if at, err := time.Parse(clock, start); err != nil || at.Format(clock) != start {
		return nil, fail("it does not start at a time")
	}
	duration, err := time.ParseDuration(length)
	if err != nil || duration <= 0 || duration > day {
		return nil, fail("its duration is not between 0 and 24h")
	}
	w := &v1alpha1.MaintenanceWindow{Start: start, Duration: metav1.Duration{Duration: duration}}
	for name := range strings.SplitSeq(days, ",") {
		if days == "" {
			break
		}
		if !slices.Contains(Days, name) {
			return nil, fail("no day is called " + name)
		}
		w.Days = append(w.Days, name)
	}
	return w, nil
}
