package node

import (
	"context"
	"fmt"
	"maps"
	"strconv"
	"strings"
	"sync/atomic"

	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/microvm/podsocket"
	"github.com/berth-run/berth/internal/nodeconfig"
	"github.com/berth-run/berth/internal/profile"
	"github.com/berth-run/berth/internal/still"
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
	early      *earlySandbox
	lists      *lists
	usage      *diskUsage
	stats      *still.Answer[[]*runtimeapi.PodSandboxStats]
	machines   *machineWatch
	// memoryVolumes is an annotation's value, once the pod is known.
	memoryVolumes atomic.Pointer[string]
}

func newRuntimeService(s internalapi.RuntimeService, cfg nodeconfig.Config, report *reporter) *runtimeService {
	out := &runtimeService{RuntimeService: s, cfg: cfg, report: report, quotaMilli: cfg.Capacity.Cpu().MilliValue(), forward: &forwarder{how: cfg.PortForward}}
	out.lists = newLists(s, out.mine(nil), func(id string, said runtimeapi.PodSandboxState) runtimeapi.PodSandboxState {
		return out.machines.state(id, said)
	})
	out.usage = newDiskUsage(cfg, out)
	out.stats = still.New[[]*runtimeapi.PodSandboxStats](statsAge, func() (uint64, error) { return still.CPU(cfg.CgroupParent) })
	out.early = newEarlySandbox(s, cfg, out.prepare)
	return out
}

// startEarly starts the sandbox of a pod that the kubelet does not know yet.
func (s *runtimeService) startEarly(ctx context.Context, config *runtimeapi.PodSandboxConfig) {
	s.early.start(ctx, config, func() (int, error) {
		list, err := s.RuntimeService.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{LabelSelector: s.mine(nil)})
		return len(list), err
	})
}

// keepInMemory has the pod's sandbox keep volumes in its memory itself, where that is done by annotation. It is for before the sandbox is made.
func (s *runtimeService) keepInMemory(pod *v1.Pod) error {
	if s.cfg.RuntimeHandler != layout.RuntimeHandlerGVisor {
		return nil
	}
	volumes, err := memoryVolumes(pod, s.cfg)
	if err == nil && volumes != "" {
		s.memoryVolumes.Store(&volumes)
	}
	return err
}

func (s *runtimeService) mine(selector map[string]string) map[string]string {
	return merge(selector, map[string]string{LabelNode: s.cfg.NodeName})
}

// merge is a and b together; b wins.
func merge(a, b map[string]string) map[string]string {
	out := make(map[string]string, len(a)+len(b))
	maps.Copy(out, a)
	maps.Copy(out, b)
	return out
}

func (s *runtimeService) ListPodSandbox(ctx context.Context, filter *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
	if s.early.hidden() {
		return nil, nil
	}
	list, err := s.lists.listSandboxes(ctx, filter)
	for _, p := range list {
		if p.State == runtimeapi.PodSandboxState_SANDBOX_READY {
			s.machines.watch(p.Id)
		}
	}
	return list, err
}

// PodSandboxStatus is containerd's, of a sandbox that has its machine still.
func (s *runtimeService) PodSandboxStatus(ctx context.Context, id string, verbose bool) (*runtimeapi.PodSandboxStatusResponse, error) {
	response, err := s.RuntimeService.PodSandboxStatus(ctx, id, verbose)
	if said := response.GetStatus(); said != nil {
		said.State = s.machines.state(id, said.State)
	}
	return response, err
}

func (s *runtimeService) ListContainers(ctx context.Context, filter *runtimeapi.ContainerFilter) ([]*runtimeapi.Container, error) {
	return s.lists.listContainers(ctx, filter)
}

func (s *runtimeService) ListContainerStats(ctx context.Context, filter *runtimeapi.ContainerStatsFilter) ([]*runtimeapi.ContainerStats, error) {
	return s.RuntimeService.ListContainerStats(ctx, &runtimeapi.ContainerStatsFilter{
		Id: filter.GetId(), PodSandboxId: filter.GetPodSandboxId(), LabelSelector: s.mine(filter.GetLabelSelector())})
}

func (s *runtimeService) ListPodSandboxStats(ctx context.Context, filter *runtimeapi.PodSandboxStatsFilter) ([]*runtimeapi.PodSandboxStats, error) {
	ask := func() ([]*runtimeapi.PodSandboxStats, error) {
		stats, err := s.RuntimeService.ListPodSandboxStats(ctx, &runtimeapi.PodSandboxStatsFilter{
			Id: filter.GetId(), LabelSelector: s.mine(filter.GetLabelSelector())})
		s.usage.complete(ctx, stats)
		return stats, err
	}
	if filter.GetId() != "" || len(filter.GetLabelSelector()) > 0 {
		return ask()
	}
	// The kubelet asks every ten seconds, to keep limits of ephemeral storage, and metrics servers do.
	return s.stats.Get(s.lists.changes(), ask)
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
			if event.GetPodSandboxStatus().GetMetadata().GetUid() != string(s.cfg.PodUID) {
				continue
			}
			s.lists.changed()
			event.PodSandboxStatus.State = s.machines.state(event.PodSandboxStatus.Id, event.PodSandboxStatus.State)
			if !s.early.hidden() {
				out <- event
			}
		}
	}()
	open := false
	err := s.RuntimeService.GetContainerEvents(ctx, all, func(client runtimeapi.RuntimeService_GetContainerEventsClient) {
		open = true
		s.lists.streaming(+1)
		if connected != nil {
			connected(client)
		}
	})
	if open {
		s.lists.streaming(-1)
	}
	close(all)
	<-done
	return err
}

