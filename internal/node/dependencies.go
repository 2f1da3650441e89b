package node

import (
	"context"
	"fmt"
	"time"

	"go.opentelemetry.io/otel/trace/noop"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	utilfeature "k8s.io/apiserver/pkg/util/feature"
	"k8s.io/client-go/kubernetes"
	v1core "k8s.io/client-go/kubernetes/typed/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/record"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	remote "k8s.io/cri-client/pkg"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/cmd/kubelet/app"
	"k8s.io/kubernetes/cmd/kubelet/app/options"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	"k8s.io/kubernetes/pkg/kubelet"
	"k8s.io/kubernetes/pkg/kubelet/config"
	"k8s.io/kubernetes/pkg/kubelet/server"
	kubetypes "k8s.io/kubernetes/pkg/kubelet/types"
	kubeletutil "k8s.io/kubernetes/pkg/kubelet/util"
	"k8s.io/kubernetes/pkg/util/oom"
	"k8s.io/kubernetes/pkg/volume/util/hostutil"
	"k8s.io/kubernetes/pkg/volume/util/subpath"

	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/nodeconfig"
)

const (
	kubeletPort = eks.KubeletPort
	// criTimeout bounds one call to containerd; pulls and stops have limits of their own.
	criTimeout = 2 * time.Minute
	// heartbeatTimeout is the kubelet's default node status update frequency.
	heartbeatTimeout = 10 * time.Second
)

// clients are the connections to the API server; both use the node's own credential.
type clients struct {
	kube, heartbeat kubernetes.Interface
}

func connect(cfg nodeconfig.Config) (clients, error) {
	rc, err := clientcmd.BuildConfigFromFlags("", cfg.Kubeconfig)
	if err != nil {
		return clients{}, fmt.Errorf("read the node's kubeconfig %s: %w", cfg.Kubeconfig, err)
	}
	rc.ContentConfig = rest.ContentConfig{
		AcceptContentTypes: "application/vnd.kubernetes.protobuf,application/json",
		ContentType:        "application/vnd.kubernetes.protobuf",
	}
	rc.QPS = -1
	kube, err := kubernetes.NewForConfig(rc)
	if err != nil {
		return clients{}, fmt.Errorf("make the API client: %w", err)
	}
	hb := rest.CopyConfig(rc)
	hb.Timeout = heartbeatTimeout
	heartbeat, err := kubernetes.NewForConfig(hb)
	if err != nil {
		return clients{}, fmt.Errorf("make the heartbeat client: %w", err)
	}
	return clients{kube, heartbeat}, nil
}

