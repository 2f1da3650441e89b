package node

import (
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"

	"github.com/berth-run/berth/internal/nodeconfig"
)

// TestMemoryVolumes: owner, mode and size are the kubelet's; what it has to have on the host stays there.
func TestMemoryVolumes(t *testing.T) {
	memory := &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory}
	limited := &v1.EmptyDirVolumeSource{Medium: v1.StorageMediumMemory, SizeLimit: ptr.To(resource.MustParse("64Mi"))}
	for name, c := range map[string]struct {
		volume  *v1.EmptyDirVolumeSource
		fsGroup *int64
		mount   v1.VolumeMount
		limit   string // of the container's memory
		want    string
	}{
		"on the disk":           {volume: &v1.EmptyDirVolumeSource{}},
		"in memory":             {volume: memory, want: `{"/root/pods/uid/volumes/kubernetes.io~empty-dir/cache":"rw,mode=1777,size=1073741824"}`},
		"of a group":            {volume: memory, fsGroup: ptr.To(int64(1234)), want: `{"/root/pods/uid/volumes/kubernetes.io~empty-dir/cache":"rw,mode=3777,gid=1234,size=1073741824"}`},
		"limited":               {volume: limited, want: `{"/root/pods/uid/volumes/kubernetes.io~empty-dir/cache":"rw,mode=1777,size=67108864"}`},
		"limited by the pod":    {volume: memory, limit: "512Mi", want: `{"/root/pods/uid/volumes/kubernetes.io~empty-dir/cache":"rw,mode=1777,size=536870912"}`},
		"mounted in part":       {volume: memory, mount: v1.VolumeMount{SubPath: "a"}},
		"mounted in part by $A": {volume: memory, mount: v1.VolumeMount{SubPathExpr: "$(A)"}},
	} {
		t.Run(name, func(t *testing.T) {
			c.mount.Name = "cache"
			pod := &v1.Pod{ObjectMeta: metav1.ObjectMeta{UID: "uid"}, Spec: v1.PodSpec{
				SecurityContext: &v1.PodSecurityContext{FSGroup: c.fsGroup},
				Volumes:         []v1.Volume{{Name: "cache", VolumeSource: v1.VolumeSource{EmptyDir: c.volume}}},
				Containers:      []v1.Container{{VolumeMounts: []v1.VolumeMount{c.mount}}},
			}}
			if c.limit != "" {
				pod.Spec.Containers[0].Resources.Limits = v1.ResourceList{v1.ResourceMemory: resource.MustParse(c.limit)}
			}
			got, err := memoryVolumes(pod, nodeconfig.Config{RootDir: "/root", Capacity: v1.ResourceList{v1.ResourceMemory: resource.MustParse("1Gi")}})
			if err != nil || got != c.want {
				t.Errorf("got %s, %v\nwant %s", got, err, c.want)
			}
		})
	}
}
