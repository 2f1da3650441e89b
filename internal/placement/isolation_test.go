package placement

import (
	"errors"
	"strings"
	"testing"

	"github.com/berth-run/berth/api/v1alpha1"
)

const noKVM = "no usable KVM: /dev/kvm is missing"

// proving gives the host what it found out about microvm; an accelerator makes it usable.
func proving(h HostState, accelerator v1alpha1.Accelerator, message string) HostState {
	h.Probes = []v1alpha1.IsolationProbe{{Isolation: v1alpha1.IsolationMicroVM, Usable: accelerator != "", Accelerator: accelerator, Message: message}}
	h.Isolations = []v1alpha1.Isolation{v1alpha1.IsolationGVisor}
	if accelerator != "" {
		h.Isolations = append(h.Isolations, v1alpha1.IsolationMicroVM)
	}
	return h
}

func TestIsolation(t *testing.T) {
	host := input(func(*Input) {}).Hosts[0]
	elsewhere := proving(host, v1alpha1.AcceleratorKVM, "")
	elsewhere.Name, elsewhere.Zones = "h2", []string{"zd"}
	for name, test := range map[string]struct {
		wish   v1alpha1.Isolation
		hosts  []HostState
		want   v1alpha1.Isolation
		reason string
	}{
		"auto takes microvm under KVM": {"auto", []HostState{proving(host, "kvm", "it boots")}, "microvm",
			"profile web says auto, and host h1 proved microvm under KVM"},
		"auto takes gvisor where there is emulation only": {"auto", []HostState{proving(host, "tcg", noKVM)}, "gvisor",
			"profile web says auto, and host h1 has not proved microvm under KVM (its probes say why)"},
		"nothing said is auto": {"", []HostState{proving(host, "", "QEMU is missing")}, "gvisor",
			"profile web says auto, and host h1 has not proved microvm under KVM (its probes say why)"},
		"microvm by emulation, if asked for": {"microvm", []HostState{proving(host, "tcg", noKVM)}, "microvm",
			"profile web asks for it; host h1 runs it under TCG"},
		"gvisor beside KVM, if asked for": {"gvisor", []HostState{proving(host, "kvm", "")}, "gvisor", "profile web asks for it"},
		"no host can: each says why": {"microvm", []HostState{proving(host, "", "QEMU is missing")}, "",
			"No host can run isolation microvm, which profile web asks for (host h1 cannot run isolation microvm: QEMU is missing)"},
		"hosts of other zones do not count": {"microvm", []HostState{elsewhere, proving(host, "", "QEMU is missing")}, "",
			"(host h1 cannot run isolation microvm: QEMU is missing)"},
	} {
		t.Run(name, func(t *testing.T) {
			in := input(func(in *Input) { in.Isolation, in.IsolationBy, in.Hosts = test.wish, "profile web", test.hosts })
			got, err := Choose(in, "r")
			if test.want == "" {
				if none := (*IsolationError)(nil); !errors.As(err, &none) || !strings.Contains(err.Error(), test.reason) || none.WaitsFor() != "a host that can run isolation microvm" {
					t.Fatalf("got %+v, %v, want %q", got, err, test.reason)
				}
				return
			}
			if err != nil || got.Isolation != test.want {
				t.Fatalf("got %+v, %v, want %s", got, err, test.want)
			}
			if reason := IsolationReason(in, got); reason != test.reason {
				t.Errorf("the reason is %q, want %q", reason, test.reason)
			}
		})
	}
}

// TestIsolationIsARequirement: a host that can is taken before one with more room that cannot; if it is full, that is lack of room.
func TestIsolationIsARequirement(t *testing.T) {
	can, cannot := input(func(*Input) {}).Hosts[0], input(func(*Input) {}).Hosts[0]
	can, cannot.Name = proving(can, v1alpha1.AcceleratorTCG, noKVM), "h2"
	can.Used, cannot.Capacity = memory("512Mi"), memory("64Gi")
	in := input(func(in *Input) { in.Isolation, in.Hosts = v1alpha1.IsolationMicroVM, []HostState{cannot, can} })
	if got, err := Choose(in, "r"); err != nil || got.Host != "h1" || got.Isolation != v1alpha1.IsolationMicroVM {
		t.Errorf("got %+v, %v, want host h1", got, err)
	}
	in.Hosts[1].Used = memory("1Gi")
	var full *NoCapacityError
	if got, err := Choose(in, "r"); !errors.As(err, &full) || !strings.Contains(err.Error(), "host h2 cannot run isolation microvm") {
		t.Errorf("got %+v, %v, want lack of room that names both hosts", got, err)
	}
}
