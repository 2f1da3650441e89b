package patching

import (
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berth-run/berth/api/v1alpha1"
)

// at is a time of the week that begins on Sunday, 1 February 2026.
func at(t *testing.T, text string) time.Time {
	t.Helper()
	out, err := time.Parse("2 15:04", text)
	if err != nil {
		t.Fatal(err)
	}
	return time.Date(2026, 2, out.Day(), out.Hour(), out.Minute(), 0, 0, time.UTC)
}

func window(t *testing.T, text string) *v1alpha1.MaintenanceWindow {
	t.Helper()
	w, err := ParseWindow(text)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

func TestOpen(t *testing.T) {
	tests := map[string]struct {
		window, at, opening string
		open                bool
	}{
		"before it":                        {"Sun 03:00/4h", "1 02:59", "1 03:00", false},
		"as it opens":                      {"Sun 03:00/4h", "1 03:00", "1 03:00", true},
		"in it":                            {"Sun 03:00/4h", "1 06:59", "1 03:00", true},
		"as it closes":                     {"Sun 03:00/4h", "1 07:00", "8 03:00", false},
		"the next of its days":             {"Sun,Wed 03:00/4h", "2 12:00", "4 03:00", false},
		"every day":                        {"03:00/4h", "2 12:00", "3 03:00", false},
		"past midnight":                    {"Sat 22:00/4h", "8 01:00", "7 22:00", true},
		"past midnight, closed":            {"Sat 22:00/4h", "8 02:00", "14 22:00", false},
		"a whole day, every day, has none": {"00:00/24h", "5 00:00", "5 00:00", true},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			opening, open := Open(window(t, test.window), at(t, test.at))
			if !opening.Equal(at(t, test.opening)) || open != test.open {
				t.Errorf("opens %s, open %t, want %s, %t", opening, open, test.opening, test.open)
			}
		})
	}
	if opening, open := Open(nil, at(t, "1 00:00")); !open || !opening.Equal(at(t, "1 00:00")) {
		t.Error("no window is not always open")
	}
}

func TestTermination(t *testing.T) {
	if got := Termination(nil, 72*time.Hour, at(t, "1 03:00")); !got.Equal(at(t, "4 03:00")) {
		t.Errorf("facts 6: three days later is %s", got)
	}
	if got := Termination(window(t, "Sun 03:00/4h"), 72*time.Hour, at(t, "1 03:00")); !got.Equal(at(t, "8 03:00")) {
		t.Errorf("the first window after the delay is %s", got)
	}
	if got := Termination(window(t, "03:00/4h"), 25*time.Hour, at(t, "1 03:00")); !got.Equal(at(t, "2 04:00")) {
		t.Errorf("inside a window the delay is %s", got)
	}
}

func TestParseWindow(t *testing.T) {
	for text, want := range map[string]string{
		"03:00":            `window "03:00": it has no duration; write it as "Sun,Wed 03:00/4h" (UTC), without days for every day`,
		"3:00/4h":          `window "3:00/4h": it does not start at a time; write it as "Sun,Wed 03:00/4h" (UTC), without days for every day`,
		"03:00/25h":        `window "03:00/25h": its duration is not between 0 and 24h; write it as "Sun,Wed 03:00/4h" (UTC), without days for every day`,
		"Sunday 03:00/4h":  `window "Sunday 03:00/4h": no day is called Sunday; write it as "Sun,Wed 03:00/4h" (UTC), without days for every day`,
		"Sun,Wed 03:00/4h": "",
	} {
		got := ""
		if _, err := ParseWindow(text); err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: got %q, want %q", text, got, want)
		}
	}
}

// FuzzWindow: any window that is accepted has an opening that is open, or comes within eight days.
func FuzzWindow(f *testing.F) {
	f.Add("Sun,Wed 03:00/4h", int64(1_770_000_000))
	f.Add("23:59/24h", int64(0))
	f.Fuzz(func(t *testing.T, text string, seconds int64) {
		w, err := ParseWindow(text)
		if err != nil || seconds < 0 || seconds > 1<<40 {
			return
		}
		now := time.Unix(seconds, 0)
		opening, open := Open(w, now)
		if open != !opening.After(now) || open && !now.Before(opening.Add(w.Duration.Duration)) || opening.Sub(now) > 8*day {
			t.Fatalf("at %s window %q opens %s, open %t", now, text, opening, open)
		}
	})
}

