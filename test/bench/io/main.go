// Command io measures network, disk and system calls inside microvm, inside gvisor and in a plain runc container, which take turns, with
// the field's own programs: iperf3, sockperf, fio and stress-ng. Each side has one CPU. It needs a running cluster (make up), root, runc
// and the image that hack/images/packages.sh makes.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"text/tabwriter"
	"time"
)

func main() {
	o := options{}
	flag.IntVar(&o.rounds, "rounds", 5, "times that the sides take turns")
	flag.DurationVar(&o.span, "span", 3*time.Second, "how long each measurement takes")
	flag.StringVar(&o.archive, "image", "bin/bench/io.tar", "archive of the image")
	flag.StringVar(&o.layer, "layer", "bin/bench/io.layer.tar.gz", "its only layer")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench-io:", err)
		os.Exit(1)
	}
}

type options struct {
	rounds         int
	span           time.Duration
	archive, layer string
}

// result has a measure's values by side.
type result map[string][]float64

func run(ctx context.Context, o options) (err error) {
	b, err := setUp(ctx, o)
	if b != nil {
		defer func() { err = errors.Join(err, b.tearDown(context.WithoutCancel(ctx))) }()
	}
	if err != nil {
		return err
	}
	list := measures(b.server.IP, o.span)
	results := make([]result, len(list))
	for round := range o.rounds {
		for i, m := range list {
			if round == 0 {
				results[i] = result{}
			}
			for n := range b.sides {
				s := b.sides[(n+round)%len(b.sides)]
				printed, err := s.in(ctx, m.command...)
				var value float64
				if err == nil {
					value, err = m.read(printed)
				}
				if err != nil {
					return fmt.Errorf("%s, %s: %w", m.name, s.name, err)
				}
				results[i][s.name] = append(results[i][s.name], value)
			}
		}
		fmt.Fprintf(os.Stderr, "round %d of %d is done\n", round+1, o.rounds)
	}
	return show(list, results, b.sides)
}

// show prints medians, and each as a part of the plain container's, which is the last side.
func show(list []measure, results []result, sides []*side) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	base := sides[len(sides)-1].name
	fmt.Fprint(w, "\t\t")
	for _, s := range sides {
		fmt.Fprintf(w, "%s\t", s.name)
	}
	for _, s := range sides[:len(sides)-1] {
		fmt.Fprintf(w, "%s/%s\t", s.name, base)
	}
	fmt.Fprintln(w)
	for i, m := range list {
		fmt.Fprintf(w, "%s\t%s\t", m.name, m.unit)
		for _, s := range sides {
			fmt.Fprintf(w, "%.4g\t", median(results[i][s.name]))
		}
		for _, s := range sides[:len(sides)-1] {
			fmt.Fprintf(w, "%.2f\t", median(results[i][s.name])/median(results[i][base]))
		}
		fmt.Fprintln(w)
	}
	return w.Flush()
}

func median(list []float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}
