package shim

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/agent"
	"github.com/berth-run/berth/internal/microvm/guestapi"
)

// returnedLimit bounds a file that is brought back from the guest, in bytes: a termination message has 4 KiB, of which the kubelet keeps so many.
const returnedLimit = 64 << 10

// volumeDir matches the directory of a pod's volume on the host, as the kubelet names it, and what is below it.
var volumeDir = regexp.MustCompile(`/volumes/kubernetes\.io~([a-z-]+)/([^/]+)((?:/.*)?)$`)

// subPathDir matches what the kubelet makes of a subPath: a bind mount of a part of a volume.
var subPathDir = regexp.MustCompile(`/volume-subpaths/[^/]+/[^/]+/[0-9]+$`)

// terminationLog matches the file that a container leaves its termination message in.
var terminationLog = regexp.MustCompile(`/pods/[^/]+/containers/[^/]+/[^/]+$`)

// imageVolume matches the directory that containerd makes on the host for a volume that an image declares.
var imageVolume = regexp.MustCompile(`/io\.containerd\.grpc\.v1\.cri/containers/[^/]+/volumes/[^/]+$`)

// returned is a file of the guest that goes back to the host when its container ends.
type returned struct{ guest, host string }

// volumes brings the pod's volumes into the guest and keeps what the kubelet updates up to date there.
type volumes struct {
	guest  *agent.Client
	syncer *syncer

	mu   sync.Mutex
	done map[string]bool // volumes that are in the guest, by their directory on the host
}

func newVolumes(guest *agent.Client) (*volumes, error) {
	s, err := newSyncer(guest)
	if err != nil {
		return nil, err
	}
	return &volumes{guest: guest, syncer: s, done: map[string]bool{}}, nil
}

func (v *volumes) close() error { return v.syncer.close() }

// place makes every bind mount of a container one of the guest, and returns the files that are to be brought back. Single files
// travel together.
func (v *volumes) place(ctx context.Context, id string, spec *specs.Spec) ([]returned, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	dir := guestapi.FilesDir + "/containers/" + id
	files := map[string]string{}
	var back []returned
	for i := range spec.Mounts {
		m := &spec.Mounts[i]
		if m.Type != "bind" {
			continue
		}
		host := m.Source
		source, err := v.one(ctx, m, guestapi.PartsDir+"/"+id+"/"+strconv.Itoa(i))
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Destination, err)
		}
		if source == "" {
			name := strconv.Itoa(i)
			files[name], source = host, dir+"/"+name
		}
		m.Source = source
		if terminationLog.MatchString(host) && !readOnly(m) {
			back = append(back, returned{guest: source, host: host})
		}
	}
	if len(files) == 0 {
		return back, nil
	}
	return back, putFiles(ctx, v.guest, dir, files)
}

func readOnly(m *specs.Mount) bool {
	for _, o := range m.Options {
		if o == "ro" {
			return true
		}
	}
	return false
}

// one brings the source of a mount into the guest and returns where it is there, which is at part if it is a part of a volume; empty: it is a
// single file.
func (v *volumes) one(ctx context.Context, m *specs.Mount, part string) (string, error) {
	source := m.Source
	if m.Destination == "/dev/shm" && filepath.Base(source) == "shm" {
		// Not the 64 MiB of the CRI: up to half of the machine's memory, all of which is the pod's.
		shm := guestapi.MountsDir + "/shm"
		return shm, v.guest.Mount(ctx, guestapi.Mount{Target: shm, Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "nodev", "noexec"}, Mode: 0o1777})
	}
	if imageVolume.MatchString(source) {
		return guestapi.ImageVolume, nil
	}
	if subPathDir.MatchString(source) {
		resolved, err := resolve(source)
		if err != nil {
			return "", err
		}
		source = resolved
	}
	if found := volumeDir.FindStringSubmatch(source); found != nil {
		return v.volume(ctx, strings.TrimSuffix(source, found[3]), found[1], found[2], found[3], part)
	}
	info, err := os.Stat(source)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s is not on the host", source)
	}
	if err != nil {
		return "", err
	}
	if !info.Mode().IsRegular() {
		return "", fmt.Errorf("%s is a part of the host, which a microVM does not share: use a volume of type emptyDir, configMap, secret, projected, downwardAPI or nfs", source)
	}
	return "", nil
}

