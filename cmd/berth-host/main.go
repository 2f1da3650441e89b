// Command berth-host is the agent on each machine of a fleet.
package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/go-logr/logr"
	"github.com/spf13/pflag"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/hostagent"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/microvm/qemu"
	"github.com/berth-run/berth/internal/microvm/vmm"
)

func main() {
	o := hostagent.Options{ReserveMemory: resource.MustParse("2Gi")}
	fs := pflag.NewFlagSet("berth-host", pflag.ExitOnError)
	fs.StringVar(&o.Kubeconfig, "kubeconfig", "", "credential of user berth:host:NAME")
	fs.StringVar(&o.HostName, "host-name", "", "name of this machine in the cluster (default: its hostname)")
	fs.StringSliceVar(&o.Zones, "zones", nil, "zones that this machine serves")
	fs.StringVar(&o.Region, "region", layout.DefaultRegion, "region in node names and labels")
	fs.StringVar(&o.BinDir, "bin-dir", "", "directory of berth-node (default: this program's)")
	fs.StringVar(&o.ClientCA, "client-ca", "", "PEM file of the cluster's CA")
	fs.StringSliceVar(&o.ClusterDNS, "cluster-dns", nil, "addresses of the cluster's DNS")
	fs.Float64Var(&o.CPUOvercommit, "cpu-overcommit", 16, "how many times the machine's CPUs may be promised to pods")
	fs.Float64Var(&o.MemoryOvercommit, "memory-overcommit", 1, "how many times the machine's memory may be promised to pods")
	fs.Var(&resource.QuantityValue{Quantity: o.ReserveMemory}, "reserve-memory", "memory kept for the machine itself")
	fs.StringVar(&o.ServiceAPI, "service-api", layout.APIServiceIP+":443", "address of Service kubernetes")
	fs.StringVar(&o.APIServer, "api-server", fmt.Sprintf("%s:%d", layout.GatewayIP, layout.APIServerPort), "where Service kubernetes leads, as pods reach it")
	fs.IntVar(&o.Pool, "pool", 2, "node processes started ahead of need")
	fs.IntVar(&o.HealthPort, "health-port", layout.AgentHealthPort, "loopback port of /readyz")
	o.Dirs = layout.Default
	fs.StringVar(&o.Dirs.State, "state-dir", o.Dirs.State, "what survives a restart")
	fs.StringVar(&o.Dirs.Run, "run-dir", o.Dirs.Run, "sockets and process ids")
	fs.StringVar(&o.Dirs.Log, "log-dir", o.Dirs.Log, "logs")
	_ = fs.Parse(os.Args[1:]) // exits on an error
	if reserve, ok := fs.Lookup("reserve-memory").Value.(*resource.QuantityValue); ok {
		o.ReserveMemory = reserve.Quantity
	}
	o.Driver = func(o hostagent.Options, a v1alpha1.Accelerator) vmm.Driver {
		return qemu.New(qemu.Options{Acceleration: string(a), Dir: o.Dirs.MicroVM(), Jail: filepath.Join(o.BinDir, "berth-jail")})
	}
	log := logr.FromSlogHandler(slog.NewTextHandler(os.Stderr, nil))
	ctrl.SetLogger(log)
	klog.SetLogger(log)
	if err := hostagent.Run(ctrl.SetupSignalHandler(), o); err != nil {
		slog.Error("berth-host ends", "error", err)
		os.Exit(1)
	}
}
