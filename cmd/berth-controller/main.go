// Command berth-controller runs Berth's admission webhook, fargate-scheduler and controllers.
package main

import (
	"flag"
	"log/slog"
	"os"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/controller"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/profile"
)

func main() {
	o := controller.Options{Quotas: profile.DefaultQuotas}
	fs := flag.NewFlagSet("berth-controller", flag.ExitOnError)
	fs.StringVar(&o.Kubeconfig, "kubeconfig", "", "kubeconfig `file` of user berth:controller")
	fs.StringVar(&o.Region, "region", layout.DefaultRegion, "region in node names and labels")
	fs.StringVar(&o.Cluster, "cluster-name", layout.DefaultCluster, "name of the cluster in messages")
	fs.IntVar(&o.Quotas.Profiles, "quota-profiles", o.Quotas.Profiles, "most Fargate profiles of the cluster")
	fs.IntVar(&o.Quotas.Selectors, "quota-selectors", o.Quotas.Selectors, "most selectors of a profile, up to 100")
	fs.IntVar(&o.Quotas.Labels, "quota-labels", o.Quotas.Labels, "most labels of a selector, up to 100")
	isolation := fs.String("isolation", string(v1alpha1.IsolationAuto), "isolation of profiles that name none: auto, microvm or gvisor")
	fs.StringVar(&o.WebhookCert, "webhook-cert", "", "PEM `file` of the admission webhook's certificate")
	fs.StringVar(&o.WebhookKey, "webhook-key", "", "PEM `file` of its key")
	fs.StringVar(&o.WebhookCA, "webhook-ca", "", "PEM `file` of the CA that signed it")
	fs.IntVar(&o.HealthPort, "health-port", layout.ControllerHealthPort, "loopback port of /healthz and /readyz")
	fs.IntVar(&o.MetricsPort, "metrics-port", layout.ControllerMetricsPort, "loopback port of /metrics; 0 serves none")
	fs.BoolVar(&o.LeaderElect, "leader-elect", true, "let one of several controllers lead")
	_ = fs.Parse(os.Args[1:]) // exits on an error
	o.Isolation = v1alpha1.Isolation(*isolation)
	log := logr.FromSlogHandler(slog.NewTextHandler(os.Stderr, nil))
	ctrl.SetLogger(log)
	klog.SetLogger(log)
	if err := controller.Run(ctrl.SetupSignalHandler(), o); err != nil {
		slog.Error("berth-controller ends", "error", err)
		os.Exit(1)
	}
}
