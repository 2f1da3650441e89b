package hostagent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/mount-utils"

	"github.com/berth-run/berth/internal/hostagent/network"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/podcgroup"
	"github.com/berth-run/berth/internal/podnet"
)

// labelNode is on every sandbox of a node; internal/node writes it.
const labelNode = "berth.run/node"

// removeSandboxes stops and removes the node's sandboxes, whatever state they are in.
func removeSandboxes(ctx context.Context, cri internalapi.RuntimeService, node string) error {
	return eachSandbox(ctx, cri, node, func(id string) error {
		if err := cri.StopPodSandbox(ctx, id); err != nil {
			return fmt.Errorf("stop it: %w", err)
		}
		return cri.RemovePodSandbox(ctx, id)
	})
}

// stopSandboxes stops the node's sandboxes and all in them; what containerd knows of them stays.
func stopSandboxes(ctx context.Context, cri internalapi.RuntimeService, node string) error {
	return eachSandbox(ctx, cri, node, func(id string) error { return cri.StopPodSandbox(ctx, id) })
}

// eachSandbox does the same with each sandbox of the node, or of all nodes for "".
func eachSandbox(ctx context.Context, cri internalapi.RuntimeService, node string, do func(id string) error) error {
	filter := &runtimeapi.PodSandboxFilter{}
	if node != "" {
		filter.LabelSelector = map[string]string{labelNode: node}
	}
	sandboxes, err := cri.ListPodSandbox(ctx, filter)
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	var g errgroup.Group
	g.SetLimit(8)
	for _, s := range sandboxes {
		g.Go(func() error {
			if err := do(s.Id); err != nil {
				return fmt.Errorf("end sandbox %s of pod %s/%s: %w", s.Id, s.GetMetadata().GetNamespace(), s.GetMetadata().GetName(), err)
			}
			return nil
		})
	}
	return g.Wait()
}

// StopSandboxes stops and removes every sandbox of containerd at the endpoint, as `berth down` does before it stops containerd.
func StopSandboxes(ctx context.Context, cri internalapi.RuntimeService) error {
	return removeSandboxes(ctx, cri, "")
}

// unmountBelow unmounts everything below dir, deepest first.
func unmountBelow(dir string) error {
	mounts, err := mount.New("").List()
	if err != nil {
		return fmt.Errorf("list mounts: %w", err)
	}
	var below []string
	for _, m := range mounts {
		if strings.HasPrefix(m.Path, dir+"/") || m.Path == dir {
			below = append(below, m.Path)
		}
	}
	sort.Sort(sort.Reverse(sort.StringSlice(below)))
	for _, path := range below {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
	return nil
}

// removeFiles removes what a pod's node had on the host's disks.
func removeFiles(dirs layout.Dirs, uid string) error {
	if err := unmountBelow(dirs.Node(uid)); err != nil {
		return err
	}
	for _, path := range []string{dirs.Node(uid), dirs.PodNetwork(uid), dirs.NodeLog(uid), dirs.NodeRun(uid)} {
		if err := os.RemoveAll(path); err != nil {
			return fmt.Errorf("remove %s: %w", path, err)
		}
	}
	return nil
}

// RemoveAll removes everything of Berth that is left on the host after its daemons were stopped: node processes, mounts,
// links, network namespaces, cgroups and the nftables table. It works from whatever state a crash left.
func RemoveAll(ctx context.Context, dirs layout.Dirs) error {
	var failed []error
	keep := func(err error) {
		if err != nil {
			failed = append(failed, err)
		}
	}
	processes := newNodeProcesses(dirs, "", 0)
	nodes, err := os.ReadDir(filepath.Join(dirs.Run, "nodes"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		keep(err)
	}
	for _, n := range nodes {
		keep(processes.stop(n.Name()))
		keep(podnet.Del(n.Name()))
	}
	keep(podcgroup.Remove("/" + layout.PodCgroup))
	for _, dir := range []string{dirs.ContainerdState(), dirs.Containerd(), filepath.Join(dirs.State, "nodes"), dirs.Run} {
		keep(unmountBelow(dir))
	}
	keep(network.Down(ctx))
	keep(lowerLimits(dirs))
	return errors.Join(failed...)
}

// sweepOne removes what is left of a pod of which only the UID is known.
func (r *reconciler) sweepOne(ctx context.Context, uid string) error {
	c, err := podnet.Read(r.options.Dirs.PodNetwork(uid))
	if err != nil {
		c = podnet.Config{}
	}
	if err := r.processes.stop(uid); err != nil { // first: it would start its pod again
		return err
	}
	sandboxes, err := r.cri.ListPodSandbox(ctx, &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"io.kubernetes.pod.uid": uid}})
	if err != nil {
		return fmt.Errorf("list sandboxes: %w", err)
	}
	for _, s := range sandboxes {
		if err := removeSandboxes(ctx, r.cri, s.Labels[labelNode]); err != nil {
			return err
		}
	}
	if err := podnet.Del(uid); err != nil {
		return err
	}
	if c.IP != "" {
		if err := r.net.RemovePod(ctx, podnet.HostLink(uid), c.IP); err != nil {
			return err
		}
	}
	if err := podcgroup.Remove(layout.PodCgroupPath(uid)); err != nil {
		return err
	}
	r.forget(uid)
	return removeFiles(r.options.Dirs, uid)
}

// StopNodes ends every node process of the machine, as `berth down` does first: their kubelets would start pods again.
func StopNodes(dirs layout.Dirs) {
	processes := newNodeProcesses(dirs, "", 0)
	nodes, err := os.ReadDir(filepath.Join(dirs.Run, "nodes"))
	if err != nil {
		return
	}
	var g errgroup.Group
	for _, n := range nodes {
		g.Go(func() error { return processes.stop(n.Name()) })
	}
	if err := g.Wait(); err != nil {
		slog.Warn("stop node processes", "error", err)
	}
}
