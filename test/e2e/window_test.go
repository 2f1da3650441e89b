package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestMaintenanceWindow patches all pods in a window that opens at the next full minute: nothing happens before, then zone by zone, as budgets
// allow, with the notices of EKS (facts 6). A pod whose budget never allows it goes at its scheduled termination.
func TestMaintenanceWindow(t *testing.T) {
	apply(t, "window.yaml")
	for _, name := range []string{"window", "window-kept"} {
		kubectl(t, "rollout", "status", "deployment/"+name, "--timeout=90s")
	}
	pods := func(app string) []string {
		return strings.Fields(kubectl(t, "get", "pods", "-l", "app="+app, "-o", `jsonpath={range .items[?(@.status.phase=="Running")]}{.metadata.name}{"\n"}{end}`))
	}
	before, kept := pods("window"), pods("window-kept")
	if len(before) != 2 || len(kept) != 1 {
		t.Fatalf("pods %q and %q run, want two and one", before, kept)
	}
	for app, most := range map[string]string{"window": "1", "window-kept": "0"} { // what the budgets' controller has counted
		shows(t, most, "get", "pdb", app, "-o", "jsonpath={.status.disruptionsAllowed}")
	}
	opens := time.Now().UTC().Add(30 * time.Second).Truncate(time.Minute).Add(time.Minute)
	t.Cleanup(func() { kubectl(t, "delete", "patch", "window", "--ignore-not-found") })
	if out, err := berth("patch", "--all", "--name", "window", "--window", opens.Format("15:04")+"/30m", "--termination-delay", "5s"); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	shows(t, "Waiting OutsideWindow the window opens at "+opens.Format(time.RFC3339), "get", "patch", "window", "-o",
		"jsonpath={.status.phase} {.status.conditions[0].reason} {.status.conditions[0].message}")
	if now := pods("window"); time.Now().Before(opens) && strings.Join(now, " ") != strings.Join(before, " ") {
		t.Errorf("before the window opens pods %q became %q", before, now)
	}
	time.Sleep(time.Until(opens))
	fewest := 2
	eventually(t, func() string {
		available, _ := strconv.Atoi(kubectl(t, "get", "deployment", "window", "-o", "jsonpath={.status.availableReplicas}")) // nothing is none
		fewest = min(fewest, available)
		now := strings.Join(pods("window"), " ")
		if len(strings.Fields(now)) < 2 || strings.Contains(now, before[0]) || strings.Contains(now, before[1]) {
			return fmt.Sprintf("pods %q became %q", before, now)
		}
		return ""
	})
	if fewest < 1 {
		t.Error("the budget was not kept: no pod was available for a time")
	}
	events := func(reason, of string) []string {
		return []string{"get", "events", "--field-selector", "reason=" + reason + ",involvedObject.name=" + of, "-o", "jsonpath={.items[*].message}"}
	}
	for _, pod := range append(before, kept...) {
		shows(t, "Any pods created before ", events("PatchNotification", pod)...)
	}
	if when := kubectl(t, "get", "events", "--field-selector", "reason=PatchNotification,involvedObject.name="+kept[0], "-o", "jsonpath={.items[0].firstTimestamp}"); when < opens.Format(time.RFC3339) {
		t.Errorf("the notice came at %s, before the window opened at %s", when, opens)
	}
	// All are patched, so CoreDNS is, too, one pod after another, each of which answers for another 35 s.
	shows(t, "1 remains", "get", "patch", "window", "-o", "jsonpath={.status.remaining} remains")
	// After a minute of trying; what cannot be evicted is in the last zone that is left.
	shows(t, "Cannot evict pod as it would violate the pod's disruption budget.", events("ScheduledTermination", kept[0])...)
	shows(t, "EKS Fargate Pod Scheduled Termination", events("ScheduledTermination", kept[0])...)
	eventually(t, func() string {
		if now := pods("window-kept"); len(now) != 1 || now[0] == kept[0] {
			return fmt.Sprintf("pod %s became %q", kept[0], now)
		}
		return ""
	})
	shows(t, "Complete 0", "get", "patch", "window", "-o", "jsonpath={.status.phase} {.status.remaining}")
}
