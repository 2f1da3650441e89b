package scheduler

import (
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

// What the scheduler counts, beside what controller-runtime counts of every controller and webhook.
var (
	podsBound = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "berth_scheduler_pods_bound_total", Help: "Pods that were bound to a node of their own.",
	})
	podsRefused = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "berth_scheduler_refusals_total", Help: "FailedScheduling events, by the reason of condition PodScheduled.",
	}, []string{"reason"})
)

func init() { metrics.Registry.MustRegister(podsBound, podsRefused) }