// volume brings a volume into the guest, once, and returns the path of the part (rest) that is asked for. The kubelet looks for it, or makes it, where
// on the host nothing of the volume is; what containers write to is looked at in the guest, where it is mounted at part.
func (v *volumes) volume(ctx context.Context, dir, kind, name, rest, part string) (string, error) {
	var root string
	var err error
	switch kind {
	case "configmap", "secret", "projected", "downward-api":
		root, err = v.written(ctx, dir, name)
		return root + rest, err
	case "empty-dir":
		root, err = v.emptyDir(ctx, dir, name)
	case "nfs":
		root, err = v.nfs(ctx, dir, name)
	default:
		return "", fmt.Errorf("volume %s is of type %s, which cannot be mounted in a microVM", name, kind)
	}
	if err != nil || rest == "" {
		return root, err
	}
	return part, v.guest.Mount(ctx, guestapi.Mount{Target: part, Type: "bind", Source: root, Part: strings.TrimPrefix(rest, "/")})
}

// written copies what the kubelet writes into the guest, now and whenever it changes.
func (v *volumes) written(ctx context.Context, dir, name string) (string, error) {
	target := guestapi.FilesDir + "/volumes/" + name
	if !v.done[dir] {
		if err := v.syncer.add(ctx, dir, target); err != nil {
			return "", err
		}
		v.done[dir] = true
	}
	return target, nil
}

// emptyDir makes the volume in the guest: on the pod's ephemeral disk, or in the guest's memory if it is in memory on the host. Owner and mode
// are those that the kubelet gave it.
func (v *volumes) emptyDir(ctx context.Context, dir, name string) (string, error) {
	m := guestapi.Mount{Target: guestapi.VolumesDir + "/" + name}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return "", fmt.Errorf("look at volume %s: %w", name, err)
	}
	if fs.Type == unix.TMPFS_MAGIC && mounted(dir) {
		m = guestapi.Mount{Target: guestapi.MemoryDir + "/" + name, Type: "tmpfs", Source: "tmpfs", Options: tmpfsOptions(&fs)}
	}
	return m.Target, v.directory(ctx, dir, &m)
}

// directory makes m in the guest with owner and mode of a directory on the host, unless that was done before: what containers made of
// it since is theirs.
func (v *volumes) directory(ctx context.Context, host string, m *guestapi.Mount) error {
	if v.done[host] {
		return nil
	}
	var stat unix.Stat_t
	if err := unix.Stat(host, &stat); err != nil {
		return fmt.Errorf("look at %s: %w", host, err)
	}
	m.Mode, m.UID, m.GID = stat.Mode&0o7777, int(stat.Uid), int(stat.Gid)
	if err := v.guest.Mount(ctx, *m); err != nil {
		return err
	}
	v.done[host] = true
	return nil
}

// tmpfsOptions keeps the size that the kubelet gave a volume in memory.
func tmpfsOptions(fs *unix.Statfs_t) []string {
	if fs.Blocks == 0 {
		return nil
	}
	return []string{fmt.Sprintf("size=%d", fs.Blocks*uint64(fs.Bsize))}
}

func mounted(dir string) bool {
	is, err := mountinfo.Mounted(dir)
	return err == nil && is
}

// resolve finds which part of which directory is mounted at a subPath's place: a mount shows it by its root within its file system.
func resolve(dir string) (string, error) {
	all, err := mountinfo.GetMounts(nil)
	if err != nil {
		return "", fmt.Errorf("list the host's mounts: %w", err)
	}
	var at *mountinfo.Info
	for _, m := range all {
		if m.Mountpoint == dir {
			at = m // the last one is on top
		}
	}
	if at == nil {
		return "", fmt.Errorf("%s is not mounted on the host", dir)
	}
	best := ""
	for _, m := range all {
		rest, below := strings.CutPrefix(at.Root, strings.TrimSuffix(m.Root, "/"))
		if m.Major != at.Major || m.Minor != at.Minor || !below || rest != "" && rest[0] != '/' || subPathDir.MatchString(m.Mountpoint) {
			continue
		}
		found := filepath.Join(m.Mountpoint, rest)
		if volumeDir.MatchString(found) || best == "" {
			best = found
		}
	}
	if best == "" {
		return "", fmt.Errorf("cannot tell what is mounted at %s", dir)
	}
	return best, nil
}
