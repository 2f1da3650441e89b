package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/google/go-containerregistry/pkg/v1/types"
)

// containerdName is the annotation by which containerd knows an image's full name; OCI's own holds the tag.
const (
	containerdName = "io.containerd.image.name"
	ociRefName     = "org.opencontainers.image.ref.name"
)

// writeImage writes an OCI archive that holds one image under every one of the names.
func writeImage(out string, image v1.Image, names []string) error {
	dir, err := os.MkdirTemp("", "mkimage")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	index, err := layout.Write(dir, empty.Index)
	if err != nil {
		return fmt.Errorf("begin the archive: %w", err)
	}
	for _, full := range names {
		tag, err := name.NewTag(full, name.StrictValidation)
		if err != nil {
			return fmt.Errorf("image name %q: %w", full, err)
		}
		annotations := layout.WithAnnotations(map[string]string{containerdName: full, ociRefName: tag.TagStr()})
		if err := index.AppendImage(image, annotations); err != nil {
			return fmt.Errorf("add %s to the archive: %w", full, err)
		}
	}
	entries, err := scan(dir, nil)
	if err != nil {
		return err
	}
	for _, e := range entries {
		e.header.Mode |= 0o044
		e.header.Uid, e.header.Gid = 0, 0
	}
	return writeAtomically(out, func(w io.Writer) error { return writeEntries(w, entries) })
}

// first is the first image of an OCI layout.
func first(dir string) (v1.Image, error) {
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("%s is not an OCI layout: %w", dir, err)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("%s is not an OCI layout: %w", dir, err)
	}
	if len(manifest.Manifests) == 0 {
		return nil, fmt.Errorf("%s holds no image", dir)
	}
	return index.Image(manifest.Manifests[0].Digest)
}

// assemble puts layers and configuration together.
func assemble(config string, layers []string) (v1.Image, error) {
	var file v1.ConfigFile
	data, err := os.ReadFile(config)
	if err != nil {
		return nil, fmt.Errorf("read the image's configuration: %w", err)
	}
	if err := json.Unmarshal(data, &file.Config); err != nil {
		return nil, fmt.Errorf("%s is not an image's configuration: %w", config, err)
	}
	file.OS, file.Architecture, file.Created = "linux", runtime.GOARCH, v1.Time{Time: epoch}
	image := mutate.ConfigMediaType(mutate.MediaType(empty.Image, types.OCIManifestSchema1), types.OCIConfigJSON)
	if image, err = mutate.ConfigFile(image, &file); err != nil {
		return nil, fmt.Errorf("configure the image: %w", err)
	}
	for _, path := range layers {
		layer, err := tarball.LayerFromFile(path, tarball.WithMediaType(types.OCILayer))
		if err != nil {
			return nil, fmt.Errorf("read the layer %s: %w", path, err)
		}
		history := v1.History{Created: v1.Time{Time: epoch}, CreatedBy: "mkimage " + filepath.Base(path)}
		if image, err = mutate.Append(image, mutate.Addendum{Layer: layer, History: history, MediaType: types.OCILayer}); err != nil {
			return nil, fmt.Errorf("add the layer %s: %w", path, err)
		}
	}
	return image, nil
}

// writeAtomically writes a file that is there whole or not at all.
func writeAtomically(file string, write func(io.Writer) error) error {
	temporary, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file))
	if err != nil {
		return err
	}
	defer os.Remove(temporary.Name())
	defer temporary.Close()
	buffer := bufio.NewWriterSize(temporary, 1<<20)
	if err := write(buffer); err != nil {
		return err
	}
	if err := buffer.Flush(); err != nil {
		return err
	}
	if err := temporary.Chmod(0o644); err != nil {
		return err
	}
	return os.Rename(temporary.Name(), file)
}