// cluster has a host of version v2 with one pod in each of two zones, and one host that tells no version.
func cluster() ([]corev1.Pod, []v1alpha1.Berth, []v1alpha1.Host) {
	var pods []corev1.Pod
	var berths []v1alpha1.Berth
	for _, p := range []struct {
		uid                 types.UID
		zone, host, version string
		phase               corev1.PodPhase
	}{
		{"b-old", "b", "h", "v1", corev1.PodRunning}, {"a-old", "a", "h", "v1", corev1.PodRunning}, {"a-new", "a", "h", "v2", corev1.PodRunning},
		{"a-done", "a", "h", "v1", corev1.PodSucceeded}, {"a-unknown", "a", "h", "", corev1.PodPending}, {"a-silent", "a", "silent", "v1", corev1.PodRunning},
	} {
		pods = append(pods, corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: string(p.uid), UID: p.uid, CreationTimestamp: metav1.NewTime(time.Unix(100, 0))},
			Status: corev1.PodStatus{Phase: p.phase}})
		berths = append(berths, v1alpha1.Berth{Spec: v1alpha1.BerthSpec{Pod: v1alpha1.PodReference{UID: p.uid}, Zone: p.zone, HostName: p.host, ProfileName: "web"},
			Status: v1alpha1.BerthStatus{NodeVersion: p.version}})
	}
	hosts := []v1alpha1.Host{{ObjectMeta: metav1.ObjectMeta{Name: "h"}, Status: v1alpha1.HostStatus{NodeVersion: "v2"}}, {ObjectMeta: metav1.ObjectMeta{Name: "silent"}}}
	return pods, berths, hosts
}

func names(subjects []Subject) string {
	out := ""
	for _, s := range subjects {
		out += s.Pod.Name + " "
	}
	return out
}

func TestSubjects(t *testing.T) {
	pods, berths, hosts := cluster()
	for name, test := range map[string]struct {
		which v1alpha1.PatchPods
		began int64
		want  string
	}{
		"facts 6: those created before the notification, by zone": {v1alpha1.PatchOutdated, 101, "a-old b-old "},
		"facts 6: those created after it stay":                    {v1alpha1.PatchOutdated, 100, ""},
		"all, but those that have ended":                          {v1alpha1.PatchAll, 101, "a-new a-old a-silent a-unknown b-old "},
	} {
		if got := names(Subjects(test.which, pods, berths, hosts, time.Unix(test.began, 0))); got != test.want {
			t.Errorf("%s: got %q, want %q", name, got, test.want)
		}
	}
}

// TestZone: facts 6, by Availability Zone: one after another, and what is blocked holds nobody up.
func TestZone(t *testing.T) {
	pods, berths, hosts := cluster()
	subjects := Subjects(v1alpha1.PatchOutdated, pods, berths, hosts, time.Unix(101, 0))
	if z := Zone(subjects); z != "a" {
		t.Errorf("the first zone is %q", z)
	}
	subjects[0].Berth.Annotations = map[string]string{v1alpha1.AnnotationScheduledTermination: "2026-02-01T03:00:00Z"}
	if z := Zone(subjects); z != "b" || Blocked(subjects) != 1 {
		t.Errorf("when zone a is blocked the next is %q, blocked are %d", z, Blocked(subjects))
	}
	subjects[0].Pod.DeletionTimestamp = &metav1.Time{}
	if z := Zone(subjects); z != "a" || Blocked(subjects) != 0 {
		t.Errorf("while a pod of zone a ends the zone is %q, blocked are %d", z, Blocked(subjects))
	}
}

func TestNotice(t *testing.T) {
	pods, berths, hosts := cluster()
	s := Subjects(v1alpha1.PatchOutdated, pods, berths, hosts, time.Unix(101, 0))[0]
	when := time.Date(2021, 6, 30, 12, 52, 44, 832_900_000, time.UTC)
	n := NoticeOf("berth", s, "Cannot evict pod as it would violate the pod's disruption budget.", when)
	const text = "EKS Fargate Pod Scheduled Termination: Cannot evict pod as it would violate the pod's disruption budget. scheduledTerminationTime: 2021-06-30T12:52:44.832Z[UTC]"
	if n.String() != text {
		t.Errorf("facts 6: got %q, want %q", n, text)
	}
	const detail = `{"clusterName":"berth","fargateProfileName":"web","podName":"a-old","podNamespace":"default","evictErrorMessage":"Cannot evict pod as it would violate the pod's disruption budget","scheduledTerminationTime":"2021-06-30T12:52:44.832Z[UTC]"}`
	if n.JSON() != detail {
		t.Errorf("facts 6: got %s, want %s", n.JSON(), detail)
	}
	if got := Notification(s, when); got != "Any pods created before 2021-06-30T12:52:44Z are subject to eviction: the pod's node has version v1, its host makes v2 now" {
		t.Errorf("got %q", got)
	}
}
