package shim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/berth-run/berth/internal/microvm/guestapi"
	"github.com/berth-run/berth/internal/microvm/remotefs"
)

// share mounts a share ahead of the containers that use it.
func (v *volumes) share(ctx context.Context, dir string) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	_, err := v.nfs(ctx, dir, filepath.Base(dir))
	return err
}

// nfs mounts a share in the guest. The pod's kubelet did not mount it on the host; it left a note in its place (package remotefs).
func (v *volumes) nfs(ctx context.Context, dir, name string) (string, error) {
	target := guestapi.MountsDir + "/shares/" + name
	if v.done[dir] {
		return target, nil
	}
	data, err := os.ReadFile(filepath.Join(dir, remotefs.NoteName))
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("volume %s is mounted on the host, not in the microVM: the pod's node was not made for a microVM", name)
	}
	if err != nil {
		return "", fmt.Errorf("read the note of volume %s: %w", name, err)
	}
	var note remotefs.Note
	if err := json.Unmarshal(data, &note); err != nil {
		return "", fmt.Errorf("the note of volume %s is not valid: %w", name, err)
	}
	if err := v.guest.Mount(ctx, guestapi.Mount{Target: target, Type: note.Type, Source: note.Source, Options: note.Options}); err != nil {
		return "", err
	}
	v.done[dir] = true
	return target, nil
}
