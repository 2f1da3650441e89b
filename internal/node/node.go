// Package node is the kubelet of one pod: upstream's kubelet, unmodified, assembled around hand-made dependencies so
// that it fits one small process (design D1). What differs from a kubelet's ordinary assembly, and why:
//
//   - the container manager and cAdvisor are ours: capacity is the pod's size and figures come from the pod's cgroup,
//     which the host agent made and enforces (container_manager.go, machine.go);
//   - the CRI client sees and labels only this node's sandboxes, so that many kubelets can share one containerd (runtime.go);
//   - images belong to the host, not to the node: this kubelet never removes one (image.go);
//   - fixed waits of the start-up path are cut short where upstream has a seam for it (startup.go).
//
// Only cmd/berth-node may import this package, and only this package imports the kubelet.
package node

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	"k8s.io/kubernetes/pkg/capabilities"
	"k8s.io/kubernetes/pkg/credentialprovider"
	"k8s.io/kubernetes/pkg/kubelet"
	"k8s.io/kubernetes/pkg/kubelet/apis/config"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/nodeconfig"
)

// machineSysctls are those that a kubelet knows to be a pod's own; what else the kernel of a pod's virtual machine has, a
// privileged container sets by itself.
var machineSysctls = []string{"kernel.shm*", "kernel.msg*", "kernel.sem", "fs.mqueue.*", "net.*"}

// Run is the life of a node process: it runs cfg's pod until SIGTERM or SIGINT, then returns. Containers go on running;
// whoever started the process stops them. An error means that the kubelet could not be assembled.
func Run(cfg nodeconfig.Config) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	report := newReporter(cfg)
	report.send(nodeconfig.StageConfigured, "")
	if err := start(ctx, cfg, report); err != nil {
		report.send(nodeconfig.StageFailed, err.Error())
		return fmt.Errorf("start the kubelet of %s: %w", cfg.NodeName, err)
	}
	slog.Info("kubelet started", "node", cfg.NodeName, "pod", cfg.PodNamespace+"/"+cfg.PodName)
	<-ctx.Done()
	return nil
}

func start(ctx context.Context, cfg nodeconfig.Config, report *reporter) error {
	server, err := settings(cfg)
	if err != nil {
		return err
	}
	if err := utilfeature.DefaultMutableFeatureGate.SetFromMap(server.FeatureGates); err != nil {
		return fmt.Errorf("set feature gates: %w", err)
	}
	// What privileged pods may do is decided by admission and podcheck, not here.
	capabilities.Initialize(capabilities.Capabilities{AllowPrivileged: true})
	credentialprovider.SetPreferredDockercfgPath(server.RootDirectory)

	gate := newStartGate()
	deps, err := dependencies(ctx, cfg, server, gate, report)
	if err != nil {
		return err
	}
	k, err := construct(ctx, cfg, server, deps)
	if err != nil {
		return err
	}
	gate.volumes.Store(k)
	k.BirthCry()
	k.StartGarbageCollection(ctx)
	go k.Run(ctx, deps.PodConfig.Updates())
	go k.ListenAndServe(ctx, &server.KubeletConfiguration, deps.TLSConfig, deps.Auth, deps.TracerProvider)
	return nil
}

