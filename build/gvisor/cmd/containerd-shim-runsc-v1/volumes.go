package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"gvisor.dev/gvisor/runsc/boot"
	"gvisor.dev/gvisor/runsc/specutils"
)

// annotationMemoryVolumes has the pod's emptyDir volumes in memory: mount options of tmpfs by their directory on the host, in JSON
// (internal/node/memoryvolumes.go sets it).
const annotationMemoryVolumes = "berth.run/memory-volumes"

// imageVolume matches the directory that containerd makes on the host for a volume that an image declares.
var imageVolume = regexp.MustCompile(`/io\.containerd\.grpc\.v1\.cri/containers/[^/]+/volumes/[^/]+$`)

// prepareVolumes changes a bundle, which gVisor's gofer reads, too, so that volumes are in the sandbox that need not be on the host.
func (d *direct) prepareVolumes(bundle string) error {
	file := filepath.Join(bundle, "config.json")
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var spec specs.Spec
	fields := map[string]json.RawMessage{} // with what this version of the specification does not know
	for _, into := range []any{&spec, &fields} {
		if err := json.Unmarshal(raw, into); err != nil {
			return fmt.Errorf("reading %s: %w", file, err)
		}
	}
	if specutils.SpecContainerType(&spec) == specutils.ContainerTypeSandbox {
		if err := d.shareMemory(&spec); err != nil {
			return err
		}
	}
	d.useMemory(spec.Mounts)
	if err := keepImageVolumes(&spec, bundle); err != nil {
		return err
	}
	for field, value := range map[string]any{"annotations": spec.Annotations, "mounts": spec.Mounts} {
		if fields[field], err = json.Marshal(value); err != nil {
			return err
		}
	}
	changed, err := json.Marshal(fields)
	if err != nil {
		return err
	}
	return os.WriteFile(file, changed, 0o600)
}

// shareMemory has the sandbox keep emptyDir volumes in memory itself, one file system for all containers: to programs they are tmpfs, as anywhere.
func (d *direct) shareMemory(spec *specs.Spec) error {
	text := spec.Annotations[annotationMemoryVolumes]
	if text == "" {
		return nil
	}
	if err := json.Unmarshal([]byte(text), &d.memory); err != nil {
		return fmt.Errorf("annotation %s: %w", annotationMemoryVolumes, err)
	}
	for source, options := range d.memory {
		for field, value := range map[string]string{"source": source, "type": "tmpfs", "share": "pod", "options": options} {
			spec.Annotations[boot.MountPrefix+filepath.Base(source)+"."+field] = value
		}
	}
	return nil
}

func (d *direct) useMemory(mounts []specs.Mount) {
	for i := range mounts {
		if _, ok := d.memory[mounts[i].Source]; ok {
			specutils.ChangeMountType(&mounts[i], "tmpfs")
		}
	}
}

// keepImageVolumes leaves volumes that the image declares in the container's writable layer, which is limited and counted; directories of the
// host are neither. They have what the image has there either way. A read-only root file system has no writable layer to keep them in.
func keepImageVolumes(spec *specs.Spec, bundle string) error {
	if spec.Root == nil || spec.Root.Readonly || !slices.ContainsFunc(spec.Mounts, declared) {
		return nil
	}
	path := spec.Root.Path
	if !filepath.IsAbs(path) {
		path = filepath.Join(bundle, path)
	}
	root, err := os.OpenRoot(path)
	if err != nil {
		return err
	}
	defer root.Close()
	spec.Mounts = slices.DeleteFunc(spec.Mounts, func(m specs.Mount) bool {
		// One behind a link that leads out of the image's directory stays a directory of the host.
		return declared(m) && root.MkdirAll(strings.Trim(m.Destination, "/"), 0o755) == nil
	})
	return nil
}

func declared(m specs.Mount) bool { return m.Type == "bind" && imageVolume.MatchString(m.Source) }
