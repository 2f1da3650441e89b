// Command net measures the cluster's network with real traffic: throughput and connections from pod to pod, to a Service, and
// from outside through an Ingress, and how soon a network policy holds. Pods of Berth and plain runc containers, on
// links of the same kind and behind the same rules, take turns. It needs a running cluster (make up), root and runc. The
// same program is what runs in the pods (traffic.go).
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
	if len(os.Args) > 1 && traffic[os.Args[1]] != nil {
		if err := traffic[os.Args[1]](os.Args[2:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	rounds := flag.Int("rounds", 5, "times that Berth's pods and runc's take turns")
	span := flag.Duration("span", 2*time.Second, "how long each measurement takes")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, *rounds, *span); err != nil {
		fmt.Fprintln(os.Stderr, "bench-net:", err)
		os.Exit(1)
	}
}

// side is one kind of pods: a client, a server, and another one behind a Service and an Ingress.
type side struct {
	name string
	// in runs this program in the client.
	in                           func(ctx context.Context, args ...string) (float64, error)
	server, service, ingressHost string
}

// measure is one line of the result.
type measure struct {
	name, unit string
	take       func(ctx context.Context, s *side) (float64, error)
	// better is +1 if more is better, -1 if less is.
	better int
}

func run(ctx context.Context, rounds int, span time.Duration) (err error) {
	b, err := setUp(ctx)
	if b != nil {
		defer func() { err = errors.Join(err, b.tearDown(context.WithoutCancel(ctx))) }()
	}
	if err != nil {
		return err
	}
	seconds := fmt.Sprint(span.Seconds())
	outside := func(what string) func(context.Context, *side) (float64, error) {
		return func(ctx context.Context, s *side) (float64, error) {
			return b.outside(ctx, what, b.web, s.ingressHost, seconds)
		}
	}
	measures := []measure{
		{"pod to pod, throughput", "Gbit/s", func(ctx context.Context, s *side) (float64, error) { return s.in(ctx, "send", s.server, seconds) }, 1},
		{"pod to Service, throughput", "Gbit/s", func(ctx context.Context, s *side) (float64, error) { return s.in(ctx, "send", s.service, seconds) }, 1},
		{"pod to pod, connections", "/s", func(ctx context.Context, s *side) (float64, error) { return s.in(ctx, "connect", s.server, seconds) }, 1},
		{"pod to Service, connections", "/s", func(ctx context.Context, s *side) (float64, error) { return s.in(ctx, "connect", s.service, seconds) }, 1},
		{"outside to Ingress, throughput", "Gbit/s", outside("fetch"), 1},
		{"outside to Ingress, connections", "/s", outside("visit"), 1},
		{"outside to Ingress, requests", "/s", outside("request"), 1},
		{"policy that denies, until it holds", "ms", b.deny, -1},
		{"policy deleted, until it is open", "ms", b.allow, -1},
	}
	results := make([]map[string][]float64, len(measures))
	for i := range results {
		results[i] = map[string][]float64{}
	}
	for round := range rounds {
		for i, m := range measures {
			for n := range b.sides {
				s := b.sides[(n+round)%len(b.sides)]
				value, err := m.take(ctx, s)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", m.name, s.name, err)
				}
				results[i][s.name] = append(results[i][s.name], value)
			}
		}
		fmt.Fprintf(os.Stderr, "round %d of %d is done\n", round+1, rounds)
	}
	return show(measures, results, b.sides)
}

// show prints medians, and Berth's as a part of runc's.
func show(measures []measure, results []map[string][]float64, sides []*side) error {
	w := tabwriter.NewWriter(os.Stdout, 0, 8, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintf(w, "\tmedian, %s\tmedian, %s\t\tratio\tspread, %s\tspread, %s\t\n", sides[0].name, sides[1].name, sides[0].name, sides[1].name)
	for i, m := range measures {
		first, second := results[i][sides[0].name], results[i][sides[1].name]
		fmt.Fprintf(w, "%s\t%.2f\t%.2f\t%s\t%.2f\t%s\t%s\t\n", m.name, median(first), median(second), m.unit, median(first)/median(second), spread(first), spread(second))
	}
	return w.Flush()
}

func median(list []float64) float64 {
	sorted := slices.Sorted(slices.Values(list))
	return (sorted[(len(sorted)-1)/2] + sorted[len(sorted)/2]) / 2
}

func spread(list []float64) string {
	return fmt.Sprintf("%.2f-%.2f", slices.Min(list), slices.Max(list))
}
