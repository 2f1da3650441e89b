// Package runtimeconf writes the configuration of the programs that hold and run images: containerd, gVisor, the CNI
// chain and the loopback registry.
package runtimeconf

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/berth-run/berth/internal/layout"
)

// PauseImage is the sandbox image of this Kubernetes version.
const PauseImage = "registry.k8s.io/pause:3.10.2"

// mirrored registries are looked up in the loopback registry first.
var mirrored = map[string]string{
	"docker.io":       "https://registry-1.docker.io",
	"registry.k8s.io": "https://registry.k8s.io",
}

func write(file, content string) error {
	return writeAs(file, content, 0o644)
}

// writeAs writes a file; mode is of one that is new.
func writeAs(file, content string, mode fs.FileMode) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("make the configuration directory: %w", err)
	}
	if err := os.WriteFile(file, []byte(content), mode); err != nil {
		return fmt.Errorf("write configuration: %w", err)
	}
	return nil
}

// WriteContainerd writes containerd's, gVisor's and CNI's configuration and returns the path of containerd's.
func WriteContainerd(dirs layout.Dirs, binDir string) (string, error) {
	conf := dirs.Config()
	chain, err := cniChain(dirs, binDir)
	if err != nil {
		return "", err
	}
	files := map[string]string{
		"runsc.toml":            fmt.Sprintf(runscConfig, filepath.Join(binDir, "runsc"), filepath.Join(dirs.Run, "runsc")),
		"cni/10-berth.conflist": chain,
		"containerd.toml": fmt.Sprintf(containerdConfig, dirs.Containerd(), dirs.ContainerdState(), dirs.ContainerdSocket(),
			PauseImage, HostsDir(dirs), layout.RuntimeHandlerGVisor, layout.RuntimeHandlerGVisor,
			filepath.Join(binDir, "containerd-shim-runsc-start"), filepath.Join(conf, "runsc.toml"),
			layout.RuntimeHandlerMicroVM, filepath.Join(binDir, "containerd-shim-berth-start"), quoted(pluginDirs(binDir)), filepath.Join(conf, "cni")),
	}
	for name, content := range files {
		if err := write(filepath.Join(conf, name), content); err != nil {
			return "", err
		}
	}
	where, err := json.Marshal(dirs)
	if err != nil {
		return "", fmt.Errorf("encode the host's directories: %w", err)
	}
	if err := write(dirs.ShimDirs(), string(where)); err != nil {
		return "", err
	}
	for registry, upstream := range mirrored {
		if err := Mirror(dirs, registry, upstream); err != nil {
			return "", err
		}
	}
	return filepath.Join(conf, "containerd.toml"), nil
}

// runscConfig: systrap needs no hardware virtualization; writes of a container go to the sandbox's own memory-backed or
// file-backed overlay, never into the image. Raw sockets and set-user-ID programs work as in other Kubernetes pods (ping,
// su), within the sandbox: capabilities and allowPrivilegeEscalation of the pod's security context still decide.
const runscConfig = `binary_name = %q
root = %q

[runsc_config]
platform = "systrap"
network = "sandbox"
overlay2 = "root:self"
net-raw = "true"
allow-suid = "true"
`

const containerdConfig = `version = 3
root = %q
state = %q
oom_score = 0
disabled_plugins = [
  "io.containerd.snapshotter.v1.blockfile", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.erofs", "io.containerd.differ.v1.erofs",
  "io.containerd.tracing.processor.v1.otlp", "io.containerd.internal.v1.tracing", "io.containerd.nri.v1.nri"]

[timeouts]
  # How long a shim may take to answer a containerd that was started again, before its pod is given up: a busy machine needs more than the usual 5s.
  "io.containerd.timeout.shim.load" = "20s"

[grpc]
  address = %q

[plugins."io.containerd.cri.v1.images"]
  snapshotter = "overlayfs"
  [plugins."io.containerd.cri.v1.images".pinned_images]
    sandbox = %q
  [plugins."io.containerd.cri.v1.images".registry]
    config_path = %q

[plugins."io.containerd.cri.v1.runtime"]
  restrict_oom_score_adj = true
  netns_mounts_under_state_dir = true
  max_container_log_line_size = 16384
  # containerd's own rate of CPU use: once a second, its default, is most of an idle pod's cost.
  stats_collect_period = "30s"
  [plugins."io.containerd.cri.v1.runtime".containerd]
    default_runtime_name = %q
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.%s]
      runtime_type = "io.containerd.runsc.v1"
      runtime_path = %q
      # What the node process tells the shim of the pod; it lets no such annotation of the user's through.
      pod_annotations = ["berth.run/*"]
      [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.gvisor.options]
        TypeUrl = "io.containerd.runsc.v1.options"
        ConfigPath = %q
    [plugins."io.containerd.cri.v1.runtime".containerd.runtimes.%s]
      runtime_type = "io.containerd.berth.v1"
      runtime_path = %q
      # What the node process tells the shim of the pod; it lets no such annotation of the user's through.
      pod_annotations = ["berth.run/*"]
      # A privileged container has the devices of its own virtual machine, never the host's.
      privileged_without_host_devices = true
      privileged_without_host_devices_all_devices_allowed = true
  [plugins."io.containerd.cri.v1.runtime".cni]
    bin_dirs = [%s]
    conf_dir = %q
    use_internal_loopback = true
`
