// Command containerd-shim-berth-v1 is the containerd runtime of the microvm isolation: one process per pod, which owns the pod's virtual
// machine. containerd starts it through containerd-shim-start; a pod's kubelet calls its port-forward.
package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/microvm/shim"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "containerd-shim-berth-v1:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	flags := flag.NewFlagSet("containerd-shim-berth-v1", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	namespace, id := flags.String("namespace", "", ""), flags.String("id", "", "")
	address := flags.String("address", layout.Default.ContainerdSocket(), "")
	info := flags.Bool("info", false, "")
	_ = flags.Bool("debug", false, "")
	_, _ = flags.String("publish-binary", "", ""), flags.String("bundle", "", "")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *info {
		return shim.Info(os.Stdout)
	}
	dirs, err := readDirs(layout.Dirs{Run: filepath.Dir(*address)}.ShimDirs())
	if err != nil {
		return err
	}
	switch action := flags.Arg(0); {
	case action == "port-forward" && flags.NArg() == 3:
		return shim.PortForward(dirs.MicroVMRun(flags.Arg(1)), flags.Arg(2), os.Stdin, os.Stdout)
	case *namespace == "" || *id == "":
		return errors.New("-namespace and -id are needed; this program is for containerd, not for people")
	case action == "delete":
		return shim.Delete(os.Stdout, dirs.MicroVMRun(*id))
	case action == "":
		o, err := options(dirs, *id)
		if err != nil {
			return err
		}
		return shim.Serve(*namespace, os.Getenv("TTRPC_ADDRESS"), o)
	default:
		return fmt.Errorf("there is no command %q", action)
	}
}
