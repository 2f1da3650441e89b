package node

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/klog/v2"
	"k8s.io/kubernetes/pkg/volume"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/microvm/guestapi"
	"github.com/berth-run/berth/internal/microvm/podsocket"
	"github.com/berth-run/berth/internal/nodeconfig"
)

const (
	// volumePeriod is how often volumes are measured, half of the kubelet's default: a virtual machine's disk keeps count, nobody walks through files.
	volumePeriod = 30 * time.Second
	// statsAge is how old the pod's statistics may be if it does next to nothing: a metrics server that comes once a minute still finds new ones.
	statsAge = time.Minute
	// usageLimit bounds a question to the pod's virtual machine.
	usageLimit = 10 * time.Second
	// emptyDirPlugin and nfsPlugin are the names of the kubelet's plugins.
	emptyDirPlugin = "kubernetes.io/empty-dir"
	nfsPlugin      = "kubernetes.io/nfs"
)

// diskUsage is what the pod uses of its disk, where neither the kubelet nor containerd can see it: in the pod's virtual machine. Without it
// no limit of ephemeral storage would be kept.
type diskUsage struct {
	runDir func(sandbox string) string
	// sandboxes lists the node's own.
	sandboxes func(context.Context, *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error)
}

// newDiskUsage is nil for a pod whose files are on the host.
func newDiskUsage(cfg nodeconfig.Config, s *runtimeService) *diskUsage {
	if cfg.RuntimeHandler != layout.RuntimeHandlerMicroVM {
		return nil
	}
	return &diskUsage{runDir: layout.Dirs{Run: cfg.HostRunDir}.MicroVMRun, sandboxes: s.lists.listSandboxes}
}

// ask asks the shim of the pod's sandbox; nil: none runs.
func (d *diskUsage) ask(ctx context.Context) (*guestapi.Usage, error) {
	ctx, cancel := context.WithTimeout(ctx, usageLimit)
	defer cancel()
	ready := &runtimeapi.PodSandboxFilter{State: &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}}
	running, err := d.sandboxes(ctx, ready)
	if err != nil || len(running) == 0 {
		return nil, err
	}
	return podsocket.AskUsage(ctx, d.runDir(running[0].Id))
}

// complete puts the containers' writable layers into containerd's statistics of the pod.
func (d *diskUsage) complete(ctx context.Context, pods []*runtimeapi.PodSandboxStats) {
	if d == nil || len(pods) == 0 {
		return
	}
	usage, err := d.ask(ctx)
	if err != nil || usage == nil {
		klog.FromContext(ctx).V(2).Info("what the containers use of the disk is not known", "reason", err)
		return
	}
	for _, pod := range pods {
		for _, c := range pod.GetLinux().GetContainers() {
			if used, ok := usage.Containers[c.GetAttributes().GetId()]; ok && c.WritableLayer != nil {
				c.WritableLayer.UsedBytes = &runtimeapi.UInt64Value{Value: used.Used}
				c.WritableLayer.InodesUsed = &runtimeapi.UInt64Value{Value: used.InodesUsed}
			}
		}
	}
}

// measuredVolumes replaces the emptyDir plugin by one whose volumes are measured in the virtual machine, and that of NFS by one whose volumes are not
// measured: on the host there is a note in their place (package remotefs), and a server that is gone would keep the machine's agent waiting.
func (d *diskUsage) measuredVolumes(plugins []volume.VolumePlugin) []volume.VolumePlugin {
	if d == nil {
		return plugins
	}
	for i, p := range plugins {
		switch p.GetPluginName() {
		case emptyDirPlugin:
			plugins[i] = measuredPlugin{p, d}
		case nfsPlugin:
			plugins[i] = unmeasuredPlugin{p}
		}
	}
	return plugins
}

type measuredPlugin struct {
	volume.VolumePlugin
	usage *diskUsage
}

func (p measuredPlugin) NewMounter(spec *volume.Spec, pod *v1.Pod) (volume.Mounter, error) {
	m, err := p.VolumePlugin.NewMounter(spec, pod)
	if err != nil {
		return nil, err
	}
	return measuredMounter{m, spec.Name(), p.usage}, nil
}

type measuredMounter struct {
	volume.Mounter
	name  string
	usage *diskUsage
}

// GetMetrics measures the volume: its own space if it is in memory, its share of the pod's disk else.
func (m measuredMounter) GetMetrics() (*volume.Metrics, error) {
	out, err := m.Mounter.GetMetrics()
	if err != nil {
		return out, err
	}
	usage, err := m.usage.ask(context.Background())
	if err != nil || usage == nil {
		return out, err
	}
	used, whole := usage.Volumes[m.name], usage.Disk
	if used.Capacity > 0 {
		whole = used
	}
	for field, value := range map[**resource.Quantity]uint64{
		&out.Used: used.Used, &out.InodesUsed: used.InodesUsed, &out.Capacity: whole.Capacity, &out.Available: whole.Available,
		&out.Inodes: whole.Inodes, &out.InodesFree: whole.InodesFree,
	} {
		*field = resource.NewQuantity(int64(value), resource.BinarySI)
	}
	return out, nil
}

type unmeasuredPlugin struct{ volume.VolumePlugin }

func (p unmeasuredPlugin) NewMounter(spec *volume.Spec, pod *v1.Pod) (volume.Mounter, error) {
	m, err := p.VolumePlugin.NewMounter(spec, pod)
	if err != nil {
		return nil, err
	}
	return unmeasuredMounter{m}, nil
}

type unmeasuredMounter struct{ volume.Mounter }

func (unmeasuredMounter) GetMetrics() (*volume.Metrics, error) {
	return nil, volume.NewNotSupportedError()
}
