// Command berth-proxy is kube-proxy for all the pods of a host.
package main

import (
	"flag"
	"fmt"
	"log/slog"
	"os"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/proxy"
)

func main() {
	var o proxy.Options
	fs := flag.NewFlagSet("berth-proxy", flag.ExitOnError)
	fs.StringVar(&o.Kubeconfig, "kubeconfig", "", "credential (`file`) of user system:kube-proxy")
	fs.StringVar(&o.HostName, "host-name", "", "name of this machine's Host")
	fs.StringVar(&o.Address, "address", layout.GatewayIP, "address of this machine")
	fs.StringVar(&o.Zone, "zone", "", "zone of this machine's pods, if it has only one")
	fs.StringVar(&o.HealthAddress, "health-address", fmt.Sprintf("127.0.0.1:%d", layout.ProxyHealthPort), "where /healthz and /livez are served")
	_ = fs.Parse(os.Args[1:]) // exits on an error
	klog.SetLogger(logr.FromSlogHandler(slog.NewTextHandler(os.Stderr, nil)))
	if err := proxy.Run(ctrl.SetupSignalHandler(), o); err != nil {
		slog.Error("berth-proxy ends", "error", err)
		os.Exit(1)
	}
}