// construct calls NewMainKubelet itself, because the node has three names where app.RunKubelet knows one. The kubelet takes
// a node address only from the machine's own links, unless its hostname is an address: so the hostname is the pod's
// address, and the label kubernetes.io/hostname is set to what EKS shows (settings).
func construct(ctx context.Context, cfg nodeconfig.Config, s *options.KubeletServer, deps *kubelet.Dependencies) (*kubelet.Kubelet, error) {
	if net.ParseIP(cfg.IP) == nil {
		return nil, fmt.Errorf("node address %q is not an IP address", cfg.IP)
	}
	return kubelet.NewMainKubelet(ctx,
		&s.KubeletConfiguration, deps, &s.ContainerRuntimeOptions,
		cfg.IP, types.NodeName(cfg.NodeName), nil, cfg.ProviderID, s.CloudProvider,
		s.CertDirectory, s.RootDirectory, s.PodLogsDir,
		s.ImageCredentialProviderConfigPath, s.ImageCredentialProviderBinDir,
		s.RegisterNode, s.RegisterWithTaints, s.AllowedUnsafeSysctls, s.ExperimentalMounterPath,
		s.KernelMemcgNotification, s.ExperimentalNodeAllocatableIgnoreEvictionThreshold,
		s.MinimumGCAge, s.MaxPerPodContainerCount, s.MaxContainerCount,
		s.NodeLabels, s.NodeStatusMaxImages, s.KubeletFlags.SeccompDefault)
}

// settings are the kubelet's flags and configuration for a node of one pod.
func settings(cfg nodeconfig.Config) (*options.KubeletServer, error) {
	for _, dir := range []string{cfg.RootDir, cfg.PodLogsDir, cfg.PrivateImages} {
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return nil, fmt.Errorf("make the kubelet's directory: %w", err)
		}
	}
	f := options.NewKubeletFlags()
	f.RootDirectory = cfg.RootDir
	f.CertDirectory = filepath.Join(cfg.RootDir, "pki")
	f.HostnameOverride = cfg.Hostname
	f.NodeLabels = merge(cfg.Labels, map[string]string{v1.LabelHostname: cfg.Hostname})
	c, err := options.NewKubeletConfiguration()
	if err != nil {
		return nil, fmt.Errorf("make the default kubelet configuration: %w", err)
	}
	c.EnableServer = true
	c.Address = cfg.ListenAddress
	c.Port = kubeletPort
	c.ReadOnlyPort = 0
	c.TLSCertFile, c.TLSPrivateKeyFile = cfg.ServingCert, cfg.ServingKey
	c.Authentication.X509.ClientCAFile = cfg.ClientCA
	c.Authentication.Anonymous.Enabled = false
	c.Authentication.Webhook.Enabled = true
	c.Authorization.Mode = config.KubeletAuthorizationModeWebhook
	c.ContainerRuntimeEndpoint, c.ImageServiceEndpoint = cfg.CRIEndpoint, cfg.CRIEndpoint
	c.PodLogsDir = cfg.PodLogsDir
	c.ProviderID = cfg.ProviderID
	c.RegisterNode = true
	c.RegisterWithTaints = cfg.Taints
	c.MaxPods = 1
	c.ClusterDomain, c.ClusterDNS, c.ResolverConfig = cfg.ClusterDomain, cfg.ClusterDNS, cfg.ResolvConf
	// The pod's cgroup is the host agent's; the kubelet makes and checks none.
	c.CgroupsPerQOS = false
	c.EnforceNodeAllocatable = nil
	c.FailCgroupV1 = false
	c.MakeIPTablesUtilChains = false
	// Images are the host's: no garbage collection from here.
	c.ImageGCHighThresholdPercent = 100
	c.EvictionHard = map[string]string{}
	if cfg.RuntimeHandler == layout.RuntimeHandlerMicroVM {
		c.VolumeStatsAggPeriod.Duration = volumePeriod
	}
	c.SerializeImagePulls = false
	c.RegistryPullQPS = 0
	c.EventRecordQPS = 0
	c.KubeAPIQPS, c.KubeAPIBurst = 0, 0
	c.EnableProfilingHandler = false
	c.NodeStatusMaxImages = 0
	if cfg.AllowPrivileged {
		c.AllowedUnsafeSysctls = machineSysctls
	}
	c.FeatureGates = map[string]bool{
		"EventedPLEG":                 true, // a container's end is seen at once, not at the next relist
		"PodAndContainerStatsFromCRI": true, // no cAdvisor
	}
	return &options.KubeletServer{KubeletFlags: *f, KubeletConfiguration: *c}, nil
}
