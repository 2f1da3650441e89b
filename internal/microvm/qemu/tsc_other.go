//go:build !amd64

package qemu

import (
	"context"
	"fmt"

	"github.com/berth-run/berth/internal/microvm/vmm"
)

func tscKHz(context.Context) (int, error) {
	return 0, fmt.Errorf("%w: this adapter runs on amd64 machines only; use the isolation gvisor", vmm.ErrUnavailable)
}
