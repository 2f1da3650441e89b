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
)

// imageVolume matches the directory that containerd makes on the host for a volume that an image declares.
var imageVolume = regexp.MustCompile(`/io\.containerd\.grpc\.v1\.cri/containers/[^/]+/volumes/[^/]+$`)

// keepImageVolumes leaves volumes that the image declares in the container's writable layer, which is limited and counted; directories of the
// host are neither. They have what the image has there either way. A read-only root file system has no writable layer to keep them in. It
// changes the bundle, which the gofer reads, too.
func keepImageVolumes(bundle string) error {
	file := filepath.Join(bundle, "config.json")
	raw, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var spec specs.Spec
	var fields map[string]json.RawMessage // with what this version of the specification does not know
	if err := json.Unmarshal(raw, &spec); err != nil {
		return fmt.Errorf("reading %s: %w", file, err)
	}
	if spec.Root == nil || spec.Root.Readonly || !slices.ContainsFunc(spec.Mounts, declared) {
		return nil
	}
	if err := json.Unmarshal(raw, &fields); err != nil {
		return fmt.Errorf("reading %s: %w", file, err)
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
	if fields["mounts"], err = json.Marshal(spec.Mounts); err != nil {
		return err
	}
	if raw, err = json.Marshal(fields); err != nil {
		return err
	}
	return os.WriteFile(file, raw, 0o600)
}

func declared(m specs.Mount) bool { return m.Type == "bind" && imageVolume.MatchString(m.Source) }
