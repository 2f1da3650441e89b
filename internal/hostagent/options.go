// Package hostagent is the daemon on each machine: it makes, keeps and removes what the Berths of its host stand for: a
// pod's network, cgroup, credentials and kubelet process. The sandbox itself is made by that kubelet through containerd.
package hostagent

import (
	"fmt"
	"os"
	"path/filepath"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/microvm/vmm"
)

// Version of the agent, told in Host.status.
const Version = "v0.1.0"

// Options of an agent.
type Options struct {
	Kubeconfig, HostName, Region string
	Zones                        []string
	// BinDir holds berth-node.
	BinDir string
	// ClientCA (PEM file) signs the callers of kubelets; it is the cluster's CA.
	ClientCA string
	// ClusterDNS addresses that pods are given; none: pods use the host's resolvers.
	ClusterDNS []string
	// CPUOvercommit and MemoryOvercommit are how many times the machine's CPU and memory may be promised.
	CPUOvercommit, MemoryOvercommit float64
	// ReserveMemory is kept for the machine itself.
	ReserveMemory resource.Quantity
	// ServiceAPI is led to APIServer (both address:port) until a kube-proxy does.
	ServiceAPI, APIServer string
	// Pool is how many node processes wait ahead of need.
	Pool int
	// Driver makes what runs virtual machines by an accelerator, from completed options.
	Driver     func(Options, v1alpha1.Accelerator) vmm.Driver
	HealthPort int
	Dirs       layout.Dirs
}

// Complete fills in what follows from the machine, and checks the rest.
func (o *Options) Complete() error {
	if o.HostName == "" {
		name, err := os.Hostname()
		if err != nil {
			return fmt.Errorf("find the host's name (or give --host-name): %w", err)
		}
		o.HostName = name
	}
	if o.BinDir == "" {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("find berth-node (or give --bin-dir): %w", err)
		}
		o.BinDir = filepath.Dir(self)
	}
	switch {
	case o.Kubeconfig == "":
		return fmt.Errorf("--kubeconfig is needed: the credential of user berth:host:%s", o.HostName)
	case o.ClientCA == "":
		return fmt.Errorf("--client-ca is needed: the cluster's CA certificate")
	case len(o.Zones) == 0:
		return fmt.Errorf("--zones is needed: at least one zone that this host serves")
	case o.CPUOvercommit < 1 || o.MemoryOvercommit < 1:
		return fmt.Errorf("--cpu-overcommit and --memory-overcommit are 1 or more")
	}
	return nil
}
