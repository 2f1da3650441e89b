// Package remotefs leaves the mounting of network file systems to a pod's microVM. A pod's kubelet (internal/node) that runs on
// the host calls a mounter for them; the one of this package mounts nothing remote, but an empty file system with a Note in the share's place. To
// the kubelet that is a mount like any other; the shim reads the note and has the guest mount the share, from the pod's own address.
package remotefs

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"k8s.io/mount-utils"
)

// NoteName is the file with the Note.
const NoteName = ".berth-mount.json"

// Note says what is to be mounted, as for mount(8).
type Note struct {
	Type    string   `json:"type"`
	Source  string   `json:"source"`
	Options []string `json:"options,omitempty"`
}

// remote are the file systems that a guest mounts by itself.
var remote = map[string]bool{"nfs": true, "nfs4": true}

// Mounter is a mounter whose network file systems are notes.
type Mounter struct{ mount.Interface }

// New wraps the host's mounter.
func New(host mount.Interface) Mounter { return Mounter{host} }

// Mount mounts source at target, or leaves a note there.
func (m Mounter) Mount(source, target, fstype string, options []string) error {
	if !remote[fstype] {
		return m.Interface.Mount(source, target, fstype, options)
	}
	return m.note(source, target, fstype, options)
}

// MountSensitive is Mount with options that must not be logged.
func (m Mounter) MountSensitive(source, target, fstype string, options, sensitive []string) error {
	if !remote[fstype] {
		return m.Interface.MountSensitive(source, target, fstype, options, sensitive)
	}
	return m.note(source, target, fstype, append(options, sensitive...))
}

func (m Mounter) note(source, target, fstype string, options []string) error {
	data, err := json.Marshal(Note{Type: fstype, Source: source, Options: options})
	if err != nil {
		return fmt.Errorf("encode the note of %s: %w", source, err)
	}
	if err := m.Interface.Mount(source, target, "tmpfs", []string{"size=64k", "mode=0700"}); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(target, NoteName), data, 0o600); err != nil {
		return fmt.Errorf("leave the note of %s: %w", source, err)
	}
	return nil
}
