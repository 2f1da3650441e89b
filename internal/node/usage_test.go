package node

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/kubernetes/pkg/volume"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/microvm/guestapi"
	"github.com/berth-run/berth/internal/microvm/podsocket"
)

// aShim answers what a pod uses, at the socket of the sandbox.
func aShim(t *testing.T, dirs layout.Dirs, sandbox string, usage *guestapi.Usage, failed error) {
	t.Helper()
	if err := os.MkdirAll(dirs.MicroVMRun(sandbox), 0o700); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", podsocket.Path(dirs.MicroVMRun(sandbox)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			if asked, err := bufio.NewReader(conn).ReadString('\n'); err != nil || asked != podsocket.Usage+"\n" {
				t.Errorf("the shim is asked %q, %v", asked, err)
			}
			if podsocket.Answer(conn, failed) == nil {
				_ = json.NewEncoder(conn).Encode(usage)
			}
			conn.Close()
		}
	}()
}

func usageOf(t *testing.T, usage *guestapi.Usage, failed error) *diskUsage {
	t.Helper()
	top, err := os.MkdirTemp("/tmp", "bn") // short: it is a socket's path
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(top) })
	dirs := layout.Dirs{Run: filepath.Join(top, "run")}
	aShim(t, dirs, "sandbox", usage, failed)
	return &diskUsage{runDir: dirs.MicroVMRun, sandboxes: func(context.Context, *runtimeapi.PodSandboxFilter) ([]*runtimeapi.PodSandbox, error) {
		return []*runtimeapi.PodSandbox{{Id: "sandbox"}}, nil
	}}
}

// TestContainersUse: the figures of the virtual machine take the place of containerd's, which are those of an empty directory.
func TestContainersUse(t *testing.T) {
	stats := func() []*runtimeapi.PodSandboxStats {
		c := func(id string) *runtimeapi.ContainerStats {
			return &runtimeapi.ContainerStats{Attributes: &runtimeapi.ContainerAttributes{Id: id}, WritableLayer: &runtimeapi.FilesystemUsage{UsedBytes: &runtimeapi.UInt64Value{Value: 1}}}
		}
		return []*runtimeapi.PodSandboxStats{{Linux: &runtimeapi.LinuxPodSandboxStats{Containers: []*runtimeapi.ContainerStats{c("a"), c("gone")}}}}
	}
	used := func(s []*runtimeapi.PodSandboxStats, n int) uint64 {
		return s[0].Linux.Containers[n].WritableLayer.UsedBytes.Value
	}
	got := stats()
	usageOf(t, &guestapi.Usage{Containers: map[string]guestapi.Space{"a": {Used: 30, InodesUsed: 3}}}, nil).complete(t.Context(), got)
	if used(got, 0) != 30 || got[0].Linux.Containers[0].WritableLayer.InodesUsed.Value != 3 || used(got, 1) != 1 {
		t.Errorf("statistics are %v", got)
	}
	got = stats()
	usageOf(t, nil, errors.New("the guest\nis gone")).complete(t.Context(), got)
	if used(got, 0) != 1 {
		t.Errorf("without an answer they are %v", got)
	}
	(*diskUsage)(nil).complete(t.Context(), got)
}

type aPlugin struct{ volume.VolumePlugin }

func (aPlugin) GetPluginName() string { return emptyDirPlugin }
func (aPlugin) NewMounter(*volume.Spec, *v1.Pod) (volume.Mounter, error) {
	return aMounter{}, nil
}

type aMounter struct{ volume.Mounter }

func (aMounter) GetMetrics() (*volume.Metrics, error) {
	return &volume.Metrics{Used: resource.NewQuantity(4096, resource.BinarySI)}, nil
}

// TestVolumesUse: a volume in memory has a size of its own, one on the disk shares the disk's.
func TestVolumesUse(t *testing.T) {
	d := usageOf(t, &guestapi.Usage{Disk: guestapi.Space{Used: 50, Capacity: 100, Available: 40}, Volumes: map[string]guestapi.Space{
		"disk": {Used: 30, InodesUsed: 3}, "memory": {Used: 5, Capacity: 8, Available: 3, InodesUsed: 1, Inodes: 9, InodesFree: 8}}}, nil)
	plugins := d.measuredVolumes([]volume.VolumePlugin{aPlugin{}})
	for name, want := range map[string][3]int64{"disk": {30, 100, 40}, "memory": {5, 8, 3}, "new": {0, 100, 40}} {
		m, err := plugins[0].NewMounter(volume.NewSpecFromVolume(&v1.Volume{Name: name}), nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.GetMetrics()
		if err != nil {
			t.Fatal(err)
		}
		if have := [3]int64{got.Used.Value(), got.Capacity.Value(), got.Available.Value()}; have != want {
			t.Errorf("volume %s: used, capacity, available are %v, want %v", name, have, want)
		}
	}
}
