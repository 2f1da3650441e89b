package remotefs

import (
	"encoding/json"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"k8s.io/mount-utils"
)

// TestSharesAreNotes: whichever way the kubelet mounts a share, the host mounts none; all else it does mount.
func TestSharesAreNotes(t *testing.T) {
	for name, mountBy := range map[string]func(m Mounter, source, target, fstype string, options []string) error{
		"Mount": func(m Mounter, source, target, fstype string, options []string) error {
			return m.Mount(source, target, fstype, options)
		},
		"MountSensitive": func(m Mounter, source, target, fstype string, options []string) error {
			return m.MountSensitive(source, target, fstype, options[:1], options[1:])
		},
		"MountSensitiveWithoutSystemd": func(m Mounter, source, target, fstype string, options []string) error {
			return m.MountSensitiveWithoutSystemd(source, target, fstype, options, nil)
		},
		"MountSensitiveWithoutSystemdWithMountFlags": func(m Mounter, source, target, fstype string, options []string) error {
			return m.MountSensitiveWithoutSystemdWithMountFlags(source, target, fstype, options, nil, []string{"--no-canonicalize"})
		},
	} {
		t.Run(name, func(t *testing.T) {
			host := mount.NewFakeMounter(nil)
			share, other := t.TempDir(), t.TempDir()
			options := []string{"nfsvers=4.1", "ro"}
			if err := mountBy(New(host), "10.1.2.3:/data", share, "nfs", options); err != nil {
				t.Fatal(err)
			}
			if err := mountBy(New(host), "/dev/x", other, "ext4", options); err != nil {
				t.Fatal(err)
			}
			mounted := map[string]string{}
			for _, m := range host.MountPoints {
				mounted[m.Path] = m.Type
			}
			if want := map[string]string{share: "tmpfs", other: "ext4"}; !reflect.DeepEqual(mounted, want) {
				t.Errorf("the host has mounted %v, want %v", mounted, want)
			}
			var note Note
			data, err := os.ReadFile(filepath.Join(share, NoteName))
			if err != nil || json.Unmarshal(data, &note) != nil {
				t.Fatalf("note %s, %v", data, err)
			}
			if want := (Note{Type: "nfs", Source: "10.1.2.3:/data", Options: options}); !reflect.DeepEqual(note, want) {
				t.Errorf("note %+v, want %+v", note, want)
			}
		})
	}
}

func TestNamesAreTheHosts(t *testing.T) {
	for source, want := range map[string]string{
		"10.1.2.3:/a:/b": "10.1.2.3:/a:/b", "[fd00::1]:/a": "[fd00::1]:/a", "localhost:/a": "127.0.0.1:/a", "no source": "no source",
	} {
		if got, err := resolved(source); err != nil || got != want {
			t.Errorf("%s: %s, %v; want %s", source, got, err, want)
		}
	}
	if _, err := resolved("nowhere.invalid:/a"); err == nil || !strings.Contains(err.Error(), `"nowhere.invalid" is not known to this host's resolver`) {
		t.Errorf("a name that nobody knows: %v", err)
	}
}
