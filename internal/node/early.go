package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"github.com/opencontainers/cgroups"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/record"
	resourcehelper "k8s.io/component-helpers/resource"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
	labels "k8s.io/kubelet/pkg/types"
	"k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/cm"
	kubecontainer "k8s.io/kubernetes/pkg/kubelet/container"
	"k8s.io/kubernetes/pkg/kubelet/kuberuntime"
	runtimeutil "k8s.io/kubernetes/pkg/kubelet/kuberuntime/util"
	"k8s.io/kubernetes/pkg/kubelet/network/dns"
	"k8s.io/kubernetes/pkg/kubelet/types"
	"k8s.io/utils/ptr"

	"github.com/berth-run/berth/internal/nodeconfig"
)

const (
	// boundPoll and boundTries are how the pod is looked for: it is bound at about the time that this process is configured.
	boundPoll  = 10 * time.Millisecond
	boundTries = 20
	// unclaimedLimit is how long an early sandbox waits for the kubelet to ask for it; volumes that do not mount, or a
	// kubelet that refuses the pod, are why it would not.
	unclaimedLimit = 30 * time.Second
	// sandboxNice is how much the kubelet yields while the sandbox starts: that takes longer.
	sandboxNice = 10
	// hostNameMax is the kernel's limit (sysconf HOST_NAME_MAX less one, as in the kubelet).
	hostNameMax = 63
)

// earlySandbox starts the pod's sandbox while the kubelet is still getting ready, which takes about as long. The sandbox
// is made from what the kubelet is going to ask for; when it asks, and asks for exactly that, it gets it. If it asks for
// anything else, the early one is removed and all is as if it had never been. Until then nobody sees it.
type earlySandbox struct {
	service internalapi.RuntimeService
	handler string

	mu      sync.Mutex
	begun   bool
	over    bool // claimed or removed
	config  *runtimeapi.PodSandboxConfig
	prepare func(*runtimeapi.PodSandboxConfig)
	done    chan struct{}
	id      string
	err     error
}

func newEarlySandbox(s internalapi.RuntimeService, cfg nodeconfig.Config, prepare func(*runtimeapi.PodSandboxConfig)) *earlySandbox {
	return &earlySandbox{service: s, handler: cfg.RuntimeHandler, prepare: prepare, done: make(chan struct{})}
}

// hidden says that the only sandbox there is is one that the kubelet has not asked for yet.
func (e *earlySandbox) hidden() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.begun && !e.over
}

// start makes a sandbox for config, unless the node has one from before.
func (e *earlySandbox) start(ctx context.Context, config *runtimeapi.PodSandboxConfig, existing func() (int, error)) {
	defer close(e.done)
	if n, err := existing(); err != nil || n > 0 {
		return
	}
	if e.err = os.MkdirAll(config.LogDirectory, 0o755); e.err != nil {
		return
	}
	e.mu.Lock()
	if e.over { // the kubelet was faster
		e.mu.Unlock()
		return
	}
	e.begun, e.config = true, config
	e.mu.Unlock()
	prepared := proto.Clone(config).(*runtimeapi.PodSandboxConfig)
	e.prepare(prepared)
	setNice(sandboxNice)
	e.id, e.err = e.service.RunPodSandbox(ctx, prepared, e.handler)
	setNice(0)
	time.AfterFunc(unclaimedLimit, func() {
		if e.claim() {
			e.remove(context.WithoutCancel(ctx))
		}
	})
}

// setNice sets the priority of all threads of this process, which is the only one of its process group.
func setNice(nice int) {
	if err := unix.Setpriority(unix.PRIO_PGRP, 0, nice); err != nil {
		klog.Background().Info("the kubelet's priority stays as it is", "nice", nice, "error", err)
	}
}

// claim ends the early sandbox's time: true means that there is one, and that the caller now answers for it.
func (e *earlySandbox) claim() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.over {
		return false
	}
	e.over = true
	return e.begun
}

