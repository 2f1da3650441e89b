package node

import (
	"context"

	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/nodeconfig"
)

// LabelNode is on every sandbox and container of a node process; its value is the node's name.
const LabelNode = "berth.run/node"

// runtimeService is containerd's runtime as one node sees it: only what carries its label. Two kubelets that saw each
// other's pods would kill them. It also puts each sandbox into the pod's cgroup and under the node's runtime handler.
type runtimeService struct {
	internalapi.RuntimeService
	cfg    nodeconfig.Config
	report *reporter
	// quotaMilli is the CPU that the pod's cgroup allows, in thousandths of a core.
	quotaMilli int64
	forward    *forwarder
}

func newRuntimeService(s internalapi.RuntimeService, cfg nodeconfig.Config, report *reporter) internalapi.RuntimeService {
	return &runtimeService{RuntimeService: s, cfg: cfg, report: report, quotaMilli: cfg.Capacity.Cpu().MilliValue(), forward: &forwarder{command: cfg.PortForward}}
}

func (s *runtimeService) mine(selector map[string]string) map[string]string {
	return with(selector, LabelNode, s.cfg.NodeName)
}

func with(m map[string]string, key, value string) map[string]string {
	out := make(map[string]string, len(m)+1)
	for k, v := range m {
		out[k] = v
	}
	out[key] = value
	return out
}

func (s *runtimeService) ListPodSandbox(ctx context.Context, filter *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
	f := &runtimeapi.PodSandboxFilter{Id: filter.GetId(), State: filter.GetState(), LabelSelector: s.mine(filter.GetLabelSelector())}
	if filter == nil || filter.State == nil {
		f.State = nil
	}
	return s.RuntimeService.ListPodSandbox(ctx, f)
}

func (s *runtimeService) ListContainers(ctx context.Context, filter *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	f := &runtimeapi.ContainerFilter{Id: filter.GetId(), PodSandboxId: filter.GetPodSandboxId(), LabelSelector: s.mine(filter.GetLabelSelector())}
	if filter != nil {
		f.State = filter.State
	}
	return s.RuntimeService.ListContainers(ctx, f)
}

func (s *runtimeService) ListContainerStats(ctx context.Context, filter *runtimeapi.ContainerStatsFilter) ([]*runtimeapi.ContainerStats, error) {
	return s.RuntimeService.ListContainerStats(ctx, &runtimeapi.ContainerStatsFilter{
		Id: filter.GetId(), PodSandboxId: filter.GetPodSandboxId(), LabelSelector: s.mine(filter.GetLabelSelector())})
}

func (s *runtimeService) ListPodSandboxStats(ctx context.Context, filter *runtimeapi.PodSandboxStatsFilter) ([]*runtimeapi.PodSandboxStats, error) {
	return s.RuntimeService.ListPodSandboxStats(ctx, &runtimeapi.PodSandboxStatsFilter{
		Id: filter.GetId(), LabelSelector: s.mine(filter.GetLabelSelector())})
}

// ListPodSandboxMetrics has no filter: what is not this pod's is dropped here.
func (s *runtimeService) ListPodSandboxMetrics(ctx context.Context) ([]*runtimeapi.PodSandboxMetrics, error) {
	own, err := s.ListPodSandbox(ctx, nil)
	if err != nil {
		return nil, err
	}
	ids := map[string]bool{}
	for _, p := range own {
		ids[p.Id] = true
	}
	all, err := s.RuntimeService.ListPodSandboxMetrics(ctx)
	if err != nil {
		return nil, err
	}
	var mine []*runtimeapi.PodSandboxMetrics
	for _, m := range all {
		if ids[m.PodSandboxId] {
			mine = append(mine, m)
		}
	}
	return mine, nil
}

// GetContainerEvents passes on the events of this node's pod only.
func (s *runtimeService) GetContainerEvents(ctx context.Context, out chan *runtimeapi.ContainerEventResponse, connected func(runtimeapi.RuntimeService_GetContainerEventsClient)) error {
	all := make(chan *runtimeapi.ContainerEventResponse, cap(out))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for event := range all {
			if event.GetPodSandboxStatus().GetMetadata().GetUid() == string(s.cfg.PodUID) {
				out <- event
			}
		}
	}()
	err := s.RuntimeService.GetContainerEvents(ctx, all, connected)
	close(all)
	<-done
	return err
}

func (s *runtimeService) RunPodSandbox(ctx context.Context, config *runtimeapi.PodSandboxConfig, handler string) (string, error) {
	config.Labels = s.mine(config.Labels)
	if config.Linux == nil {
		config.Linux = &runtimeapi.LinuxPodSandboxConfig{}
	}
	config.Linux.CgroupParent = s.cfg.CgroupParent
	s.clamp(config.Linux.Resources)
	if handler == "" {
		handler = s.cfg.RuntimeHandler
	}
	id, err := s.RuntimeService.RunPodSandbox(ctx, config, handler)
	if err == nil {
		s.report.send(nodeconfig.StageSandboxStarted, id)
	}
	return id, err
}

func (s *runtimeService) CreateContainer(ctx context.Context, sandbox string, config *runtimeapi.ContainerConfig, sandboxConfig *runtimeapi.PodSandboxConfig) (string, error) {
	config.Labels = s.mine(config.Labels)
	s.clamp(config.GetLinux().GetResources())
	if sandboxConfig.GetLinux() != nil {
		sandboxConfig.Linux.CgroupParent = s.cfg.CgroupParent
	}
	return s.RuntimeService.CreateContainer(ctx, sandbox, config, sandboxConfig)
}

func (s *runtimeService) StartContainer(ctx context.Context, id string) error {
	if err := s.RuntimeService.StartContainer(ctx, id); err != nil {
		return err
	}
	s.report.send(nodeconfig.StageContainerStarted, id)
	return nil
}

func (s *runtimeService) UpdateContainerResources(ctx context.Context, id string, resources *runtimeapi.ContainerResources) error {
	s.clamp(resources.GetLinux())
	return s.RuntimeService.UpdateContainerResources(ctx, id, resources)
}

// PortForward goes to containerd, or into the sandbox where containerd cannot.
func (s *runtimeService) PortForward(ctx context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if len(s.cfg.PortForward) == 0 {
		return s.RuntimeService.PortForward(ctx, r)
	}
	return s.forward.serve(r)
}

// clamp lowers a CPU limit to the pod's size. The kernel refuses a quota above its parent's ("invalid argument"), which
// on EKS keeps such pods from starting (aws/containers-roadmap#1864); the pod's cgroup holds the limit anyway.
func (s *runtimeService) clamp(r *runtimeapi.LinuxContainerResources) {
	if r == nil || r.CpuQuota <= 0 || r.CpuPeriod <= 0 || s.quotaMilli <= 0 {
		return
	}
	if most := s.quotaMilli * r.CpuPeriod / 1000; r.CpuQuota > most {
		r.CpuQuota = most
	}
}
