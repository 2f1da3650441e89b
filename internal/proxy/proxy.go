// Package proxy is kube-proxy for one host: upstream's own code in nftables mode, which serves the Services of all pods of
// the host. kube-proxy thinks in nodes, and here every pod is a node of its own, so it is given a view of the cluster (view.go)
// in which the host is one node that runs all of the host's pods. Only this package imports kube-proxy.
package proxy

import (
	"context"
	"fmt"
	"net"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/events"
	"k8s.io/kube-proxy/config/v1alpha1"
	"k8s.io/kubernetes/cmd/kube-proxy/app"
	"k8s.io/kubernetes/pkg/proxy"
	"k8s.io/kubernetes/pkg/proxy/apis/config"
	"k8s.io/kubernetes/pkg/proxy/apis/config/scheme"
	"k8s.io/kubernetes/pkg/proxy/healthcheck"
	"k8s.io/kubernetes/pkg/proxy/nftables"
	proxyutil "k8s.io/kubernetes/pkg/proxy/util"

	"github.com/berth-run/berth/internal/layout"
)

// Options of a host's proxy.
type Options struct {
	Kubeconfig, HostName string
	// Address of the host, by which others reach its node ports.
	Address string
	// Zone of the host's pods; empty if it has several. Endpoints of the same zone are preferred where a Service says so.
	Zone string
	// HealthAddress serves /healthz and /livez.
	HealthAddress string
}

// Run serves the Services of the host's pods until ctx ends or it fails.
func Run(ctx context.Context, o Options) error {
	settings, err := settings(o)
	if err != nil {
		return err
	}
	rest, err := clientcmd.BuildConfigFromFlags("", o.Kubeconfig)
	if err != nil {
		return fmt.Errorf("read kubeconfig %s: %w", o.Kubeconfig, err)
	}
	rest.QPS = -1
	client, err := kubernetes.NewForConfig(rest)
	if err != nil {
		return fmt.Errorf("make the API client: %w", err)
	}
	locations, err := watchLocations(ctx, rest)
	if err != nil {
		return err
	}
	s := &app.ProxyServer{
		Config: settings, NodeName: o.HostName, PrimaryIPFamily: v1.IPv4Protocol,
		Client:      &view{Interface: client, host: hostNode(o), onHost: func(node string) bool { return locations.hostOf(ctx, node) == o.HostName }},
		Broadcaster: events.NewBroadcaster(&events.EventSinkImpl{Interface: client.EventsV1()}),
		NodeIPs:     map[v1.IPFamily]net.IP{v1.IPv4Protocol: net.ParseIP(o.Address)},
		NodeRef:     &v1.ObjectReference{APIVersion: "berth.run/v1alpha1", Kind: "Host", Name: o.HostName},
	}
	s.Recorder = s.Broadcaster.NewRecorder(scheme.Scheme, "kube-proxy")
	if s.NodeManager, err = proxy.NewNodeManager(ctx, s.Client, o.HostName, settings); err != nil {
		return fmt.Errorf("see the host as a node: %w", err)
	}
	s.HealthzServer = healthcheck.NewProxyHealthServer(o.HealthAddress, 2*settings.SyncPeriod.Duration, s.NodeManager)
	s.Proxier, err = nftables.NewProxier(ctx, settings, v1.IPv4Protocol, proxyutil.NewDetectLocalByInterfaceNamePrefix(layout.VethPrefix),
		o.HostName, s.NodeIPs[v1.IPv4Protocol], s.Recorder, s.HealthzServer, false)
	if err != nil {
		return fmt.Errorf("set kube-proxy's rules up (nftables and kernel 5.13 or newer are needed): %w", err)
	}
	failed := make(chan error, 1)
	go func() { failed <- s.Run(ctx) }() // kube-proxy does not stop; its rules stay, as with upstream's
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return nil
	}
}

// settings are upstream's defaults but for what a host of many nodes needs.
func settings(o Options) (*config.KubeProxyConfiguration, error) {
	external := &v1alpha1.KubeProxyConfiguration{}
	external.Mode = v1alpha1.ProxyMode(config.ProxyModeNFTables)
	scheme.Scheme.Default(external)
	c := &config.KubeProxyConfiguration{}
	if err := scheme.Scheme.Convert(external, c, nil); err != nil {
		return nil, fmt.Errorf("convert kube-proxy's settings: %w", err)
	}
	c.HostnameOverride, c.BindAddress = o.HostName, o.Address
	c.DetectLocalMode, c.DetectLocal.InterfaceNamePrefix = config.LocalModeInterfaceNamePrefix, layout.VethPrefix
	c.NodePortAddresses = []string{"0.0.0.0/0"}
	c.MetricsBindAddress = "" // with the health of all that runs on the host: the agent's business
	c.Linux.OOMScoreAdj = nil // it cannot be lowered everywhere, and the host's other daemons live without
	// A change is in force at once; changes that come together are written together.
	c.MinSyncPeriod = metav1.Duration{Duration: 50 * time.Millisecond}
	return c, nil
}

// hostNode is the host as kube-proxy sees it.
func hostNode(o Options) *v1.Node {
	node := &v1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: o.HostName, Labels: map[string]string{v1.LabelHostname: o.HostName}},
		Status:     v1.NodeStatus{Addresses: []v1.NodeAddress{{Type: v1.NodeInternalIP, Address: o.Address}}},
	}
	if o.Zone != "" {
		node.Labels[v1.LabelTopologyZone] = o.Zone
	}
	return node
}
