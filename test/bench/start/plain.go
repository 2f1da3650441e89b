package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	internalapi "k8s.io/cri-api/pkg/apis"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	remote "k8s.io/cri-client/pkg"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/podnet"
)

const (
	plainName = "bench-plain"
	// plainMTU is a veth's usual one.
	plainMTU = 1500
	// plainFirst is the first address of the plain kubelet's pods: of the local cluster, but of none of its subnets.
	plainFirst = "10.90.248.1"
)

// plainConfig is a kubelet as upstream ships it, less what cannot work beside other kubelets or without a cgroup tree.
const plainConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: 127.0.0.1
readOnlyPort: 0
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}}
authorization: {mode: Webhook}
containerRuntimeEndpoint: unix://%s
cgroupDriver: cgroupfs
cgroupsPerQOS: false
enforceNodeAllocatable: []
failCgroupV1: false
makeIPTablesUtilChains: false
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {}
serializeImagePulls: false
registryPullQPS: 0
featureGates: {EventedPLEG: true}
`

// plainNode is what Berth is compared with: upstream's kubelet program, one for all pods, on a node that exists already,
// over the same containerd and the same gVisor handler. It takes every sandbox of containerd for its own and ends those
// that it does not know, so it runs only while Berth has no pod.
type plainNode struct {
	client client.Client
	cri    internalapi.RuntimeService
	dirs   layout.Dirs
	dir    string
	cmd    *exec.Cmd
	nextIP netip.Addr
	ended  chan error
}

// alive is an error if the kubelet has ended.
func (p *plainNode) alive() error {
	select {
	case err := <-p.ended:
		p.ended <- err
		return fmt.Errorf("the plain kubelet has ended: %w", err)
	default:
		return nil
	}
}

// startPlain starts the kubelet and returns when its node is ready.
func startPlain(ctx context.Context, c client.Client, program string) (_ *plainNode, err error) {
	dirs := layout.Default
	runtime, err := remote.NewRemoteRuntimeServiceBuilder().WithEndpoint("unix://" + dirs.ContainerdSocket()).WithConnectionTimeout(limit).WithTracerProvider(nil).Build(ctx)
	if err != nil {
		return nil, fmt.Errorf("connect to containerd: %w", err)
	}
	p := &plainNode{client: c, cri: runtime, dirs: dirs, dir: filepath.Join(dirs.State, plainName), nextIP: netip.MustParseAddr(plainFirst)}
	if err := os.MkdirAll(p.dir, 0o750); err != nil {
		return nil, fmt.Errorf("make the plain kubelet's directory: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, p.stop(context.WithoutCancel(ctx)))
		}
	}()
	class := &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: plainName}, Handler: layout.RuntimeHandlerGVisor}
	if err := c.Create(ctx, class); err != nil && !apierrors.IsAlreadyExists(err) {
		return nil, fmt.Errorf("create RuntimeClass %s: %w", plainName, err)
	}
	config := filepath.Join(p.dir, "config.yaml")
	if err := os.WriteFile(config, fmt.Appendf(nil, plainConfig, dirs.ContainerdSocket()), 0o600); err != nil {
		return nil, fmt.Errorf("write the plain kubelet's configuration: %w", err)
	}
	log, err := os.Create(filepath.Join(dirs.Log, plainName+".log"))
	if err != nil {
		return nil, fmt.Errorf("make the plain kubelet's log: %w", err)
	}
	defer log.Close()
	p.cmd = exec.Command(program, "--config", config, "--kubeconfig", dirs.AdminKubeconfig(), "--hostname-override", plainName,
		"--node-ip", layout.GatewayIP, "--root-dir", filepath.Join(p.dir, "root"))
	p.cmd.Stdout, p.cmd.Stderr = log, log
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	p.ended = make(chan error, 1)
	go func() { p.ended <- p.cmd.Wait() }()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	for {
		if err := p.alive(); err != nil {
			return nil, fmt.Errorf("%w (log: %s)", err, log.Name())
		}
		var node corev1.Node
		if err := c.Get(ctx, client.ObjectKey{Name: plainName}, &node); err == nil && ready(&node) {
			return p, nil
		}
		if err := pause(ctx); err != nil {
			return nil, fmt.Errorf("the plain kubelet's node is not ready (log: %s): %w", log.Name(), err)
		}
	}
}

func ready(node *corev1.Node) bool {
	for _, c := range node.Status.Conditions {
		if c.Type == corev1.NodeReady && c.Status == corev1.ConditionTrue {
			return true
		}
	}
	return false
}

// place puts a pod onto the node before it is created.
func (p *plainNode) place(pod *corev1.Pod) {
	class := plainName
	pod.Spec.NodeName, pod.Spec.RuntimeClassName = plainName, &class
	pod.Spec.Tolerations = []corev1.Toleration{{Operator: corev1.TolerationOpExists}}
}

// connect tells the CNI plugin the pod's network, right after the pod's creation and well before the kubelet gets there.
func (p *plainNode) connect(pod *corev1.Pod) error {
	ip := p.nextIP
	p.nextIP = ip.Next()
	return podnet.Write(p.dirs.PodNetwork(string(pod.UID)), podnet.Config{IP: ip.String(), Gateway: layout.GatewayIP, MTU: plainMTU})
}

// started is when a pod's container started, as containerd says.
func (p *plainNode) started(ctx context.Context, pod string) (time.Time, error) {
	list, err := p.cri.ListContainers(ctx, &cri.ContainerFilter{LabelSelector: map[string]string{"io.kubernetes.pod.name": pod}})
	if err != nil || len(list) != 1 {
		return time.Time{}, fmt.Errorf("find the container of pod %s (there are %d): %w", pod, len(list), err)
	}
	status, err := p.cri.ContainerStatus(ctx, list[0].Id, false)
	if err != nil {
		return time.Time{}, fmt.Errorf("look at the container of pod %s: %w", pod, err)
	}
	return time.Unix(0, status.Status.StartedAt), nil
}

// gone waits until no sandbox runs, and removes them and their networks: the plain kubelet itself would clear up only once
// a minute.
func (p *plainNode) gone(ctx context.Context, pods []*corev1.Pod) error {
	for {
		list, err := p.cri.ListPodSandbox(ctx, nil)
		if err != nil {
			return fmt.Errorf("list sandboxes: %w", err)
		}
		left := len(list)
		for _, sandbox := range list {
			if sandbox.State == cri.PodSandboxState_SANDBOX_NOTREADY && p.cri.RemovePodSandbox(ctx, sandbox.Id) == nil {
				left--
			}
		}
		if left == 0 {
			break
		}
		if err := pause(ctx); err != nil {
			return fmt.Errorf("the plain kubelet's pods do not go: %w", err)
		}
	}
	var errs []error
	for _, pod := range pods {
		errs = append(errs, os.Remove(p.dirs.PodNetwork(string(pod.UID))))
	}
	return errors.Join(errs...)
}

// stop ends the kubelet and removes what startPlain made.
func (p *plainNode) stop(ctx context.Context) error {
	var errs []error
	if p.ended != nil {
		if err := p.cmd.Process.Signal(os.Interrupt); !errors.Is(err, os.ErrProcessDone) {
			errs = append(errs, err)
		}
		<-p.ended //nolint:errcheck // ended by our signal, or alive has said how
		// A kubelet mounts its directory onto itself and leaves it so.
		if err := unix.Unmount(filepath.Join(p.dir, "root"), unix.MNT_DETACH); !errors.Is(err, unix.EINVAL) {
			errs = append(errs, err)
		}
	}
	for _, object := range []client.Object{
		&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: plainName}},
		&nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: plainName}},
	} {
		errs = append(errs, client.IgnoreNotFound(p.client.Delete(ctx, object)))
	}
	return errors.Join(append(errs, os.RemoveAll(p.dir))...)
}
