package runtimeconf_test

import (
	"compress/gzip"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/v1/random"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/images"
	"github.com/berth-run/berth/internal/runtimeconf"
)

func TestLoad(t *testing.T) {
	m := start(t)
	dir := t.TempDir()
	archive := filepath.Join(dir, "shop.tar")
	image, err := random.Image(1000, 2)
	if err != nil {
		t.Fatal(err)
	}
	tag, err := name.NewTag("registry.example/shop/web:v1")
	if err != nil {
		t.Fatal(err)
	}
	if err := tarball.WriteToFile(archive, tag, image); err != nil {
		t.Fatal(err)
	}
	notes := filepath.Join(dir, "notes.txt")
	if err := os.WriteFile(notes, []byte("not an image"), 0o644); err != nil {
		t.Fatal(err)
	}

	t.Run("a docker archive, compressed, can be used and pulled", func(t *testing.T) {
		names, err := images.Load(t.Context(), m.dirs, compress(t, archive))
		if err != nil || !slices.Equal(names, []string{tag.Name()}) {
			t.Fatalf("got %v, %v", names, err)
		}
		checkUsable(t, m, tag.Name())
	})
	t.Run("an OCI archive", func(t *testing.T) {
		names, err := images.Load(t.Context(), m.dirs, filepath.Join(m.binDir, "images", "busybox.tar"))
		if err != nil || len(names) != 3 {
			t.Fatalf("got %v, %v; want busybox under its three tags", names, err)
		}
		checkUsable(t, m, busyboxImage)
	})
	t.Run("a name", func(t *testing.T) {
		const source = "127.0.0.1:23500/docker.io/library/busybox:latest"
		signIn(t, m)
		if names, err := images.Load(t.Context(), m.dirs, source); err != nil || !slices.Equal(names, []string{source}) {
			t.Fatalf("got %v, %v", names, err)
		}
		if status, err := m.images.ImageStatus(t.Context(), &cri.ImageSpec{Image: source}, false); err != nil || status.Image == nil {
			t.Errorf("containerd does not have it: %v, %v", status, err)
		}
	})
	t.Run("nobody else reads or writes", func(t *testing.T) {
		resp, err := http.Get("http://127.0.0.1:23500/v2/docker.io/library/busybox/manifests/latest")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		to, err := name.NewTag("127.0.0.1:23500/docker.io/library/nginx:latest")
		if err != nil {
			t.Fatal(err)
		}
		if err := remote.Write(to, image); resp.StatusCode != http.StatusUnauthorized || err == nil || !strings.Contains(err.Error(), "401") {
			t.Errorf("without a password an image is read with %s, and written with %v", resp.Status, err)
		}
	})
	for what, c := range map[string]struct{ source, want string }{
		"no such file":   {filepath.Join(dir, "none.tar"), "no such file"},
		"a directory":    {dir, "is a directory"},
		"not an archive": {notes, "is not an image archive"},
		"no name":        {"Not A Name", "neither a file nor an image name"},
	} {
		t.Run(what, func(t *testing.T) {
			if _, err := images.Load(t.Context(), m.dirs, c.source); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error is %v, want %q in it", err, c.want)
			}
		})
	}
}

// signIn has docker's configuration hold the credential of the loopback registry, for the test's end.
func signIn(t *testing.T, m *machine) {
	t.Helper()
	password, err := runtimeconf.RegistryPassword(m.dirs)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	config := fmt.Sprintf(`{"auths": {"127.0.0.1:23500": {"username": %q, "password": %q}}}`, runtimeconf.RegistryUser, password)
	if err := os.WriteFile(filepath.Join(dir, "config.json"), []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DOCKER_CONFIG", dir)
}

// checkUsable sees that an image is in containerd (pull policies IfNotPresent and Never) and can be pulled (Always).
func checkUsable(t *testing.T, m *machine, image string) {
	t.Helper()
	spec := &cri.ImageSpec{Image: image}
	if status, err := m.images.ImageStatus(t.Context(), spec, false); err != nil || status.Image == nil {
		t.Errorf("containerd does not have %s: %v, %v", image, status, err)
	}
	if _, err := m.images.PullImage(t.Context(), spec, nil, nil); err != nil {
		t.Errorf("pull %s: %v", image, err)
	}
}

func compress(t *testing.T, file string) string {
	t.Helper()
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.Create(file + ".gz")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := gzip.NewWriter(f)
	if _, err := w.Write(data); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}
