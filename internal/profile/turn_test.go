package profile

import (
	"slices"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berth-run/berth/api/v1alpha1"
)

// staged is a profile that was created, and perhaps deleted, so many seconds after the epoch.
func staged(name string, status v1alpha1.ProfileStatus, created, deleted int64) v1alpha1.FargateProfile {
	p := active(name, v1alpha1.Selector{Namespace: "*"})
	p.Status.Status = status
	p.CreationTimestamp = metav1.NewTime(time.Unix(created, 0))
	if deleted > 0 {
		at := metav1.NewTime(time.Unix(deleted, 0))
		p.DeletionTimestamp = &at
	}
	return p
}

func TestAhead(t *testing.T) {
	started := staged("z", v1alpha1.ProfileDeleting, 1, 20)
	started.Status.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionReady, Reason: ReasonDeleting}}
	tests := map[string]struct {
		p      v1alpha1.FargateProfile
		others []v1alpha1.FargateProfile
		want   string
	}{
		"facts 1.6: a create waits for one that is CREATING": {staged("x", "", 10, 0), []v1alpha1.FargateProfile{staged("z", v1alpha1.ProfileCreating, 5, 0)},
			"Cannot create Fargate Profile x because cluster y currently has Fargate profile z in status CREATING"},
		"facts 1.5: a create waits for one that is DELETING": {staged("x", "", 10, 0), []v1alpha1.FargateProfile{staged("z", v1alpha1.ProfileActive, 1, 5)},
			"Cannot create Fargate Profile x because cluster y currently has Fargate profile z in status DELETING"},
		"facts 1.6: a delete waits for one that is DELETING": {staged("x", v1alpha1.ProfileActive, 1, 10), []v1alpha1.FargateProfile{staged("z", v1alpha1.ProfileActive, 1, 5)},
			"Cannot Delete Fargate Profile x because cluster y currently has Fargate profile z in status DELETING"},
		"the one asked for later does not go first":      {staged("x", "", 10, 0), []v1alpha1.FargateProfile{staged("z", "", 11, 0)}, ""},
		"in one second the name decides":                 {staged("x", "", 10, 0), []v1alpha1.FargateProfile{staged("z", "", 10, 0)}, ""},
		"a deletion that has begun goes first":           {staged("x", "", 10, 0), []v1alpha1.FargateProfile{started}, "Cannot create Fargate Profile x because cluster y currently has Fargate profile z in status DELETING"},
		"ACTIVE and failed profiles block nobody":        {staged("x", "", 10, 0), []v1alpha1.FargateProfile{staged("a", v1alpha1.ProfileActive, 1, 0), staged("b", v1alpha1.ProfileCreateFailed, 1, 0), staged("c", v1alpha1.ProfileDeleteFailed, 1, 2)}, ""},
		"one that failed and is mended waits for others": {staged("x", v1alpha1.ProfileCreateFailed, 1, 0), []v1alpha1.FargateProfile{staged("z", "", 5, 0)}, "Cannot create Fargate Profile x because cluster y currently has Fargate profile z in status CREATING"},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			got := ""
			if ahead := Ahead(&test.p, append(test.others, test.p)); ahead != nil {
				got = MessageCannotCreate(test.p.Name, "y", ahead)
				if test.p.DeletionTimestamp != nil {
					got = MessageCannotDelete(test.p.Name, "y", ahead)
				}
			}
			if got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
}

// TestAheadLeavesOneTurn: whatever is under way, exactly one profile has nobody ahead of it.
func TestAheadLeavesOneTurn(t *testing.T) {
	all := []v1alpha1.FargateProfile{staged("a", "", 3, 0), staged("b", v1alpha1.ProfileActive, 1, 3), staged("c", "", 2, 0), staged("d", v1alpha1.ProfileActive, 1, 2)}
	turns := 0
	for i := range all {
		if Ahead(&all[i], all) == nil {
			turns++
		}
	}
	if turns != 1 {
		t.Errorf("%d profiles may go on at once", turns)
	}
}

func TestBusy(t *testing.T) {
	all := []v1alpha1.FargateProfile{staged("a", v1alpha1.ProfileActive, 1, 0), staged("c", "", 3, 0), staged("b", v1alpha1.ProfileActive, 1, 2)}
	if got := Busy("x", all); got == nil || got.Name != "b" {
		t.Errorf("got %+v, want what was asked for first", got)
	}
	if got := Busy("c", all[:2]); got != nil {
		t.Errorf("%s is in its own way", got.Name)
	}
}

func TestQuotaOfProfiles(t *testing.T) {
	var all []v1alpha1.FargateProfile
	for _, name := range []string{"a", "b", "c"} {
		all = append(all, staged(name, v1alpha1.ProfileActive, 1, 0))
	}
	failed, deleting := staged("f", v1alpha1.ProfileCreateFailed, 1, 0), staged("g", v1alpha1.ProfileActive, 1, 2)
	and := func(more ...v1alpha1.FargateProfile) []v1alpha1.FargateProfile { return slices.Concat(all, more) }
	q := Quotas{Profiles: 4}
	tests := map[string]struct {
		p        v1alpha1.FargateProfile
		others   []v1alpha1.FargateProfile
		exceeded bool
	}{
		"facts 1.3: the last one that fits":           {staged("n", "", 9, 0), all, false},
		"facts 1.3: one more":                         {staged("n", "", 9, 0), and(staged("m", v1alpha1.ProfileActive, 1, 0)), true},
		"a failed one does not count":                 {staged("n", "", 9, 0), and(failed), false},
		"one that is being deleted counts":            {staged("n", "", 9, 0), and(deleting), true},
		"of two new ones the older fits":              {staged("n", "", 9, 0), and(staged("m", "", 10, 0)), false},
		"of two new ones the younger does not":        {staged("n", "", 9, 0), and(staged("m", "", 8, 0)), true},
		"a quota that is lowered ends no ACTIVE ones": {staged("n", v1alpha1.ProfileActive, 9, 0), and(staged("m", v1alpha1.ProfileActive, 1, 0)), false},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			if got := q.Exceeded(&test.p, "y", append(test.others, test.p)); (got != "") != test.exceeded {
				t.Errorf("got %q", got)
			}
		})
	}
}
