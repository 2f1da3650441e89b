package shim

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/containerd/containerd/api/types"
	"github.com/google/go-cmp/cmp"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"
)

func TestToGuest(t *testing.T) {
	spec := &specs.Spec{
		Hostname: "host", Hooks: &specs.Hooks{},
		Process: &specs.Process{ApparmorProfile: "cri", SelinuxLabel: "label"},
		Linux: &specs.Linux{CgroupsPath: "/berth/uid/id", MountLabel: "label", Sysctl: map[string]string{"net.core.somaxconn": "1"},
			Namespaces: []specs.LinuxNamespace{
				{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace, Path: "/proc/7/ns/ipc"}, {Type: specs.UTSNamespace, Path: "/proc/7/ns/uts"},
				{Type: specs.MountNamespace}, {Type: specs.NetworkNamespace, Path: "/run/netns/x"}, {Type: specs.CgroupNamespace},
			}},
	}
	toGuest(spec, "id", 7)
	limits := []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 65535}, {Type: "RLIMIT_NPROC", Soft: 1024, Hard: 65535}}
	want := &specs.Spec{Process: &specs.Process{Rlimits: limits}, Linux: &specs.Linux{CgroupsPath: "/pod/id", Namespaces: []specs.LinuxNamespace{
		{Type: specs.PIDNamespace}, {Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}}}}
	if diff := cmp.Diff(want, spec); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestProcessToGuest(t *testing.T) {
	packed := &anypb.Any{Value: []byte(`{"args":["sh"],"cwd":"/","apparmorProfile":"cri","rlimits":[{"type":"RLIMIT_NOFILE","hard":1,"soft":1}]}`)}
	if err := processToGuest(packed); err != nil {
		t.Fatal(err)
	}
	var got specs.Process
	if err := json.Unmarshal(packed.Value, &got); err != nil {
		t.Fatal(err)
	}
	want := specs.Process{Args: []string{"sh"}, Cwd: "/", Rlimits: []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: 1024, Hard: 65535}, {Type: "RLIMIT_NPROC", Soft: 1024, Hard: 65535}}}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	if err := processToGuest(&anypb.Any{Value: []byte("{")}); err == nil {
		t.Error("what is no specification is taken for one")
	}
}

// TestProcessNamespace: the pod's shared one is the machine's; another container's is found by its process id in the guest.
func TestProcessNamespace(t *testing.T) {
	for name, tc := range map[string]struct {
		path string
		want []specs.LinuxNamespace
	}{
		"its own":               {"", []specs.LinuxNamespace{{Type: specs.PIDNamespace}}},
		"the pod's":             {"/proc/7/ns/pid", nil},
		"another container's":   {"/proc/77/ns/pid", []specs.LinuxNamespace{{Type: specs.PIDNamespace, Path: "/proc/77/ns/pid"}}},
		"one with a longer pid": {"/proc/7777/ns/pid", []specs.LinuxNamespace{{Type: specs.PIDNamespace, Path: "/proc/7777/ns/pid"}}},
	} {
		t.Run(name, func(t *testing.T) {
			spec := &specs.Spec{Linux: &specs.Linux{Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace, Path: tc.path}}}}
			toGuest(spec, "id", 7)
			want := append(tc.want, specs.LinuxNamespace{Type: specs.CgroupNamespace})
			if diff := cmp.Diff(want, spec.Linux.Namespaces); diff != "" {
				t.Errorf("-want +got:\n%s", diff)
			}
		})
	}
}

// TestPrivileged: a container that may use every device finds those of its machine, its modules and its control groups; others find none.
func TestPrivileged(t *testing.T) {
	null := int64(1)
	for name, tc := range map[string]struct {
		rules []specs.LinuxDeviceCgroup
		want  bool
	}{
		"no rules":   {},
		"none":       {rules: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}}},
		"one device": {rules: []specs.LinuxDeviceCgroup{{Allow: true, Type: "c", Major: &null, Minor: &null, Access: "rwm"}}},
		"every one":  {rules: []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}, want: true},
	} {
		t.Run(name, func(t *testing.T) {
			spec := &specs.Spec{Linux: &specs.Linux{Resources: &specs.LinuxResources{Devices: tc.rules}}}
			toGuest(spec, "id", 7)
			got := []bool{len(spec.Linux.Devices) > 0, len(spec.Mounts) > 0, len(spec.Linux.Namespaces) == 0}
			if diff := cmp.Diff([]bool{tc.want, tc.want, tc.want}, got); diff != "" {
				t.Errorf("devices, mounts, namespaces: %v, %v, %v", spec.Linux.Devices, spec.Mounts, spec.Linux.Namespaces)
			}
		})
	}
}

