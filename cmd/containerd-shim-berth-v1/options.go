package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/microvm/disk"
	"github.com/berth-run/berth/internal/microvm/qemu"
	"github.com/berth-run/berth/internal/microvm/shim"
	"github.com/berth-run/berth/internal/microvm/template"
)

// options are those of the shim of a sandbox.
func options(dirs layout.Dirs, sandbox string) (shim.Options, error) {
	self, err := os.Executable()
	if err != nil {
		return shim.Options{}, fmt.Errorf("find this program: %w", err)
	}
	bin := filepath.Dir(self)
	return shim.Options{
		Images: disk.Images{Dir: dirs.ImageDisks()},
		RunDir: dirs.MicroVMRun(sandbox), DiskDir: dirs.PodDisks(),
		Take: func(ctx context.Context, milliCPU, memory int64) (*shim.Source, error) {
			shape, err := template.ShapeFor(milliCPU, memory)
			if err != nil {
				return nil, err
			}
			loaded, err := template.Take(ctx, dirs.TemplateSocket(), shape.VCPUs)
			if err != nil {
				return nil, err
			}
			driver := qemu.New(qemu.Options{Acceleration: loaded.Manifest.Monitor.Acceleration, Dir: dirs.MicroVM(), Jail: filepath.Join(bin, "berth-jail")})
			return &shim.Source{Driver: driver, Template: loaded.Template(), Tools: loaded.Tools}, nil
		},
	}, nil
}

// readDirs reads what runtimeconf wrote beside containerd's socket.
func readDirs(file string) (layout.Dirs, error) {
	var dirs layout.Dirs
	data, err := os.ReadFile(file)
	if err != nil {
		return dirs, fmt.Errorf("read where this host's directories are: %w", err)
	}
	if err := json.Unmarshal(data, &dirs); err != nil {
		return dirs, fmt.Errorf("%s is not valid: %w", file, err)
	}
	return dirs, nil
}
