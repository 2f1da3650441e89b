package node

import (
	"context"
	"crypto/sha256"
	"fmt"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	fake "k8s.io/cri-api/pkg/apis/testing"
)

// TestPrivateImages: what one node pulled with credentials another sees only once it has pulled it itself.
func TestPrivateImages(t *testing.T) {
	const (
		private = "registry.example/team/app:1"
		digest  = "registry.example/team/app@sha256:0123456789012345678901234567890123456789012345678901234567890123"
		public  = "docker.io/library/app:1"
	)
	spec := func(ref string) *cri.ImageSpec { return &cri.ImageSpec{Image: ref} }
	for name, tc := range map[string]struct {
		// pulled by the first node, with credentials or not
		pulled []string
		auth   *cri.AuthConfig
		// again is pulled by a third node without credentials
		again string
		asked string
		want  bool
	}{
		"a public image":                                       {pulled: []string{public}, asked: public, want: true},
		"a private image":                                      {pulled: []string{private}, auth: &cri.AuthConfig{}, asked: private},
		"a private image by its digest":                        {pulled: []string{private, digest}, auth: &cri.AuthConfig{}, asked: digest},
		"a private image by its id":                            {pulled: []string{private}, auth: &cri.AuthConfig{}, asked: imageID(private)},
		"a public image after a private one":                   {pulled: []string{private}, auth: &cri.AuthConfig{}, again: public, asked: public, want: true},
		"a private repository whose images need no credential": {pulled: []string{private}, auth: &cri.AuthConfig{}, again: private, asked: private, want: true},
	} {
		t.Run(name, func(t *testing.T) {
			dir, images := t.TempDir(), &idImages{FakeImageService: fake.NewFakeImageService()}
			owner, other, third := newPrivateImages(images, dir), newPrivateImages(images, dir), newPrivateImages(images, dir)
			pull := func(n *privateImages, ref string, auth *cri.AuthConfig) {
				t.Helper()
				if _, err := n.PullImage(t.Context(), spec(ref), auth, nil); err != nil {
					t.Fatal(err)
				}
			}
			sees := func(n *privateImages, ref string) bool {
				t.Helper()
				got, err := n.ImageStatus(t.Context(), spec(ref), false)
				if err != nil {
					t.Fatal(err)
				}
				return got.GetImage() != nil
			}
			for _, ref := range tc.pulled {
				pull(owner, ref, tc.auth)
				if !sees(owner, ref) {
					t.Errorf("who pulled %s does not see it", ref)
				}
			}
			if tc.again != "" {
				pull(third, tc.again, nil)
			}
			if got := sees(other, tc.asked); got != tc.want {
				t.Errorf("another node sees %s: %v, want %v", tc.asked, got, tc.want)
			}
		})
	}
}

func imageID(ref string) string { return fmt.Sprintf("sha256:%x", sha256.Sum256([]byte(ref))) }

// idImages gives each image an id that is not its name, by which it can be asked for, too, as containerd does.
type idImages struct{ *fake.FakeImageService }

func (f *idImages) PullImage(_ context.Context, image *cri.ImageSpec, _ *cri.AuthConfig, _ *cri.PodSandboxConfig) (string, error) {
	id := imageID(image.GetImage())
	f.Lock()
	defer f.Unlock()
	f.Images[image.GetImage()] = &cri.Image{Id: id, RepoTags: []string{image.GetImage()}}
	f.Images[id] = f.Images[image.GetImage()]
	return id, nil
}
