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
	"time"

	"github.com/spf13/cobra"
	"k8s.io/cli-runtime/pkg/printers"
	"sigs.k8s.io/yaml"

	"github.com/berth-run/berth/internal/images"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/localcluster"
)

func up(dirs layout.Dirs) *cobra.Command {
	return &cobra.Command{Use: "up", Short: "Start a cluster on this machine", Args: cobra.NoArgs, Example: "  berth up",
		RunE: func(c *cobra.Command, _ []string) error {
			ctx, stop := signal.NotifyContext(c.Context(), os.Interrupt, syscall.SIGTERM)
			defer stop()
			if err := localcluster.Up(ctx, dirs, c.OutOrStdout()); err != nil {
				return err
			}
			fmt.Fprintf(c.OutOrStdout(), "The cluster is up. Use it: export KUBECONFIG=%s   (or: berth kubectl ...)\n", dirs.AdminKubeconfig())
			return nil
		}}
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

func status(dirs layout.Dirs) *cobra.Command {
	output := ""
	c := &cobra.Command{Use: "status", Short: "Show the parts of the cluster", Args: cobra.NoArgs, Example: "  berth status\n  berth status -o json",
		RunE: func(c *cobra.Command, _ []string) error {
			s, err := localcluster.GetStatus(c.Context(), dirs)
			if err != nil {
				return err
			}
			if output != "" {
				return encode(c.OutOrStdout(), output, s)
			}
			w := printers.GetNewTabWriter(c.OutOrStdout())
			fmt.Fprintln(w, "PART\tREADY\tPID\tRESTARTS\tSINCE\tPROBLEM")
			for _, p := range s.Parts {
				fmt.Fprintf(w, "%s\t%t\t%d\t%d\t%s\t%s\n", p.Name, p.Ready, p.PID, p.Restarts, p.Since.Format(time.DateTime), p.Problem)
			}
			return w.Flush()
		}}
	c.Flags().StringVarP(&output, "output", "o", "", "json or yaml")
	return c
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
