package localcluster

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/layout"
)

// TestSettings: what was chosen is kept until something else is chosen, and cannot change under a running cluster.
func TestSettings(t *testing.T) {
	dirs := layout.Dirs{State: t.TempDir()}
	if err := os.MkdirAll(dirs.Config(), 0o700); err != nil {
		t.Fatal(err)
	}
	up := func(asked, want v1alpha1.Isolation) {
		t.Helper()
		s, err := choose(dirs, asked)
		if err != nil || s.Isolation != want {
			t.Fatalf("berth up --isolation %q gives %q, %v; want %q", asked, s.Isolation, err, want)
		}
		if err := s.write(dirs); err != nil {
			t.Fatal(err)
		}
	}
	up("", v1alpha1.IsolationAuto)
	up(v1alpha1.IsolationMicroVM, v1alpha1.IsolationMicroVM)
	up("", v1alpha1.IsolationMicroVM)
	for asked, want := range map[v1alpha1.Isolation]string{
		"":                        "",
		v1alpha1.IsolationMicroVM: "",
		v1alpha1.IsolationAuto:    "the cluster runs with --isolation microvm: stop it first (berth down",
		"runc":                    `--isolation: "runc" is not an isolation: use auto, microvm or gvisor`,
	} {
		if err := refuseChange(dirs, asked); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("berth up --isolation %q on a running cluster: %v, want %q", asked, err, want)
		}
	}
	if _, err := choose(dirs, "runc"); err == nil {
		t.Error("an isolation that does not exist was taken")
	}
	if err := os.WriteFile(settingsPath(dirs), []byte(`{"isolation": "runc"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := choose(dirs, ""); err == nil || !strings.Contains(err.Error(), filepath.Join(dirs.Config(), "cluster.json")) {
		t.Errorf("damaged settings: %v, want an error that names the file", err)
	}
}

func TestCosts(t *testing.T) {
	for want, probe := range map[string]v1alpha1.IsolationProbe{
		"Pods wait: this machine cannot run virtual machines: no QEMU":           {Message: "no QEMU"},
		"No KVM on this machine (/dev/kvm is missing): its virtual machines are": {Usable: true, Accelerator: v1alpha1.AcceleratorTCG, Message: "/dev/kvm is missing"},
		"Virtual machines run under KVM: it boots":                               {Usable: true, Accelerator: v1alpha1.AcceleratorKVM, Message: "it boots"},
	} {
		if got := costs(probe); !strings.HasPrefix(got, want) {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestNeedMicroVM: only a cluster whose pods are all to be virtual machines needs what they need.
func TestNeedMicroVM(t *testing.T) {
	empty := t.TempDir()
	for _, isolation := range []v1alpha1.Isolation{v1alpha1.IsolationAuto, v1alpha1.IsolationGVisor} {
		if err := needMicroVM(isolation, empty); err != nil {
			t.Errorf("%s: %v", isolation, err)
		}
	}
	if err := needMicroVM(v1alpha1.IsolationMicroVM, empty); err == nil || !strings.Contains(err.Error(), "--isolation microvm: ") || !strings.Contains(err.Error(), empty+"/containerd-shim-berth-v1 is missing: run make build") {
		t.Errorf("got %v", err)
	}
}
