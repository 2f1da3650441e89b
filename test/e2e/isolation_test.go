package e2e

import (
	"encoding/json"
	"strings"
	"testing"
)

// kernels are words by which a pod's own kernel is known: gVisor says so in its log, a machine of its own runs Debian's cloud kernel.
var kernels = map[string][2]string{
	"gvisor":  {"dmesg", "gVisor"},
	"microvm": {"cat /proc/version", "cloud-amd64"},
}

// probe is what `berth status -o json` says of one isolation of the host.
type probe struct {
	Isolation, Accelerator, Message string
	Usable                          bool
}

func probes(t *testing.T) map[string]probe {
	t.Helper()
	out, err := berth("status", "-o", "json")
	var status struct {
		Hosts []struct{ Isolations []probe }
	}
	if err != nil || json.Unmarshal([]byte(out), &status) != nil || len(status.Hosts) != 1 {
		t.Fatalf("berth status: %v\n%s", err, out)
	}
	found := map[string]probe{}
	for _, p := range status.Hosts[0].Isolations {
		found[p.Isolation] = p
	}
	return found
}

// TestIsolation: pods run in what the cluster's default, their profile or, where that allows it, they themselves ask for; the
// host, the berths and berth explain say why.
func TestIsolation(t *testing.T) {
	found := probes(t)
	for _, name := range []string{"gvisor", "microvm"} {
		if found[name].Message == "" || found["microvm"].Usable != (found["microvm"].Accelerator != "") {
			t.Errorf("the host does not say why of %s: %+v", name, found)
		}
	}
	apply(t, "isolation.yaml", "--allowed-isolations", "gvisor,microvm")
	berthOf := func(pod, field string) string {
		return kubectl(t, "get", "berths", "-o", `jsonpath={.items[?(@.spec.pod.name=="`+pod+`")].spec.`+field+`}`)
	}
	for pod, tc := range map[string]struct{ isolation, reason string }{
		"by-default": {isolation, "the cluster's default asks for it"},
		"by-class":   {"gvisor", "runtimeClassName e2e-gvisor of the pod asks for it"},
		"as-runc":    {isolation, "the cluster's default asks for it"},
		"as-gvisor":  {"gvisor", "annotation berth.run/isolation of the pod asks for it"},
		"as-microvm": {"microvm", "annotation berth.run/isolation of the pod asks for it"},
	} {
		t.Run(pod, func(t *testing.T) {
			if !found[tc.isolation].Usable {
				want := "No host can run isolation " + tc.isolation + ", which annotation berth.run/isolation of the pod asks for (host "
				shows(t, want, "get", "events", "--field-selector", "involvedObject.name="+pod, "-o", "jsonpath={.items[*].message}")
				shows(t, found[tc.isolation].Message, "get", "pod", pod, "-o", "jsonpath={.status.conditions[*].message}")
				return
			}
			kubectl(t, "wait", "--for=condition=Ready", "pod/"+pod, "--timeout=90s")
			if got, why := berthOf(pod, "isolation"), berthOf(pod, "isolationReason"); got != tc.isolation || !strings.HasPrefix(why, tc.reason) {
				t.Errorf("its berth says %q, because %q; want %s, %q", got, why, tc.isolation, tc.reason)
			}
			kernel := kernels[tc.isolation]
			if out := kubectl(t, "exec", pod, "--", "sh", "-c", kernel[0]); !strings.Contains(out, kernel[1]) {
				t.Errorf("%s does not show %q:\n%s", kernel[0], kernel[1], out)
			}
			if out, err := berth("explain", "pod", "default/"+pod); err != nil || !strings.Contains(out, "isolation "+tc.isolation) || !strings.Contains(out, tc.reason) {
				t.Errorf("berth explain: %v\n%s", err, out)
			}
		})
	}
	t.Run("not allowed", func(t *testing.T) {
		const want = "annotation berth.run/isolation: profile isolation lets pods choose gvisor or microvm only, not auto"
		shows(t, want, "get", "events", "--field-selector", "involvedObject.name=as-auto", "-o", "jsonpath={.items[*].message}")
		kubectl(t, "annotate", "--overwrite", "pod", "as-auto", "berth.run/isolation=gvisor")
		kubectl(t, "wait", "--for=condition=Ready", "pod/as-auto", "--timeout=90s")
	})
	t.Run("privileged needs a machine of its own", func(t *testing.T) {
		out, err := berth("create", "fargateprofile", "--name", "rights", "--namespace", "nowhere", "--isolation", "gvisor", "--allow-privileged")
		if err == nil || !strings.Contains(out, "allowPrivileged needs isolation microvm") {
			t.Errorf("%v\n%s", err, out)
		}
	})
}
