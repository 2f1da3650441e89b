package hostagent

import (
	"context"
	"log/slog"
	"time"

	"github.com/berth-run/berth/internal/microvm/disk"
)

// sweepDisksEvery is how often disks of images that are gone are removed.
const sweepDisksEvery = 10 * time.Minute

// sweepDisks removes the disks that microVMs had of images which the host has no more, until ctx ends.
func sweepDisks(ctx context.Context, images disk.Images) error {
	tick := time.NewTicker(sweepDisksEvery)
	defer tick.Stop()
	for {
		if err := images.Sweep(); err != nil {
			slog.Error("remove disks of images that are gone", "error", err)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}
