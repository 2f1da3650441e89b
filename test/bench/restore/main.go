// Command restore compares booting a microVM with restoring it from a template, and says what QEMU costs in memory, in one run: see make bench-restore.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"text/tabwriter"

	"github.com/berth-run/berth/internal/microvm/qemu"
)

func main() {
	o := options{}
	flag.StringVar(&o.guest, "guest", "bin/guest", "directory of the guest's files")
	flag.StringVar(&o.jail, "jail", "bin/berth-jail", "program berth-jail")
	flag.StringVar(&o.acceleration, "acceleration", qemu.TCG, "kvm or tcg")
	flag.IntVar(&o.vcpus, "vcpus", 1, "vCPUs of the machines: 1, 2, 4, 8 or 16")
	flag.IntVar(&o.boots, "boots", 3, "machines to boot")
	flag.IntVar(&o.restores, "restores", 20, "machines to restore")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	results, err := measure(ctx, o)
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench-restore:", err)
		os.Exit(1)
	}
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	for _, r := range results {
		fmt.Fprintf(w, "%s\t%s\n", r.what, r.value)
	}
	w.Flush()
}
