package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/images"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/localcluster"
)

func up(dirs layout.Dirs) *cobra.Command {
	isolation := ""
	c := &cobra.Command{Use: "up", Short: "Start a cluster on this machine", Args: cobra.NoArgs, Example: "  berth up\n  berth up --isolation microvm",
		Long: "Start a cluster on this machine. --isolation is what pods run in whose profile says nothing about it: microvm (a virtual machine each), " +
			"gvisor (a gVisor sandbox each), or auto, which is microvm where that works with the processor's own virtualization (KVM) and gvisor elsewhere. It is kept " +
			"for the next `berth up`, until the cluster is purged.",
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			if err := localcluster.Up(ctx, dirs, v1alpha1.Isolation(isolation), c.OutOrStdout()); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "The cluster is up. Use it: export KUBECONFIG=%s   (or: berth kubectl ...)\n", dirs.AdminKubeconfig())
			return nil
		}}
	c.Flags().StringVar(&isolation, "isolation", "", "what pods run in: auto, microvm or gvisor (default: what was chosen before, or auto)")
	return c
}

func down(dirs layout.Dirs) *cobra.Command {
	purge := false
	c := &cobra.Command{Use: "down", Short: "Stop the cluster on this machine", Args: cobra.NoArgs,
		Long: "Stop the cluster on this machine. Its state survives, and its pods start again with the next `berth up`, unless it is purged.",
		Example: `  berth down
  berth down --purge`,
		RunE: func(c *cobra.Command, _ []string) error {
			if err := localcluster.Down(c.Context(), dirs, c.OutOrStdout(), purge); err != nil {
				return err
			}
			fmt.Fprintln(c.OutOrStdout(), "The cluster is down; nothing of it runs on this machine.")
			return nil
		}}
	c.Flags().BoolVar(&purge, "purge", false, "remove the cluster's state, images and logs too")
	return c
}

func supervise(dirs layout.Dirs) *cobra.Command {
	return &cobra.Command{Use: "supervise", Hidden: true, Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			return localcluster.Supervise(ctx, dirs)
		}}
}

func encode(out io.Writer, format string, v any) error {
	var data []byte
	var err error
	switch format {
	case "json":
		data, err = json.MarshalIndent(v, "", "  ")
		data = append(data, '\n')
	case "yaml":
		data, err = yaml.Marshal(v)
	default:
		return fmt.Errorf("-o %s is not known: use json or yaml", format)
	}
	if err != nil {
		return fmt.Errorf("encode the output: %w", err)
	}
	_, err = out.Write(data)
	return err
}

func kubeconfig(dirs layout.Dirs) *cobra.Command {
	return &cobra.Command{Use: "kubeconfig", Short: "Print the cluster's kubeconfig", Args: cobra.NoArgs, Example: "  berth kubeconfig > ~/.kube/config",
		RunE: func(c *cobra.Command, _ []string) error {
			data, err := os.ReadFile(dirs.AdminKubeconfig())
			if errors.Is(err, os.ErrPermission) {
				return errors.New("only root may read the cluster's kubeconfig: run it with sudo")
			}
			if err != nil {
				return fmt.Errorf("there is no cluster yet (berth up makes one): %w", err)
			}
			_, err = c.OutOrStdout().Write(data)
			return err
		}}
}

func logs(dirs layout.Dirs) *cobra.Command {
	return &cobra.Command{Use: "logs PART", Short: "Print the log of a part of the cluster", Args: cobra.ExactArgs(1), Example: "  berth logs kube-apiserver",
		RunE: func(c *cobra.Command, args []string) error {
			f, err := os.Open(filepath.Join(dirs.Log, filepath.Base(args[0])+".log"))
			if err != nil {
				return fmt.Errorf("no log of %q (`berth status` lists the parts): %w", args[0], err)
			}
			defer f.Close()
			_, err = io.Copy(c.OutOrStdout(), f)
			return err
		}}
}

func image(dirs layout.Dirs) *cobra.Command {
	c := &cobra.Command{Use: "image", Short: "Bring images to this machine"}
	c.AddCommand(&cobra.Command{Use: "load FILE|NAME", Short: "Make an image available to pods", Args: cobra.ExactArgs(1),
		Long: "Make an image available to pods: an archive (docker save, or OCI; also compressed), or the name of an image that is pulled from its registry.",
		Example: `  berth image load app.tar
  berth image load quay.io/prometheus/node-exporter:v1.8.2`,
		RunE: func(c *cobra.Command, args []string) error {
			names, err := images.Load(c.Context(), dirs, args[0])
			for _, n := range names {
				fmt.Fprintln(c.OutOrStdout(), "loaded", n)
			}
			return err
		}})
	return c
}
