package node

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"sync"

	"github.com/distribution/reference"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// privateImages hides from this node the images that other pods of the host pulled with credentials. Images are shared by
// all pods of a host and each pod has a kubelet of its own, whose records of who pulled what with which credential
// (KubeletEnsureSecretPulledImages) know nothing of the others. To a kubelet that has not pulled it, an image of a private
// repository is not there, so that it asks the registry with its own pod's credentials; what containerd has already is not
// transferred again. On Fargate, likewise, a pod's VM has no images but its own.
//
// A repository is private from before the first pull with credentials until a pull without any succeeds.
type privateImages struct {
	internalapi.ImageManagerService
	// dir is shared by the host's nodes: one empty file for each private repository.
	dir string

	mu sync.Mutex
	// mine are the references that this node has pulled.
	mine map[string]bool
}

func newPrivateImages(s internalapi.ImageManagerService, dir string) *privateImages {
	return &privateImages{ImageManagerService: s, dir: dir, mine: map[string]bool{}}
}

// ImageStatus is without an image where this node may not use it before it has pulled it.
func (s *privateImages) ImageStatus(ctx context.Context, image *runtimeapi.ImageSpec, verbose bool) (*runtimeapi.ImageStatusResponse, error) {
	response, err := s.ImageManagerService.ImageStatus(ctx, image, verbose)
	if err != nil || response.GetImage() == nil || s.pulled(image.GetImage()) || s.pulled(response.Image.Id) {
		return response, err
	}
	private, err := s.private(image.GetImage(), response.Image)
	if err != nil {
		return nil, err
	}
	if private {
		response.Image = nil
	}
	return response, nil
}

// PullImage marks the repository before a pull with credentials, so that there is no moment at which others see the image.
func (s *privateImages) PullImage(ctx context.Context, image *runtimeapi.ImageSpec, auth *runtimeapi.AuthConfig, sandbox *runtimeapi.PodSandboxConfig) (string, error) {
	mark := s.mark(image.GetImage())
	if auth != nil && mark != "" {
		if err := os.WriteFile(mark, nil, 0o600); err != nil {
			return "", fmt.Errorf("note that %s is private: %w", image.GetImage(), err)
		}
	}
	id, err := s.ImageManagerService.PullImage(ctx, image, auth, sandbox)
	if err != nil {
		return id, err
	}
	if auth == nil && mark != "" {
		if err := os.Remove(mark); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("note that %s is public: %w", image.GetImage(), err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mine[image.GetImage()], s.mine[id] = true, true
	return id, nil
}

func (s *privateImages) pulled(ref string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mine[ref]
}

// private tells whether the reference is one to a private repository. Of an image asked for by its id, that is so if the
// host has it from no other.
func (s *privateImages) private(asked string, image *runtimeapi.Image) (bool, error) {
	refs := []string{asked}
	if s.mark(asked) == "" || asked == image.Id {
		refs = append(image.RepoTags, image.RepoDigests...)
	}
	for _, ref := range refs {
		mark := s.mark(ref)
		if mark == "" {
			return false, nil
		}
		if _, err := os.Stat(mark); errors.Is(err, fs.ErrNotExist) {
			return false, nil
		} else if err != nil {
			return false, err
		}
	}
	return len(refs) > 0, nil
}

// mark is the file that says that the reference's repository is private, or empty if the reference names none.
func (s *privateImages) mark(ref string) string {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return ""
	}
	return filepath.Join(s.dir, url.PathEscape(named.Name()))
}
