package localcluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/hostagent"
	"github.com/berth-run/berth/internal/layout"
)

const (
	// probeLimit is how long `berth up` waits to hear whether virtual machines run here.
	probeLimit = 30 * time.Second
	probePoll  = 200 * time.Millisecond
)

// Settings are what the user chose for the cluster. They are kept over down and up.
type Settings struct {
	// Isolation of profiles that name none.
	Isolation v1alpha1.Isolation `json:"isolation"`
}

func settingsPath(dirs layout.Dirs) string { return filepath.Join(dirs.Config(), "cluster.json") }

// ReadSettings are the defaults for a cluster that does not exist yet.
func ReadSettings(dirs layout.Dirs) (Settings, error) {
	s := Settings{Isolation: v1alpha1.IsolationAuto}
	data, err := os.ReadFile(settingsPath(dirs))
	if errors.Is(err, fs.ErrNotExist) {
		return s, nil
	}
	if err == nil {
		err = json.Unmarshal(data, &s)
	}
	if err == nil {
		err = s.Isolation.Validate()
	}
	if err != nil {
		return s, fmt.Errorf("read the cluster's settings %s: %w", settingsPath(dirs), err)
	}
	return s, nil
}

func (s Settings) write(dirs layout.Dirs) error {
	data, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode the cluster's settings: %w", err)
	}
	if err := os.WriteFile(settingsPath(dirs), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("keep the cluster's settings: %w", err)
	}
	return nil
}

// choose is what the cluster is to have: what is asked for now, or else what was chosen before.
func choose(dirs layout.Dirs, isolation v1alpha1.Isolation) (Settings, error) {
	if err := isolation.Validate(); err != nil {
		return Settings{}, fmt.Errorf("--isolation: %w", err)
	}
	s, err := ReadSettings(dirs)
	if err == nil && isolation != "" {
		s.Isolation = isolation
	}
	return s, err
}

// refuseChange is an error if the cluster, which runs, would have to be started anew for what is asked for.
func refuseChange(dirs layout.Dirs, isolation v1alpha1.Isolation) error {
	if err := isolation.Validate(); err != nil {
		return fmt.Errorf("--isolation: %w", err)
	}
	now, err := ReadSettings(dirs)
	if err != nil {
		return err
	}
	if isolation != "" && isolation != now.Isolation {
		return fmt.Errorf("the cluster runs with --isolation %s: stop it first (berth down; it keeps its state, and its pods come back as they are), then: berth up --isolation %s", now.Isolation, isolation)
	}
	return nil
}

// Hosts of the local cluster, as their agents report them.
func Hosts(ctx context.Context, dirs layout.Dirs) ([]v1alpha1.Host, error) {
	c, _, err := Client(dirs.AdminKubeconfig())
	if err != nil {
		return nil, err
	}
	var hosts v1alpha1.HostList
	if err := c.List(ctx, &hosts); err != nil {
		return nil, fmt.Errorf("list hosts: %w", err)
	}
	return hosts.Items, nil
}

// tellIsolation says, if all pods of the cluster are to run in virtual machines, what that costs on a machine without KVM, or
// that it does not work.
func tellIsolation(ctx context.Context, dirs layout.Dirs, isolation v1alpha1.Isolation, out io.Writer) error {
	if isolation != v1alpha1.IsolationMicroVM {
		return nil
	}
	c, _, err := Client(dirs.AdminKubeconfig())
	if err != nil {
		return err
	}
	name, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("find the host's name: %w", err)
	}
	fmt.Fprintln(out, "Finding out whether virtual machines run on this machine ...")
	ctx, cancel := context.WithTimeout(ctx, probeLimit)
	defer cancel()
	for {
		host := &v1alpha1.Host{}
		if err := c.Get(ctx, client.ObjectKey{Name: name}, host); client.IgnoreNotFound(err) != nil && ctx.Err() == nil {
			return fmt.Errorf("get host %s: %w", name, err)
		}
		i := slices.IndexFunc(host.Status.Probes, func(p v1alpha1.IsolationProbe) bool { return p.Isolation == isolation && !p.Time.IsZero() })
		if i >= 0 {
			fmt.Fprintln(out, costs(host.Status.Probes[i]))
			return nil
		}
		select {
		case <-time.After(probePoll):
		case <-ctx.Done():
			fmt.Fprintf(out, "Not known within %s; pods wait until it is. `berth status` tells.\n", probeLimit)
			return nil
		}
	}
}

// costs says what a probe of microvm means for those who use it.
func costs(p v1alpha1.IsolationProbe) string {
	switch {
	case !p.Usable:
		return "Pods wait: this machine cannot run virtual machines: " + p.Message
	case p.Accelerator == v1alpha1.AcceleratorTCG:
		return "No KVM on this machine (" + p.Message + "): its virtual machines are emulated in software. Pods are isolated as well, but " +
			"start about a second later, programs in them compute many times slower than outside, and emulation takes more of the host's CPU. " +
			"Profiles with isolation gvisor are not affected."
	}
	return "Virtual machines run under KVM: " + p.Message
}

// needMicroVM is an error if all pods of the cluster are to run in virtual machines and something for that is not installed.
func needMicroVM(isolation v1alpha1.Isolation, binDir string) error {
	if isolation != v1alpha1.IsolationMicroVM {
		return nil
	}
	if err := hostagent.MissingForMicroVM(binDir); err != nil {
		return fmt.Errorf("--isolation microvm: %w", err)
	}
	return nil
}
