// Command berth-lb serves Services of type LoadBalancer and Ingresses.
package main

import (
	"flag"
	"log/slog"
	"os"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/loadbalancer"
)

func main() {
	var o loadbalancer.Options
	fs := flag.NewFlagSet("berth-lb", flag.ExitOnError)
	fs.StringVar(&o.Kubeconfig, "kubeconfig", "", "credential (`file`) of user berth:lb")
	fs.StringVar(&o.RunDir, "run-dir", layout.Default.LoadBalancer(), "directory of HAProxy's files")
	fs.IntVar(&o.HealthPort, "health-port", layout.LBHealthPort, "loopback port of /readyz")
	fs.BoolVar(&o.Default, "default", false, "serve Services of type LoadBalancer and Ingresses that name no class, too")
	_ = fs.Parse(os.Args[1:]) // exits on an error
	log := logr.FromSlogHandler(slog.NewTextHandler(os.Stderr, nil))
	ctrl.SetLogger(log)
	klog.SetLogger(log)
	if err := loadbalancer.Run(ctrl.SetupSignalHandler(), o); err != nil {
		slog.Error("berth-lb ends", "error", err)
		os.Exit(1)
	}
}
