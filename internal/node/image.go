package node

import (
	"context"

	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/nodeconfig"
)

// imageService is containerd's image service as one node may use it: it pulls, but never removes what other pods of the
// host may need.
type imageService struct {
	internalapi.ImageManagerService
	report *reporter
}

func newImageService(s internalapi.ImageManagerService, report *reporter) internalapi.ImageManagerService {
	return &imageService{s, report}
}

// PullImage pulls, and tells the agent that pulling began: metering starts there.
func (s *imageService) PullImage(ctx context.Context, image *runtimeapi.ImageSpec, auth *runtimeapi.AuthConfig, sandbox *runtimeapi.PodSandboxConfig) (string, error) {
	s.report.send(nodeconfig.StagePullStarted, image.GetImage())
	return s.ImageManagerService.PullImage(ctx, image, auth, sandbox)
}

// RemoveImage does nothing: images are the host's.
func (s *imageService) RemoveImage(context.Context, *runtimeapi.ImageSpec) error { return nil }

// ListImages is empty: the kubelet asks only in order to report and to remove what is on the node, and nothing is.
func (s *imageService) ListImages(ctx context.Context, filter *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	if filter == nil || filter.GetImage().GetImage() == "" {
		return nil, nil
	}
	return s.ImageManagerService.ListImages(ctx, filter)
}
