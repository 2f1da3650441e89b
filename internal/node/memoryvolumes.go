package node

import (
	"encoding/json"
	"fmt"
	"path/filepath"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	kubeletconfig "k8s.io/kubernetes/pkg/kubelet/apis/config"
	"k8s.io/kubernetes/pkg/kubelet/cm"

	"github.com/berth-run/berth/internal/nodeconfig"
)

// annotationMemoryVolumes tells gVisor's shim which volumes the sandbox keeps in its own memory: mount options by directory, in JSON
// (build/gvisor/cmd/containerd-shim-runsc-v1/volumes.go).
const annotationMemoryVolumes = "berth.run/memory-volumes"

// memoryVolumes is the annotation's value for a pod: its emptyDir volumes in memory, with owner and mode that they have from the kubelet. Empty:
// there are none. A volume of which a container mounts a part only is not among them: its directories are made on the host.
func memoryVolumes(pod *v1.Pod, cfg nodeconfig.Config) (string, error) {
	out := map[string]string{}
	for _, v := range pod.Spec.Volumes {
		if v.EmptyDir == nil || v.EmptyDir.Medium != v1.StorageMediumMemory || mountedInPart(&pod.Spec, v.Name) {
			continue
		}
		options := []string{"rw", "mode=1777"}
		if sc := pod.Spec.SecurityContext; sc != nil && sc.FSGroup != nil {
			options = []string{"rw", "mode=3777", fmt.Sprintf("gid=%d", *sc.FSGroup)}
		}
		options = append(options, fmt.Sprintf("size=%d", memoryVolumeSize(pod, v.EmptyDir.SizeLimit, cfg.Capacity.Memory())))
		out[filepath.Join(cfg.RootDir, "pods", string(pod.UID), "volumes", strings.ReplaceAll(emptyDirPlugin, "/", "~"), v.Name)] = strings.Join(options, ",")
	}
	if len(out) == 0 {
		return "", nil
	}
	text, err := json.Marshal(out)
	return string(text), err
}

// memoryVolumeSize in bytes is as in the kubelet (volume/emptydir, calculateEmptyDirMemorySize): the volume's limit, or the pod's, or all
// there is, whatever is least.
func memoryVolumeSize(pod *v1.Pod, limit, capacity *resource.Quantity) int64 {
	size := capacity.Value()
	if of := cm.ResourceConfigForPod(pod, false, uint64(cm.QuotaPeriod), false, kubeletconfig.NoneMemoryReservationPolicy); of != nil && of.Memory != nil && *of.Memory > 0 {
		size = min(size, *of.Memory)
	}
	if limit != nil && limit.Value() > 0 {
		size = min(size, limit.Value())
	}
	return size
}

func mountedInPart(spec *v1.PodSpec, volume string) bool {
	for _, containers := range [][]v1.Container{spec.InitContainers, spec.Containers} {
		for i := range containers {
			for _, m := range containers[i].VolumeMounts {
				if m.Name == volume && (m.SubPath != "" || m.SubPathExpr != "") {
					return true
				}
			}
		}
	}
	return false
}
