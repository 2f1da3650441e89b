// Package remotefs leaves the mounting of network file systems to a pod's microVM. A pod's kubelet (internal/node) that runs on
// the host calls a mounter for them; the one of this package mounts nothing remote, but an empty file system with a Note in the share's place. To
// the kubelet that is a mount like any other; the shim reads the note and has the guest mount the share, from the pod's own address.
package remotefs

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/mount-utils"
)

// resolveLimit bounds the wait for the host's resolver.
const resolveLimit = 10 * time.Second

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
	if remote[fstype] {
		return m.note(source, target, fstype, options)
	}
	return m.Interface.Mount(source, target, fstype, options)
}

// MountSensitive is Mount with options that must not be logged.
func (m Mounter) MountSensitive(source, target, fstype string, options, sensitive []string) error {
	if remote[fstype] {
		return m.note(source, target, fstype, slices.Concat(options, sensitive))
	}
	return m.Interface.MountSensitive(source, target, fstype, options, sensitive)
}

// MountSensitiveWithoutSystemd is MountSensitive without systemd's help, which a note never has. The kubelet's NFS plugin calls it.
func (m Mounter) MountSensitiveWithoutSystemd(source, target, fstype string, options, sensitive []string) error {
	if remote[fstype] {
		return m.note(source, target, fstype, slices.Concat(options, sensitive))
	}
	return m.Interface.MountSensitiveWithoutSystemd(source, target, fstype, options, sensitive)
}

// MountSensitiveWithoutSystemdWithMountFlags is the same with flags of mount(8), of which a note has none.
func (m Mounter) MountSensitiveWithoutSystemdWithMountFlags(source, target, fstype string, options, sensitive, flags []string) error {
	if remote[fstype] {
		return m.note(source, target, fstype, slices.Concat(options, sensitive))
	}
	return m.Interface.MountSensitiveWithoutSystemdWithMountFlags(source, target, fstype, options, sensitive, flags)
}

func (m Mounter) note(source, target, fstype string, options []string) error {
	source, err := resolved(source)
	if err != nil {
		return err
	}
	data, err := json.Marshal(Note{Type: fstype, Source: source, Options: options})
	if err != nil {
		return fmt.Errorf("encode the note of %s: %w", source, err)
	}
	if err := m.MountSensitiveWithoutSystemd(source, target, "tmpfs", []string{"size=64k", "mode=0700"}, nil); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(target, NoteName), data, 0o600); err != nil {
		return fmt.Errorf("leave the note of %s: %w", source, err)
	}
	return nil
}

// resolved puts the server's address in the place of its name. As on any node, names are the host's to resolve: the guest knows no resolver.
func resolved(source string) (string, error) {
	server, path, ok := strings.Cut(source, ":/")
	if !ok || net.ParseIP(strings.Trim(server, "[]")) != nil {
		return source, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), resolveLimit)
	defer cancel()
	found, err := net.DefaultResolver.LookupIPAddr(ctx, server)
	if err != nil {
		return "", fmt.Errorf("the NFS server's name %q is not known to this host's resolver: %w; give its address, or that of its Service", server, err)
	}
	// By IPv4, if it has such an address: pods have.
	if v4 := slices.IndexFunc(found, func(a net.IPAddr) bool { return a.IP.To4() != nil }); v4 >= 0 {
		return found[v4].String() + ":/" + path, nil
	}
	return "[" + found[0].String() + "]:/" + path, nil
}