// RunPodSandbox runs it under the node's handler, not under that of the pod's RuntimeClass, which whoever writes those could make any:
// the scheduler has decided on the isolation, with a view to that. A handler that is none of ours has containerd's answer.
func (s *runtimeService) RunPodSandbox(ctx context.Context, config *runtimeapi.PodSandboxConfig, asked string) (string, error) {
	if !profile.HandlerKnown(asked) {
		err := fmt.Errorf("%s: remove runtimeClassName, or name a RuntimeClass with handler gvisor or microvm", eks.MessageNoRuntime(asked))
		s.report.trouble(podsocket.Trouble{Reason: reasonSandboxFailed, Message: err.Error()})
		return "", err
	}
	id := s.early.take(ctx, config)
	if id == "" {
		s.prepare(config)
		var err error
		if id, err = s.RuntimeService.RunPodSandbox(ctx, config, s.cfg.RuntimeHandler); err != nil {
			s.report.trouble(podsocket.Trouble{Reason: reasonSandboxFailed, Message: status.Convert(err).Message()})
			return "", err
		}
	}
	s.lists.changed()
	s.machines.watch(id)
	s.report.trouble(podsocket.Trouble{})
	s.report.send(nodeconfig.StageSandboxStarted, id)
	return id, nil
}

// prepare marks a sandbox as this node's and puts it into the pod's cgroup.
func (s *runtimeService) prepare(config *runtimeapi.PodSandboxConfig) {
	config.Labels = s.mine(config.Labels)
	if config.Linux == nil {
		config.Linux = &runtimeapi.LinuxPodSandboxConfig{}
	}
	config.Linux.CgroupParent = s.cfg.CgroupParent
	s.clamp(config.Linux.Resources)
	config.Annotations = merge(config.Annotations, nil) // a copy: the pod's own stay as they are
	// The shims take what is under our prefix at its word, so nothing of the user's gets there.
	maps.DeleteFunc(config.Annotations, func(key, _ string) bool { return strings.HasPrefix(key, annotationPrefix) })
	maps.Copy(config.Annotations, s.size())
	if volumes := s.memoryVolumes.Load(); volumes != nil {
		config.Annotations[annotationMemoryVolumes] = *volumes
	}
}

// Annotations by which a shim learns the pod's size, so that the pod sees its own machine and not the host
// (build/gvisor/cmd/containerd-shim-runsc-v1/size.go): memory and disk in bytes, CPU in thousandths of a core. containerd
// hands on those with the prefix (runtimeconf).
const (
	annotationPrefix = "berth.run/"
	annotationMemory = "berth.run/size-memory"
	annotationDisk   = "berth.run/size-ephemeral-storage"
	annotationCPU    = "berth.run/size-cpu-milli"
)

func (s *runtimeService) size() map[string]string {
	c := s.cfg.Capacity
	return map[string]string{
		annotationMemory: strconv.FormatInt(c.Memory().Value(), 10),
		annotationDisk:   strconv.FormatInt(c.StorageEphemeral().Value(), 10),
		annotationCPU:    strconv.FormatInt(c.Cpu().MilliValue(), 10),
	}
}

func (s *runtimeService) CreateContainer(ctx context.Context, sandbox string, config *runtimeapi.ContainerConfig, sandboxConfig *runtimeapi.PodSandboxConfig) (string, error) {
	config.Labels = s.mine(config.Labels)
	s.clamp(config.GetLinux().GetResources())
	if sandboxConfig != nil {
		s.prepare(sandboxConfig) // containerd reads it from here, not from what it was told for the sandbox
	}
	if err := s.mountShares(ctx, sandbox); err != nil {
		return "", err
	}
	defer s.lists.changed()
	return s.RuntimeService.CreateContainer(ctx, sandbox, config, sandboxConfig)
}

func (s *runtimeService) StartContainer(ctx context.Context, id string) error {
	defer s.lists.changed()
	if err := s.RuntimeService.StartContainer(ctx, id); err != nil {
		return err
	}
	s.report.send(nodeconfig.StageContainerStarted, id)
	return nil
}

// StopPodSandbox and the three that follow are containerd's; what is remembered is old after them.
func (s *runtimeService) StopPodSandbox(ctx context.Context, id string) error {
	defer s.lists.changed()
	return s.RuntimeService.StopPodSandbox(ctx, id)
}

func (s *runtimeService) RemovePodSandbox(ctx context.Context, id string) error {
	defer s.lists.changed()
	return s.RuntimeService.RemovePodSandbox(ctx, id)
}

func (s *runtimeService) StopContainer(ctx context.Context, id string, timeout int64) error {
	defer s.lists.changed()
	return s.RuntimeService.StopContainer(ctx, id, timeout)
}

func (s *runtimeService) RemoveContainer(ctx context.Context, id string) error {
	defer s.lists.changed()
	return s.RuntimeService.RemoveContainer(ctx, id)
}

func (s *runtimeService) UpdateContainerResources(ctx context.Context, id string, resources *runtimeapi.ContainerResources) error {
	s.clamp(resources.GetLinux())
	return s.RuntimeService.UpdateContainerResources(ctx, id, resources)
}

// PortForward goes to containerd, or into the sandbox where containerd cannot.
func (s *runtimeService) PortForward(ctx context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if s.cfg.PortForward == nil {
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