// take gives the early sandbox to a kubelet that asks for config; "" means that it has to be made now.
func (e *earlySandbox) take(ctx context.Context, config *runtimeapi.PodSandboxConfig) string {
	if !e.claim() {
		return ""
	}
	select {
	case <-e.done:
	case <-ctx.Done():
		return ""
	}
	if e.err != nil {
		klog.FromContext(ctx).Info("the sandbox could not be started early", "error", e.err)
		return ""
	}
	if proto.Equal(comparable(e.config), comparable(config)) {
		return e.id
	}
	klog.FromContext(ctx).Info("the sandbox started early is not what the kubelet wants", "early", e.config, "wanted", config)
	e.remove(ctx)
	return ""
}

func (e *earlySandbox) remove(ctx context.Context) {
	if e.id == "" {
		return
	}
	if err := errors.Join(e.service.StopPodSandbox(ctx, e.id), e.service.RemovePodSandbox(ctx, e.id)); err != nil {
		klog.FromContext(ctx).Error(err, "remove a sandbox that was started early", "sandbox", e.id)
	}
}

// comparable is a configuration less the kubelet's own notes on when and from where it heard of the pod.
func comparable(c *runtimeapi.PodSandboxConfig) *runtimeapi.PodSandboxConfig {
	out := proto.Clone(c).(*runtimeapi.PodSandboxConfig)
	delete(out.Annotations, types.ConfigSourceAnnotationKey)
	delete(out.Annotations, types.ConfigFirstSeenAnnotationKey)
	return out
}

// findPod waits a moment for the node's pod.
func findPod(ctx context.Context, client kubernetes.Interface, cfg nodeconfig.Config) (*v1.Pod, error) {
	ofNode := metav1.ListOptions{FieldSelector: fields.OneTermEqualSelector("spec.nodeName", cfg.NodeName).String()}
	for range boundTries {
		pods, err := client.CoreV1().Pods(cfg.PodNamespace).List(ctx, ofNode)
		if err != nil {
			return nil, fmt.Errorf("find the node's pod: %w", err)
		}
		for i := range pods.Items {
			if pods.Items[i].UID == cfg.PodUID {
				return &pods.Items[i], nil
			}
		}
		time.Sleep(boundPoll)
	}
	return nil, fmt.Errorf("pod %s/%s is not bound to node %s yet", cfg.PodNamespace, cfg.PodName, cfg.NodeName)
}

// errUnusual says that a pod's sandbox is left to the kubelet.
var errUnusual = errors.New("the pod's sandbox is not started early: it uses a setting that only the kubelet resolves")

// sandboxConfig is what the kubelet makes of an ordinary pod (kuberuntime.generatePodSandboxConfig). It need not know
// everything: a pod it gets wrong starts later, not wrongly.
func sandboxConfig(ctx context.Context, pod *v1.Pod, c *config.KubeletConfiguration) (*runtimeapi.PodSandboxConfig, error) {
	spec := &pod.Spec
	if spec.HostnameOverride != nil || ptr.Deref(spec.SetHostnameAsFQDN, false) || spec.Overhead != nil ||
		!ptr.Deref(spec.HostUsers, true) || spec.HostNetwork || (spec.SecurityContext != nil && spec.SecurityContext.SELinuxOptions != nil) {
		return nil, errUnusual
	}
	silent := &record.FakeRecorder{} // the kubelet itself sends the events about a pod's DNS
	resolver, err := dns.NewConfigurer(silent, &v1.ObjectReference{}, nil, parseIPs(c.ClusterDNS), c.ClusterDomain, c.ResolverConfig).GetPodDNS(ctx, pod)
	if err != nil {
		return nil, fmt.Errorf("work out the pod's DNS: %w", err)
	}
	out := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: pod.Name, Namespace: pod.Namespace, Uid: string(pod.UID)},
		Hostname:     hostname(pod),
		LogDirectory: kuberuntime.BuildPodLogsDirectory(c.PodLogsDir, pod.Namespace, pod.Name, pod.UID),
		DnsConfig:    resolver,
		Labels:       map[string]string{},
		Annotations:  pod.Annotations,
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			Resources: podResources(pod, c),
			Overhead:  &runtimeapi.LinuxContainerResources{},
		},
	}
	for k, v := range pod.Labels {
		out.Labels[k] = v
	}
	out.Labels[labels.KubernetesPodNameLabel] = pod.Name
	out.Labels[labels.KubernetesPodNamespaceLabel] = pod.Namespace
	out.Labels[labels.KubernetesPodUIDLabel] = string(pod.UID)
	for i := range spec.Containers {
		for _, p := range kubecontainer.MakePortMappings(klog.FromContext(ctx), &spec.Containers[i]) {
			out.PortMappings = append(out.PortMappings, &runtimeapi.PortMapping{HostIp: p.HostIP, HostPort: int32(p.HostPort),
				ContainerPort: int32(p.ContainerPort), Protocol: runtimeapi.Protocol(runtimeapi.Protocol_value[string(p.Protocol)])})
		}
	}
	return out, security(ctx, pod, out.Linux)
}

