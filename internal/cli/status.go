package cli

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/printers"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/localcluster"
)

// hostsLimit is how long `berth status` waits for an API server that may be the one that does not answer.
const hostsLimit = 3 * time.Second

// clusterStatus is what `berth status` shows.
type clusterStatus struct {
	localcluster.Status
	// Isolation of profiles that name none.
	Isolation v1alpha1.Isolation `json:"isolation"`
	Hosts     []hostStatus       `json:"hosts,omitempty"`
	// HostsProblem says why the hosts are not known.
	HostsProblem string `json:"hostsProblem,omitempty"`
}

type hostStatus struct {
	Name       string                    `json:"name"`
	Isolations []v1alpha1.IsolationProbe `json:"isolations"`
}

func status(dirs layout.Dirs) *cobra.Command {
	output := ""
	c := &cobra.Command{Use: "status", Short: "Show the parts of the cluster, and what its hosts can run pods in", Args: cobra.NoArgs, Example: "  berth status\n  berth status -o json",
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := getStatus(c.Context(), dirs)
			if err != nil {
				return err
			}
			if output != "" {
				return encode(c.OutOrStdout(), output, s)
			}
			return s.print(c.OutOrStdout())
		}}
	c.Flags().StringVarP(&output, "output", "o", "", "json or yaml")
	return c
}

func getStatus(ctx context.Context, dirs layout.Dirs) (clusterStatus, error) {
	var s clusterStatus
	var err error
	if s.Status, err = localcluster.GetStatus(ctx, dirs); err != nil {
		return s, err
	}
	settings, err := localcluster.ReadSettings(dirs)
	if err != nil {
		return s, err
	}
	s.Isolation = settings.Isolation
	ctx, cancel := context.WithTimeout(ctx, hostsLimit)
	defer cancel()
	hosts, err := localcluster.Hosts(ctx, dirs)
	if err != nil {
		s.HostsProblem = err.Error()
	}
	for _, h := range hosts {
		s.Hosts = append(s.Hosts, hostStatus{h.Name, h.Status.Probes})
	}
	return s, nil
}

func (s clusterStatus) print(out io.Writer) error {
	w := printers.GetNewTabWriter(out)
	fmt.Fprintln(w, "PART\tREADY\tPID\tRESTARTS\tSINCE\tPROBLEM")
	for _, p := range s.Parts {
		fmt.Fprintf(w, "%s\t%t\t%d\t%d\t%s\t%s\n", p.Name, p.Ready, p.PID, p.Restarts, p.Since.Format(time.DateTime), p.Problem)
	}
	if err := w.Flush(); err != nil {
		return err
	}
	fmt.Fprintf(out, "\nIsolation of profiles that name none: %s (berth up --isolation)\n", s.Isolation)
	if s.HostsProblem != "" {
		fmt.Fprintf(out, "What the hosts can run is not known: %s\n", s.HostsProblem)
		return nil
	}
	w = printers.GetNewTabWriter(out)
	fmt.Fprintln(w, "HOST\tISOLATION\tUSABLE\tACCELERATOR\tWHY")
	for _, h := range s.Hosts {
		for _, p := range h.Isolations {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", h.Name, p.Isolation, usable(p), none(strings.ToUpper(string(p.Accelerator))), p.Message)
		}
	}
	return w.Flush()
}

func usable(p v1alpha1.IsolationProbe) string {
	switch {
	case p.Usable:
		return "yes"
	case p.Time.IsZero():
		return "not known yet"
	}
	return "no"
}