// TestWiden: who has all that the host has, has all that there is.
func TestWiden(t *testing.T) {
	hosts := capabilities[:len(capabilities)-1]
	few := []string{"CAP_CHOWN", "CAP_KILL"}
	c := &specs.LinuxCapabilities{Bounding: hosts, Effective: few, Permitted: capabilities, Inheritable: hosts}
	widen(c, hosts)
	want := &specs.LinuxCapabilities{Bounding: capabilities, Effective: few, Permitted: capabilities, Inheritable: hosts}
	if diff := cmp.Diff(want, c); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
	widen(nil, hosts)
	if n := len(hostCapabilities()); n == 0 {
		t.Error("this process, which is root's, has no capabilities")
	}
}

func TestModulesYieldToThePods(t *testing.T) {
	own := []specs.Mount{{Destination: modulesDir, Source: "/run/berth/pod/volumes/mine"}}
	if diff := cmp.Diff(own, withModules(own)); diff != "" {
		t.Errorf("-want +got:\n%s", diff)
	}
}

func TestLayersOf(t *testing.T) {
	for name, tc := range map[string]struct {
		mounts []*types.Mount
		want   []string
		fails  string
	}{
		"overlay":      {mounts: []*types.Mount{{Type: "overlay", Options: []string{"index=off", "workdir=/w", "upperdir=/u", "lowerdir=/2:/1"}}}, want: []string{"/2", "/1"}},
		"one layer":    {mounts: []*types.Mount{{Type: "bind", Source: "/1", Options: []string{"ro"}}}, want: []string{"/1"}},
		"none":         {fails: "0 mounts"},
		"several":      {mounts: []*types.Mount{{}, {}}, fails: "2 mounts"},
		"no lower":     {mounts: []*types.Mount{{Type: "overlay"}}, fails: "of type overlay"},
		"another type": {mounts: []*types.Mount{{Type: "btrfs"}}, fails: "of type btrfs: microVMs need the overlayfs snapshotter"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := layersOf(tc.mounts)
			if tc.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tc.fails) {
					t.Errorf("error is %v, want %q", err, tc.fails)
				}
				return
			}
			if diff := cmp.Diff(tc.want, got); diff != "" || err != nil {
				t.Errorf("%v, -want +got:\n%s", err, diff)
			}
		})
	}
}

func TestSizeOf(t *testing.T) {
	for name, tc := range map[string]struct {
		annotations map[string]string
		want        size
		fails       string
	}{
		"none is Fargate's smallest": {want: size{memory: 512 << 20, disk: 20 << 30, milliCPU: 250}},
		"all":                        {annotations: map[string]string{annotationMemory: "1073741824", annotationDisk: "21474836480", annotationCPU: "2000"}, want: size{memory: 1 << 30, disk: 20 << 30, milliCPU: 2000}},
		"no number":                  {annotations: map[string]string{annotationCPU: "2 cores"}, fails: `annotation berth.run/size-cpu-milli is "2 cores"`},
		"nothing":                    {annotations: map[string]string{annotationMemory: "0"}, fails: "positive"},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := sizeOf(&specs.Spec{Annotations: tc.annotations})
			if tc.fails == "" && (err != nil || got != tc.want) {
				t.Errorf("%+v, %v; want %+v", got, err, tc.want)
			}
			if tc.fails != "" && (err == nil || !strings.Contains(err.Error(), tc.fails)) {
				t.Errorf("error is %v, want %q", err, tc.fails)
			}
		})
	}
}

// TestHostPaths holds what a mount's source says of the volume against how the kubelet names directories (pkg/kubelet/kubelet_getters.go).
func TestHostPaths(t *testing.T) {
	const pods = "/var/lib/berth/nodes/u/pods/u"
	for path, want := range map[string][]string{
		pods + "/volumes/kubernetes.io~empty-dir/data":                {"empty-dir", "data", ""},
		pods + "/volumes/kubernetes.io~empty-dir/data/a/b":            {"empty-dir", "data", "/a/b"},
		pods + "/volumes/kubernetes.io~configmap/c/..2026_11/key":     {"configmap", "c", "/..2026_11/key"},
		pods + "/volumes/kubernetes.io~projected/kube-api-access-x1y": {"projected", "kube-api-access-x1y", ""},
		pods + "/etc-hosts": nil,
		"/etc/kubernetes":   nil,
	} {
		var got []string
		if found := volumeDir.FindStringSubmatch(path); found != nil {
			got = found[1:]
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: -want +got:\n%s", path, diff)
		}
	}
	for path, want := range map[string]bool{
		pods + "/containers/c/2f1e":                   true,
		pods + "/etc-hosts":                           false,
		pods + "/volume-subpaths/data/c/0":            false,
		pods + "/volumes/kubernetes.io~empty-dir/a/b": false,
	} {
		if got := terminationLog.MatchString(path); got != want {
			t.Errorf("%s is a termination log: %v", path, got)
		}
	}
	if !subPathDir.MatchString(pods+"/volume-subpaths/data/c/0") || subPathDir.MatchString(pods+"/volume-subpaths/data/c") {
		t.Error("subPaths are not told apart")
	}
}