func hostname(pod *v1.Pod) string {
	name := pod.Name
	if pod.Spec.Hostname != "" {
		name = pod.Spec.Hostname
	}
	if len(name) > hostNameMax {
		name = name[:hostNameMax]
	}
	return name
}

func podResources(pod *v1.Pod, c *config.KubeletConfiguration) *runtimeapi.LinuxContainerResources {
	opts := resourcehelper.PodResourcesOptions{ExcludeOverhead: true}
	request, limit := resourcehelper.PodRequests(pod, opts), resourcehelper.PodLimits(pod, opts)
	cpu := limit.Cpu()
	if _, asked := request[v1.ResourceCPU]; asked {
		cpu = request.Cpu()
	}
	out := &runtimeapi.LinuxContainerResources{
		CpuShares: int64(cm.MilliCPUToShares(cpu.MilliValue())), MemoryLimitInBytes: limit.Memory().Value(),
		CpuPeriod: cm.QuotaPeriod, CpuQuota: cm.MilliCPUToQuota(limit.Cpu().MilliValue(), cm.QuotaPeriod),
	}
	if cgroups.IsCgroup2UnifiedMode() && !ptr.Deref(c.SingleProcessOOMKill, true) {
		out.Unified = map[string]string{"memory.oom.group": "1"}
	}
	return out
}

func security(ctx context.Context, pod *v1.Pod, linux *runtimeapi.LinuxPodSandboxConfig) error {
	linux.SecurityContext = &runtimeapi.LinuxSandboxSecurityContext{
		Privileged: kubecontainer.HasPrivilegedContainer(pod),
		Seccomp:    &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
	}
	sc := pod.Spec.SecurityContext
	if sc == nil {
		return nil
	}
	linux.Sysctls = map[string]string{}
	for _, s := range sc.Sysctls {
		linux.Sysctls[s.Name] = s.Value
	}
	namespaces, err := runtimeutil.NamespacesForPod(ctx, pod, hostUsers{}, nil)
	if err != nil {
		return fmt.Errorf("work out the pod's namespaces: %w", err)
	}
	out := linux.SecurityContext
	out.NamespaceOptions = namespaces
	if sc.RunAsUser != nil {
		out.RunAsUser = &runtimeapi.Int64Value{Value: *sc.RunAsUser}
	}
	if sc.RunAsGroup != nil {
		out.RunAsGroup = &runtimeapi.Int64Value{Value: *sc.RunAsGroup}
	}
	if sc.FSGroup != nil {
		out.SupplementalGroups = append(out.SupplementalGroups, *sc.FSGroup)
	}
	out.SupplementalGroups = append(out.SupplementalGroups, sc.SupplementalGroups...)
	if sc.SupplementalGroupsPolicy != nil {
		out.SupplementalGroupsPolicy = runtimeapi.SupplementalGroupsPolicy(runtimeapi.SupplementalGroupsPolicy_value[string(*sc.SupplementalGroupsPolicy)])
	}
	return nil
}

// hostUsers answers for a pod without a user namespace of its own.
type hostUsers struct{ kubecontainer.RuntimeHelper }

func (hostUsers) GetOrCreateUserNamespaceMappings(klog.Logger, *v1.Pod, string) (*runtimeapi.UserNamespace, error) {
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_NODE}, nil
}

func parseIPs(addresses []string) []net.IP {
	var out []net.IP
	for _, a := range addresses {
		if ip := net.ParseIP(a); ip != nil {
			out = append(out, ip)
		}
	}
	return out
}
