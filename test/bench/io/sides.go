package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/test/bench"
	"github.com/berth-run/berth/test/bench/plain"
)

const (
	name  = "bench-io"
	image = "docker.io/library/bench-io:latest"
	// cpus of each side, and memory.
	cpus   = 1
	memory = "2Gi"
	// startLimit bounds how long a pod takes to run; a template may have to be built first.
	startLimit = 3 * time.Minute
	// clientIP and serverIP are the plain containers' addresses: the last ones of a private subnet, which pods get last.
	clientIP, serverIP = "10.90.31.253", "10.90.31.254"
)

// side is where the programs run.
type side struct {
	name string
	// in runs a program and returns what it printed.
	in func(ctx context.Context, args ...string) (string, error)
}

// set is what was set up.
type set struct {
	*bench.Cluster
	options
	dir    string
	sides  []*side
	server *plain.Container
	undo   []func(context.Context) error
}

func setUp(ctx context.Context, o options) (*set, error) {
	c, err := bench.Connect()
	if err != nil {
		return nil, err
	}
	// On the disk where pods' files are.
	dir, err := os.MkdirTemp(layout.Default.State, name)
	if err != nil {
		return nil, err
	}
	s := &set{Cluster: c, options: o, dir: dir}
	s.undo = append(s.undo, func(context.Context) error { return os.RemoveAll(dir) })
	if _, err := plain.Command(ctx, nil, "bin/berth", "image", "load", o.archive); err != nil {
		return s, err
	}
	isolations, err := c.Isolations(ctx)
	if err != nil {
		return s, err
	}
	for _, i := range []v1alpha1.Isolation{v1alpha1.IsolationMicroVM, v1alpha1.IsolationGVisor} {
		for _, can := range isolations {
			if i == can {
				err = errors.Join(err, s.pod(ctx, i))
			}
		}
	}
	return s, errors.Join(err, s.containers(ctx))
}

func (s *set) tearDown(ctx context.Context) error {
	var failed []error
	for i := len(s.undo) - 1; i >= 0; i-- {
		failed = append(failed, s.undo[i](ctx))
	}
	return errors.Join(failed...)
}

// pod makes an isolation's side.
func (s *set) pod(ctx context.Context, isolation v1alpha1.Isolation) error {
	ctx, cancel := context.WithTimeout(ctx, startLimit)
	defer cancel()
	profile, err := s.Profile(ctx, name+"-"+string(isolation), v1alpha1.SizingTable, isolation)
	if err != nil {
		return err
	}
	s.undo = append(s.undo, func(ctx context.Context) error { return s.Delete(ctx, profile) })
	size := corev1.ResourceList{corev1.ResourceCPU: *resource.NewQuantity(cpus, resource.DecimalSI), corev1.ResourceMemory: resource.MustParse(memory)}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: profile.Name, Namespace: metav1.NamespaceDefault, Labels: map[string]string{"bench": profile.Name}},
		Spec: corev1.PodSpec{TerminationGracePeriodSeconds: new(int64), Volumes: []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{EmptyDir: &corev1.EmptyDirVolumeSource{}}}},
			Containers: []corev1.Container{{Name: "c", Image: image, ImagePullPolicy: corev1.PullIfNotPresent, Command: []string{"sleep", "infinity"},
				VolumeMounts: []corev1.VolumeMount{{Name: "data", MountPath: dataDir}}, Resources: corev1.ResourceRequirements{Requests: size}}}}}
	if err := s.Create(ctx, pod); err != nil {
		return fmt.Errorf("create pod %s: %w", pod.Name, err)
	}
	s.undo = append(s.undo, func(ctx context.Context) error {
		_, err := plain.Kubectl(ctx, "", "delete", "pod", pod.Name, "--now")
		return err
	})
	s.sides = append(s.sides, &side{name: string(isolation), in: func(ctx context.Context, args ...string) (string, error) {
		return plain.Kubectl(ctx, "", append([]string{"exec", pod.Name, "--"}, args...)...)
	}})
	return bench.Until(ctx, func() (bool, error) {
		err := s.Get(ctx, client.ObjectKeyFromObject(pod), pod)
		return pod.Status.Phase == corev1.PodRunning, err
	})
}

// containers makes the plain side, and the server of all.
func (s *set) containers(ctx context.Context) error {
	one := &plain.Container{Name: name + "-client", IP: clientIP, Args: []string{"sleep", "infinity"}, CPUs: cpus}
	s.server = &plain.Container{Name: name + "-server", IP: serverIP, Args: []string{"iperf3", "--server", "--port", iperfPort}}
	for _, c := range []*plain.Container{one, s.server} {
		c.Dir, c.Rootfs = s.dir, s.unpack
		s.undo = append(s.undo, c.Remove)
		if err := c.Start(ctx); err != nil {
			return err
		}
	}
	s.sides = append(s.sides, &side{name: "runc", in: one.Exec})
	return s.server.Spawn(ctx, "sockperf", "server", "--tcp", "--port", sockperfPort)
}

func (s *set) unpack(ctx context.Context, dir string) error {
	_, err := plain.Command(ctx, nil, "tar", "-xzf", s.layer, "-C", dir)
	return errors.Join(err, os.MkdirAll(filepath.Join(dir, dataDir), 0o755))
}
