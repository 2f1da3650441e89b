// Package images brings images onto a machine: into the loopback registry, which pods' pulls ask first, and into containerd.
package images

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"

	berthlayout "github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/runtimeconf"
)

// pullLimit bounds the pull of one image from the loopback registry.
const pullLimit = 10 * time.Minute

// Seed puts the images that came with Berth (binDir/images/*.tar) into the loopback registry, unless they are there.
func Seed(ctx context.Context, dirs berthlayout.Dirs, binDir string) error {
	to, err := open(dirs)
	if err != nil {
		return err
	}
	archives, err := filepath.Glob(filepath.Join(binDir, "images", "*.tar"))
	if err != nil {
		return err
	}
	for _, archive := range archives {
		if _, err := to.pushArchive(ctx, archive); err != nil {
			return fmt.Errorf("seed the registry with %s: %w", filepath.Base(archive), err)
		}
	}
	return nil
}

// Load makes an image available to pods: source is an archive (docker or OCI, also compressed) or the name of an image
// that is pulled from its registry. It returns the names that were loaded.
func Load(ctx context.Context, dirs berthlayout.Dirs, source string) ([]string, error) {
	to, err := open(dirs)
	if err != nil {
		return nil, err
	}
	if err := to.ping(ctx); err != nil {
		return nil, err
	}
	info, err := os.Stat(source)
	switch {
	case err == nil && info.IsDir():
		return nil, fmt.Errorf("%s is a directory; give an image archive (docker save, or OCI) or an image name", source)
	case err == nil:
		return to.loadArchive(ctx, dirs, source)
	case !errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("read %s: %w", source, err)
	case strings.HasPrefix(source, ".") || strings.HasPrefix(source, "/") || strings.Contains(source, ".tar"):
		return nil, fmt.Errorf("no such file: %s", source)
	}
	return to.loadName(ctx, dirs, source)
}

// registry is the loopback registry, as who may write to it.
type registry struct{ auth authn.Basic }

func open(dirs berthlayout.Dirs) (registry, error) {
	password, err := runtimeconf.RegistryPassword(dirs)
	return registry{authn.Basic{Username: runtimeconf.RegistryUser, Password: password}}, err
}

func (registry) address() string { return fmt.Sprintf("127.0.0.1:%d", berthlayout.RegistryPort) }

func (r registry) ping(ctx context.Context) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+r.address()+"/", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return fmt.Errorf("the cluster's image registry does not answer; is the cluster up? (berth up): %w", err)
	}
	return resp.Body.Close()
}

func (r registry) loadArchive(ctx context.Context, dirs berthlayout.Dirs, path string) ([]string, error) {
	names, err := r.pushArchive(ctx, path)
	if err != nil {
		return nil, err
	}
	return names, fetch(ctx, dirs, names...)
}

// fetch lets containerd take images that are in the loopback registry, so that pull policy Never works, too. It asks as a
// kubelet would, through the CRI: what another client puts into containerd the CRI learns of only some time later.
func fetch(ctx context.Context, dirs berthlayout.Dirs, names ...string) error {
	cri, err := criclient.NewRemoteImageServiceBuilder().WithEndpoint("unix://" + dirs.ContainerdSocket()).WithConnectionTimeout(pullLimit).WithTracerProvider(nil).Build(ctx)
	if err != nil {
		return fmt.Errorf("connect to containerd; is the cluster up? (berth up): %w", err)
	}
	defer cri.Close(ctx)
	for _, n := range names {
		if err := mirror(dirs, n); err != nil {
			return err
		}
		if _, err := cri.PullImage(ctx, &runtimeapi.ImageSpec{Image: n}, nil, nil); err != nil {
			return fmt.Errorf("bring %s into containerd: %w", n, err)
		}
	}
	return nil
}

func (r registry) loadName(ctx context.Context, dirs berthlayout.Dirs, source string) ([]string, error) {
	ref, err := name.ParseReference(source)
	if err != nil {
		return nil, fmt.Errorf("%q is neither a file nor an image name: %w", source, err)
	}
	image, err := remote.Image(ref, remote.WithContext(ctx), remote.WithAuthFromKeychain(authn.DefaultKeychain))
	if err != nil {
		return nil, fmt.Errorf("pull %s (without a way to its registry, load a file made by docker save): %w", ref.Name(), err)
	}
	if err := r.push(ctx, ref, image); err != nil {
		return nil, err
	}
	name := containerdName(ref)
	return []string{name}, fetch(ctx, dirs, name)
}