// dependencies are what upstream's app.run would make, less cAdvisor, the container manager and the wait of the pod source.
func dependencies(ctx context.Context, cfg nodeconfig.Config, s *options.KubeletServer, gate *startGate, report *reporter) (*kubelet.Dependencies, error) {
	logger := klog.FromContext(ctx)
	api, err := connect(cfg)
	if err != nil {
		return nil, err
	}
	tracing := noop.NewTracerProvider()
	runtimeService, err := remote.NewRemoteRuntimeServiceBuilder().WithEndpoint(cfg.CRIEndpoint).WithConnectionTimeout(criTimeout).WithTracerProvider(nil).Build(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to containerd at %s: %w", cfg.CRIEndpoint, err)
	}
	imageService, err := remote.NewRemoteImageServiceBuilder().WithEndpoint(cfg.CRIEndpoint).WithConnectionTimeout(criTimeout).WithTracerProvider(nil).Build(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to containerd's images at %s: %w", cfg.CRIEndpoint, err)
	}
	recorder := newRecorder(ctx, api.kube, cfg.NodeName, report)
	runtime := newRuntimeService(runtimeService, cfg, report)
	go settleWhenQuiet(ctx, runtime.lists.busy)
	runtime.machines = newMachineWatch(ctx, cfg, report, recorder, runtime.lists.changed)
	go func() {
		pod, err := findPod(ctx, api.kube, cfg)
		if err == nil && (pod.Status.Phase == v1.PodSucceeded || pod.Status.Phase == v1.PodFailed) {
			return // it needs no sandbox any more
		}
		if err == nil {
			err = runtime.keepInMemory(pod)
		}
		if err == nil {
			var config *runtimeapi.PodSandboxConfig
			if config, err = sandboxConfig(ctx, pod, &s.KubeletConfiguration); err == nil {
				runtime.startEarly(ctx, config)
				return
			}
		}
		logger.Info("the sandbox is left to the kubelet", "reason", err)
	}()
	plugins, err := app.ProbeVolumePlugins(ctx, utilfeature.DefaultFeatureGate)
	if err != nil {
		return nil, fmt.Errorf("load volume plugins: %w", err)
	}
	nodeName := types.NodeName(cfg.NodeName)
	auth, runCAReload, err := app.BuildAuth(nodeName, api.kube, s.KubeletConfiguration)
	if err != nil {
		return nil, fmt.Errorf("build authentication of the kubelet's server: %w", err)
	}
	runCAReload(ctx.Done())
	tls, err := app.InitializeTLS(ctx, &s.KubeletFlags, &s.KubeletConfiguration)
	if err != nil {
		return nil, fmt.Errorf("read the kubelet's serving certificate: %w", err)
	}
	latency := kubeletutil.NewPodStartupLatencyTracker()
	mounter := newMounter(cfg)
	health, err := newHealthChecker(logger)
	if err != nil {
		return nil, fmt.Errorf("make the health checker: %w", err)
	}
	return &kubelet.Dependencies{
		Auth:                      auth,
		TLSOptions:                tls,
		KubeClient:                api.kube,
		HeartbeatClient:           api.heartbeat,
		EventClient:               api.kube.CoreV1(),
		Recorder:                  recorder,
		PodConfig:                 podSource(ctx, logger, api.kube, nodeName, recorder, latency),
		RemoteRuntimeService:      runtime,
		RemoteImageService:        newImageService(newPrivateImages(imageService, cfg.PrivateImages), report),
		CAdvisorInterface:         newMachine(cfg),
		ContainerManager:          newContainerManager(cfg, gate),
		HealthChecker:             health,
		OSInterface:               hostOS{},
		OOMAdjuster:               oom.NewFakeOOMAdjuster(),
		Mounter:                   mounter,
		Subpather:                 subpath.New(mounter),
		HostUtil:                  hostutil.NewHostUtil(),
		VolumePlugins:             runtime.usage.measuredVolumes(plugins),
		PodStartupLatencyTracker:  latency,
		NodeStartupLatencyTracker: &registrationTracker{NodeStartupLatencyTracker: kubeletutil.NewNodeStartupLatencyTracker(logger), report: report},
		TracerProvider:            tracing,
	}, nil
}

// podSource watches the node's pods at once. Upstream's own assembly first waits, in steps of a second, until the Node
// has come back from the API server; this node's labels are known here, so there is nothing to wait for.
func podSource(ctx context.Context, logger klog.Logger, client kubernetes.Interface, node types.NodeName, recorder record.EventRecorderLogger, latency kubeletutil.PodStartupLatencyTracker) *config.PodConfig {
	pods := config.NewPodConfig(recorder, latency)
	atOnce := func() bool { return true }
	config.NewSourceApiserver(logger, client, node, atOnce, pods.Channel(ctx, kubetypes.ApiserverSource))
	return pods
}

func newRecorder(ctx context.Context, client kubernetes.Interface, nodeName string, report *reporter) record.EventRecorderLogger {
	broadcaster := record.NewBroadcaster(record.WithContext(ctx))
	broadcaster.StartRecordingToSink(newHeldSink(&v1core.EventSinkImpl{Interface: client.CoreV1().Events("")}, report.started))
	return recorder{broadcaster.NewRecorder(legacyscheme.Scheme, v1.EventSource{Component: server.ComponentKubelet, Host: nodeName})}
}
