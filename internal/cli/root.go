// Package cli is the berth command: the local cluster, profiles in eksctl's words, images, and kubectl built in.
package cli

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/go-logr/logr"
	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	"k8s.io/kubectl/pkg/cmd"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-run/berth/internal/hostagent"
	"github.com/berth-run/berth/internal/layout"
)

// Run runs the program by the name that it was called by, and returns its exit code.
func Run() int {
	if filepath.Base(os.Args[0]) == "kubectl" {
		return kubectl(os.Args)
	}
	if len(os.Args) > 1 && os.Args[1] == "kubectl" {
		return kubectl(append([]string{"kubectl"}, os.Args[2:]...))
	}
	ctrl.SetLogger(logr.FromSlogHandler(slog.Default().Handler())) // else it complains, to the user, after half a minute
	if err := New().Execute(); err != nil {
		fmt.Fprintln(os.Stderr, "Error:", err)
		return 1
	}
	return 0
}

// kubectl is upstream's, for the local cluster unless the user names another.
func kubectl(args []string) int {
	if os.Getenv("KUBECONFIG") == "" {
		if _, err := os.Stat(layout.Default.AdminKubeconfig()); err == nil {
			os.Setenv("KUBECONFIG", layout.Default.AdminKubeconfig())
		}
	}
	os.Args = args
	return cli.Run(cmd.NewDefaultKubectlCommand())
}

// New is the berth command.
func New() *cobra.Command {
	root := &cobra.Command{
		Use:   "berth",
		Short: "Fargate for Kubernetes, on your own machines",
		Long: `Berth runs every pod that a profile matches on a node of its own, in a sandbox of its own.
Nobody makes, sizes or patches nodes.`,
		Example: `  berth up
  berth create fargateprofile --cluster berth --name web --namespace default --labels app=web
  berth kubectl get pods -o wide`,
		SilenceUsage: true, SilenceErrors: true,
	}
	dirs := layout.Default
	root.AddCommand(up(dirs), down(dirs), status(dirs), supervise(dirs), kubeconfig(dirs), logs(dirs), image(dirs), templateCommand(dirs), version(),
		create(dirs), get(dirs), remove(dirs), explainCommand(dirs), patch(dirs),
		&cobra.Command{Use: "kubectl", Short: "kubectl, built in, for the local cluster", Example: "  berth kubectl get nodes",
			DisableFlagParsing: true, Run: func(*cobra.Command, []string) {}})
	return root
}

func version() *cobra.Command {
	return &cobra.Command{Use: "version", Short: "Print Berth's version", Args: cobra.NoArgs, Example: "  berth version",
		Run: func(c *cobra.Command, _ []string) { fmt.Fprintln(c.OutOrStdout(), hostagent.Version) }}
}
