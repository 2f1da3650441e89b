package task

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/containerd/cgroups/v3/cgroup2"
	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/errdefs"
	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/guest/machine"
	"github.com/berth-run/berth/internal/microvm/guestapi"
)

// tasksDir has a directory for each container: its OCI bundle. In memory.
const tasksDir = "/run/berth/tasks"

// validID is what containerd allows as an id.
var validID = regexp.MustCompile(`^[A-Za-z0-9]+(?:[._-](?:[A-Za-z0-9]+))*$`)

// container is one of the pod's containers.
type container struct {
	id      string
	service *Service
	// create is held until the container is prepared; what follows is not written after that.
	create     sync.Mutex
	init       *process
	cgroup     string
	privatePID bool // it has a process namespace of its own, which ends with its first process

	mu     sync.Mutex
	execs  map[string]*process
	luns   []int
	ran    bool // crun knows it
	paused bool
}

func (c *container) dir() string    { return filepath.Join(tasksDir, c.id) }
func (c *container) rootfs() string { return filepath.Join(c.dir(), "rootfs") }
func (c *container) layer() string  { return filepath.Join(machine.ContainersDir, c.id) }

// prepare writes the OCI bundle and mounts the root file system. What it made before an error, remove removes.
func (c *container) prepare(ctx context.Context, r *api.CreateTaskRequest) error {
	if !validID.MatchString(r.ID) {
		return fmt.Errorf("id %q: letters, digits and separators (._-) are allowed: %w", r.ID, errdefs.ErrInvalidArgument)
	}
	if r.GetOptions().GetTypeUrl() != guestapi.ContainerType {
		return fmt.Errorf("options are a %q, not a %s: %w", r.GetOptions().GetTypeUrl(), guestapi.ContainerType, errdefs.ErrInvalidArgument)
	}
	var wanted guestapi.Container
	if err := json.Unmarshal(r.Options.Value, &wanted); err != nil {
		return fmt.Errorf("read options: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if err := os.MkdirAll(c.rootfs(), 0o755); err != nil {
		return err
	}
	if err := c.mountRootfs(ctx, wanted.Rootfs.LUNs); err != nil {
		return err
	}
	config, spec, err := withRoot(wanted.Spec, c.rootfs())
	if err != nil {
		return err
	}
	c.cgroup, c.privatePID = spec.Linux.CgroupsPath, hasPrivatePID(spec)
	if err := os.WriteFile(filepath.Join(c.dir(), "config.json"), config, 0o600); err != nil {
		return err
	}
	c.init, err = newProcess(c.id, "", streamNames{r.Stdin, r.Stdout, r.Stderr}, r.Terminal)
	return err
}

// crunVersion of the OCI runtime configuration is the newest that Debian's crun takes. It ignores what is newer in a configuration, and
// refuses one that says so.
const crunVersion = `"1.0.2"`

// withRoot sets the path of the root file system, gives the image's volumes a source in it and, unless the configuration does, the personality: a
// container's addresses are random, though those of crun, from which it would inherit that, are not. It leaves what it does not know of the
// configuration as it is.
func withRoot(config json.RawMessage, rootfs string) ([]byte, *specs.Spec, error) {
	var spec specs.Spec
	var fields, root map[string]json.RawMessage
	if err := errors.Join(json.Unmarshal(config, &spec), json.Unmarshal(config, &fields)); err != nil {
		return nil, nil, fmt.Errorf("read the container's configuration: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if spec.Process == nil || spec.Linux == nil || !strings.HasPrefix(spec.Linux.CgroupsPath, "/") {
		return nil, nil, fmt.Errorf("the container's configuration needs process, linux and an absolute linux.cgroupsPath: %w", errdefs.ErrInvalidArgument)
	}
	if raw, ok := fields["root"]; ok {
		if err := json.Unmarshal(raw, &root); err != nil {
			return nil, nil, fmt.Errorf("read root of the container's configuration: %w: %w", err, errdefs.ErrInvalidArgument)
		}
	}
	if root == nil {
		root = map[string]json.RawMessage{}
	}
	path, err := json.Marshal(rootfs)
	if err != nil {
		return nil, nil, err
	}
	root["path"] = path
	if fields["root"], err = json.Marshal(root); err != nil {
		return nil, nil, err
	}
	if raw, ok := fields["mounts"]; ok {
		if fields["mounts"], err = withImageVolumes(raw, rootfs); err != nil {
			return nil, nil, err
		}
	}
	if fields["linux"], err = withPersonality(fields["linux"]); err != nil {
		return nil, nil, err
	}
	fields["ociVersion"] = json.RawMessage(crunVersion)
	out, err := json.Marshal(fields)
	return out, &spec, err
}

func withPersonality(linux json.RawMessage) (json.RawMessage, error) {
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(linux, &fields); err != nil {
		return nil, fmt.Errorf("read linux of the container's configuration: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if _, ok := fields["personality"]; ok {
		return linux, nil
	}
	usual, err := json.Marshal(specs.LinuxPersonality{Domain: specs.PerLinux})
	if err != nil {
		return nil, err
	}
	fields["personality"] = usual
	return json.Marshal(fields)
}

// withImageVolumes gives each volume that the image declares a source: what the image has there, made if it has nothing. It is written to as the
// rest of the root file system, also if that is read-only for the container.
func withImageVolumes(raw json.RawMessage, rootfs string) (json.RawMessage, error) {
	var mounts []json.RawMessage
	if err := json.Unmarshal(raw, &mounts); err != nil {
		return nil, fmt.Errorf("read mounts of the container's configuration: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	for i := range mounts {
		var m specs.Mount
		if err := json.Unmarshal(mounts[i], &m); err != nil {
			return nil, fmt.Errorf("read mounts[%d] of the container's configuration: %w: %w", i, err, errdefs.ErrInvalidArgument)
		}
		if m.Source != guestapi.ImageVolume {
			continue
		}
		var err error
		if m.Source, err = securejoin.SecureJoin(rootfs, m.Destination); err != nil { // the image's links may lead anywhere
			return nil, fmt.Errorf("find %s in the image: %w", m.Destination, err)
		}
		if err := os.MkdirAll(m.Source, 0o755); err != nil {
			return nil, fmt.Errorf("make the image's volume: %w", err)
		}
		if mounts[i], err = json.Marshal(m); err != nil {
			return nil, err
		}
	}
	return json.Marshal(mounts)
}

func hasPrivatePID(spec *specs.Spec) bool {
	for _, namespace := range spec.Linux.Namespaces {
		if namespace.Type == specs.PIDNamespace {
			return namespace.Path == ""
		}
	}
	return false
}

// mountRootfs puts a writable layer over the image's disks. Nothing of it outlives the pod: the kernel need not write it to the disk (volatile).
func (c *container) mountRootfs(ctx context.Context, luns []int) error {
	if len(luns) == 0 {
		return fmt.Errorf("rootfs.luns is empty: %w", errdefs.ErrInvalidArgument)
	}
	lower := make([]string, len(luns))
	for i, lun := range luns {
		image, err := c.service.disks.UseImage(ctx, lun)
		if err != nil {
			return err
		}
		lower[i] = image
		c.luns = append(c.luns, lun)
	}
	if err := os.MkdirAll(c.layer(), 0o755); err != nil {
		return err
	}
	if err := machine.Count(c.layer()); err != nil {
		return err
	}
	upper, work := filepath.Join(c.layer(), "upper"), filepath.Join(c.layer(), "work")
	for _, dir := range []string{upper, work} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	options := "lowerdir=" + strings.Join(lower, ":") + ",upperdir=" + upper + ",workdir=" + work + ",volatile"
	if err := unix.Mount("overlay", c.rootfs(), "overlay", 0, options); err != nil {
		return fmt.Errorf("mount the root file system: %w", err)
	}
	return nil
}

// process finds the first process (exec is empty) or another one.
func (c *container) process(exec string) (*process, error) {
	c.create.Lock()
	defer c.create.Unlock()
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.init
	if exec != "" {
		p = c.execs[exec]
	}
	if p == nil {
		return nil, fmt.Errorf("process %q of container %s: %w", exec, c.id, errdefs.ErrNotFound)
	}
	return p, nil
}

func (c *container) addExec(r *api.ExecProcessRequest) error {
	if !validID.MatchString(r.ExecID) {
		return fmt.Errorf("exec id %q: letters, digits and separators (._-) are allowed: %w", r.ExecID, errdefs.ErrInvalidArgument)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.execs[r.ExecID] != nil {
		return fmt.Errorf("process %s of container %s: %w", r.ExecID, c.id, errdefs.ErrAlreadyExists)
	}
	p, err := newProcess(c.id, r.ExecID, streamNames{r.Stdin, r.Stdout, r.Stderr}, r.Terminal)
	if err != nil {
		return err
	}
	p.spec = r.GetSpec().GetValue()
	c.execs[r.ExecID] = p
	return nil
}

func (c *container) forgetExec(p *process) {
	p.streams.close()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.execs, p.exec)
}

// remove takes away all that the container was: processes, control group, mounts, what it wrote. Errors are of no use to anyone: the machine ends soon.
func (c *container) remove() {
	c.service.oom.unwatch(c.id)
	if c.ran {
		_ = c.crun(context.Background(), "delete", "--force", c.id)
	}
	for _, exec := range c.execs {
		exec.streams.close()
	}
	if c.init != nil {
		c.init.streams.close()
	}
	_ = unix.Unmount(c.rootfs(), unix.MNT_DETACH)
	machine.DropParts(c.id)
	for _, lun := range c.luns {
		c.service.disks.DropImage(lun)
	}
	_ = os.RemoveAll(c.dir())
	_ = os.RemoveAll(c.layer())
}

// killAll sends a signal to every process of the container.
func (c *container) killAll(signal int) error {
	if pid, _ := c.init.running(); pid == 0 {
		return c.init.kill(signal)
	}
	group, err := cgroup2.Load(c.cgroup)
	if err != nil {
		return err
	}
	if unix.Signal(signal) == unix.SIGKILL {
		return group.Kill()
	}
	pids, err := group.Procs(true)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(int(pid), unix.Signal(signal)); err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("signal process %d of container %s: %w", pid, c.id, err)
		}
	}
	return nil
}

// update lets crun translate the resources: it did so when it made the container.
func (c *container) update(ctx context.Context, resources []byte) error {
	if pid, _ := c.init.running(); pid == 0 {
		return fmt.Errorf("it is not running: %w", errdefs.ErrFailedPrecondition)
	}
	file, err := os.CreateTemp(c.dir(), "resources-*.json")
	if err != nil {
		return err
	}
	defer func() { _ = os.Remove(file.Name()) }()
	_, err = file.Write(resources)
	if err = errors.Join(err, file.Close()); err != nil {
		return err
	}
	return c.crun(ctx, "update", "--resources", file.Name(), c.id)
}

func (c *container) isPaused() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.paused
}

func (c *container) setPaused(paused bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.paused = paused
}