func mirror(dirs berthlayout.Dirs, image string) error {
	ref, err := name.ParseReference(image)
	if err != nil {
		return err
	}
	host := registryOf(ref)
	upstream := ref.Context().Scheme() + "://" + host
	if host == "docker.io" {
		upstream = "https://registry-1.docker.io"
	}
	return runtimeconf.Mirror(dirs, host, upstream)
}

// registryOf is the registry's name as containerd knows it.
func registryOf(ref name.Reference) string {
	if host := ref.Context().RegistryStr(); host != name.DefaultRegistry {
		return host
	}
	return "docker.io"
}

// containerdName is an image's full name as containerd and Kubernetes write it.
func containerdName(ref name.Reference) string {
	return registryOf(ref) + strings.TrimPrefix(ref.Name(), ref.Context().RegistryStr())
}

func (r registry) push(ctx context.Context, ref name.Reference, image v1.Image) error {
	target := fmt.Sprintf("%s/%s:%s", r.address(), runtimeconf.Repository(registryOf(ref), ref.Context().RepositoryStr()), ref.Identifier())
	if digest, ok := ref.(name.Digest); ok {
		target = fmt.Sprintf("%s/%s@%s", r.address(), runtimeconf.Repository(registryOf(ref), ref.Context().RepositoryStr()), digest.DigestStr())
	}
	to, err := name.ParseReference(target, name.Insecure)
	if err != nil {
		return err
	}
	want, err := image.Digest()
	if err != nil {
		return fmt.Errorf("read %s: %w", ref.Name(), err)
	}
	if have, err := remote.Head(to, remote.WithContext(ctx), remote.WithAuth(&r.auth)); err == nil && have.Digest == want {
		return nil
	}
	if err := remote.Write(to, image, remote.WithContext(ctx), remote.WithAuth(&r.auth)); err != nil {
		return fmt.Errorf("put %s into the cluster's registry: %w", ref.Name(), err)
	}
	return nil
}

// pushArchive puts every named image of an archive into the loopback registry.
func (r registry) pushArchive(ctx context.Context, path string) ([]string, error) {
	opener := func() (fsFile, error) { return openMaybeCompressed(path) }
	manifest, err := tarball.LoadManifest(opener)
	if err != nil {
		return r.pushOCI(ctx, path, err)
	}
	var names []string
	for _, m := range manifest {
		if len(m.RepoTags) == 0 {
			return nil, fmt.Errorf("%s holds an image without a name: save it with one (docker save NAME:TAG)", path)
		}
		for _, t := range m.RepoTags {
			tag, err := name.NewTag(t)
			if err != nil {
				return nil, fmt.Errorf("image name %q in %s: %w", t, path, err)
			}
			image, err := tarball.Image(opener, &tag)
			if err != nil {
				return nil, fmt.Errorf("read %s from %s: %w", t, path, err)
			}
			if err := r.push(ctx, tag, image); err != nil {
				return nil, err
			}
			names = append(names, containerdName(tag))
		}
	}
	return names, nil
}

// pushOCI takes an OCI layout in a tar archive; why is what the docker reader said.
func (r registry) pushOCI(ctx context.Context, path string, why error) ([]string, error) {
	dir, err := os.MkdirTemp("", "berth-image-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	if out, err := exec.CommandContext(ctx, "tar", "-xf", path, "-C", dir).CombinedOutput(); err != nil {
		said, _, _ := strings.Cut(strings.TrimSpace(string(out)), "\n")
		return nil, fmt.Errorf("%s is not an image archive; make one by docker save, or an OCI archive: %w; %s", path, why, said)
	}
	index, err := layout.ImageIndexFromPath(dir)
	if err != nil {
		return nil, fmt.Errorf("%s is a tar archive, but holds neither a docker manifest.json nor an OCI index.json", path)
	}
	manifest, err := index.IndexManifest()
	if err != nil {
		return nil, fmt.Errorf("read the index of %s: %w", path, err)
	}
	var names []string
	for _, d := range manifest.Manifests {
		n := d.Annotations["io.containerd.image.name"]
		if n == "" {
			n = d.Annotations["org.opencontainers.image.ref.name"]
		}
		ref, err := name.ParseReference(n)
		if n == "" || err != nil {
			return nil, fmt.Errorf("%s holds an image without a name: save it with one", path)
		}
		image, err := index.Image(d.Digest)
		if err != nil {
			return nil, fmt.Errorf("read %s from %s: %w", n, path, err)
		}
		if err := r.push(ctx, ref, image); err != nil {
			return nil, err
		}
		names = append(names, containerdName(ref))
	}
	return names, nil
}
