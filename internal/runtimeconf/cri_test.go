package runtimeconf_test

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	internalapi "k8s.io/cri-api/pkg/apis"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	remote "k8s.io/cri-client/pkg"

	"github.com/berth-run/berth/internal/images"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/runtimeconf"
)

const (
	nginxImage   = "docker.io/library/nginx:latest"
	busyboxImage = "docker.io/library/busybox:latest"
	startLimit   = 30 * time.Second
)

// cniAnswer is a CNI plugin that gives every pod the same address, on a link that leads nowhere.
const cniAnswer = `#!/bin/sh
case $CNI_COMMAND in
ADD) nsenter --net="$CNI_NETNS" sh -ec "ip link add $CNI_IFNAME type veth peer name nowhere; ip addr add 10.99.0.2/32 dev $CNI_IFNAME; ip link set $CNI_IFNAME up" >&2 || exit 1 ;;
esac
case $CNI_COMMAND in
VERSION) echo '{"cniVersion": "1.0.0", "supportedVersions": ["0.4.0", "1.0.0", "1.1.0"]}' ;;
ADD) echo "{\"cniVersion\": \"1.0.0\", \"interfaces\": [{\"name\": \"$CNI_IFNAME\", \"sandbox\": \"$CNI_NETNS\"}],
  \"ips\": [{\"address\": \"10.99.0.2/32\", \"interface\": 0}]}" ;;
esac
`

// machine is a containerd and a registry, configured by the package under test.
type machine struct {
	dirs    layout.Dirs
	binDir  string
	handler string // of the pods that are run
	runtime internalapi.RuntimeService
	images  internalapi.ImageManagerService
}

// start starts both and seeds the registry with the images of bin/images.
func start(t *testing.T) *machine {
	t.Helper()
	built, err := filepath.Abs("../../bin")
	if err != nil {
		t.Fatal(err)
	}
	for _, need := range []string{"containerd", "ctr", "containerd-shim-runsc-v1", "containerd-shim-runsc-start", "runsc", "registry", "images/nginx.tar", "images/pause.tar"} {
		if _, err := os.Stat(filepath.Join(built, need)); err != nil {
			t.Fatalf("bin/%s is missing: run make build images first", need)
		}
	}
	top, err := os.MkdirTemp(os.Getenv(topVariable), "")
	if err != nil {
		t.Fatal(err)
	}
	binDir := filepath.Join(top, "bin")
	linkPrograms(t, built, binDir)
	m := &machine{binDir: binDir, handler: layout.RuntimeHandlerGVisor, dirs: layout.Dirs{State: filepath.Join(top, "state"), Run: filepath.Join(top, "run"), Log: filepath.Join(top, "log")}}
	registryConfig, err := runtimeconf.WriteRegistry(m.dirs)
	if err != nil {
		t.Fatal(err)
	}
	containerdConfig, err := runtimeconf.WriteContainerd(m.dirs, binDir)
	if err != nil {
		t.Fatal(err)
	}
	launch(t, binDir, "registry", "serve", registryConfig)
	launch(t, binDir, "containerd", "--config", containerdConfig)
	waitFor(t, "the registry", func() error {
		resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/", layout.RegistryPort))
		if err != nil {
			return err
		}
		return resp.Body.Close()
	})
	if err := images.Seed(t.Context(), m.dirs, binDir); err != nil {
		t.Fatalf("seed: %v", err)
	}
	m.connect(t)
	return m
}

func linkPrograms(t *testing.T, from, to string) {
	t.Helper()
	entries, err := os.ReadDir(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, entry := range entries {
		if entry.Name() == "berth-cni" {
			continue
		}
		if err := os.Symlink(filepath.Join(from, entry.Name()), filepath.Join(to, entry.Name())); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(to, "berth-cni"), []byte(cniAnswer), 0o755); err != nil {
		t.Fatal(err)
	}
}

// launch starts a program that is stopped when the test ends; its log is shown if the test failed.
func launch(t *testing.T, binDir, name string, args ...string) {
	t.Helper()
	log, err := os.Create(filepath.Join(t.TempDir(), name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(filepath.Join(binDir, name), args...)
	cmd.Env = append(os.Environ(), "PATH="+binDir+":"+os.Getenv("PATH"), "OTEL_TRACES_EXPORTER=none")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
		if data, err := os.ReadFile(log.Name()); err == nil && t.Failed() {
			t.Logf("log of %s:\n%s", name, tail(string(data), 6000))
		}
	})
}

func tail(s string, n int) string {
	if len(s) > n {
		return s[len(s)-n:]
	}
	return s
}

// connect waits until containerd's CRI says that runtime and network are ready.
func (m *machine) connect(t *testing.T) {
	t.Helper()
	endpoint := "unix://" + m.dirs.ContainerdSocket()
	waitFor(t, "containerd", func() (err error) {
		if m.runtime == nil {
			if m.runtime, err = remote.NewRemoteRuntimeServiceBuilder().WithEndpoint(endpoint).WithConnectionTimeout(time.Minute).WithTracerProvider(nil).Build(t.Context()); err != nil {
				return err
			}
		}
		status, err := m.runtime.Status(t.Context(), false)
		if err != nil {
			return err
		}
		for _, c := range status.Status.Conditions {
			if !c.Status && (c.Type == cri.RuntimeReady || c.Type == cri.NetworkReady) {
				return fmt.Errorf("%s: %s: %s", c.Type, c.Reason, c.Message)
			}
		}
		return nil
	})
	var err error
	if m.images, err = remote.NewRemoteImageServiceBuilder().WithEndpoint(endpoint).WithConnectionTimeout(time.Minute).WithTracerProvider(nil).Build(t.Context()); err != nil {
		t.Fatal(err)
	}
}

// waitFor looks again every few milliseconds until check is content, for startLimit at most.
func waitFor(t *testing.T, what string, check func() error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), startLimit)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := check()
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

// pod is a running sandbox.
type pod struct {
	*machine
	id     string
	config *cri.PodSandboxConfig
}

// runPod makes a sandbox whose cgroup is a child of testCgroup and is limited to memory bytes (0: not at all).
func (m *machine) runPod(t *testing.T, name string, memory int64) *pod {
	t.Helper()
	parent := testCgroup + "/" + name
	limitMemory(t, parent, memory)
	config := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name},
		Hostname:     name,
		LogDirectory: filepath.Join(m.dirs.Log, name),
		Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: parent, SecurityContext: &cri.LinuxSandboxSecurityContext{}},
	}
	if err := os.MkdirAll(config.LogDirectory, 0o755); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	id, err := m.runtime.RunPodSandbox(t.Context(), config, m.handler)
	if err != nil {
		t.Fatalf("run the sandbox: %v", err)
	}
	t.Logf("sandbox %s runs after %v", name, time.Since(began).Round(time.Millisecond))
	p := &pod{machine: m, id: id, config: config}
	t.Cleanup(func() { p.remove(t) })
	return p
}

// remove stops and removes the sandbox; it may be called twice.
func (p *pod) remove(t *testing.T) {
	t.Helper()
	ctx := context.WithoutCancel(t.Context())
	if err := p.runtime.StopPodSandbox(ctx, p.id); err != nil {
		t.Errorf("stop the sandbox: %v", err)
	}
	if err := p.runtime.RemovePodSandbox(ctx, p.id); err != nil {
		t.Errorf("remove the sandbox: %v", err)
	}
}

// run starts a container; without a command it runs the image's own.
func (p *pod) run(t *testing.T, name, image string, command ...string) string {
	t.Helper()
	began := time.Now()
	id, err := p.create(t, name, image, command...)
	if err != nil {
		t.Fatalf("create %s: %v", name, err)
	}
	if err := p.runtime.StartContainer(t.Context(), id); err != nil {
		t.Fatalf("start %s: %v", name, err)
	}
	t.Logf("container %s runs after %v", name, time.Since(began).Round(time.Millisecond))
	return id
}

// create pulls an image and makes a container of it.
func (p *pod) create(t *testing.T, name, image string, command ...string) (string, error) {
	t.Helper()
	spec := &cri.ImageSpec{Image: image}
	if _, err := p.images.PullImage(t.Context(), spec, nil, p.config); err != nil {
		t.Fatalf("pull %s: %v", image, err)
	}
	return p.runtime.CreateContainer(t.Context(), p.id, &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: name},
		Image:    spec,
		Command:  command,
		LogPath:  name + ".log",
		Linux:    &cri.LinuxContainerConfig{Resources: &cri.LinuxContainerResources{}},
	}, p.config)
}

// exited waits for a container's end and returns its status.
func (p *pod) exited(t *testing.T, id string) *cri.ContainerStatus {
	t.Helper()
	var status *cri.ContainerStatus
	waitFor(t, "the container's end", func() error {
		response, err := p.runtime.ContainerStatus(t.Context(), id, false)
		if err != nil {
			return err
		}
		if status = response.Status; status.State != cri.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("its state is %v", status.State)
		}
		return nil
	})
	return status
}

// checkEnd checks a container that wrote to both of its outputs and ended with 7.
func checkEnd(t *testing.T, p *pod, id string) {
	t.Helper()
	if status := p.exited(t, id); status.ExitCode != 7 {
		t.Errorf("exit code is %d, want 7", status.ExitCode)
	}
	if log := p.log(t, "busybox"); !strings.Contains(log, "stdout F to stdout") || !strings.Contains(log, "stderr F to stderr") {
		t.Errorf("log is %q", log)
	}
}

// log is what a container has written so far.
func (p *pod) log(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(p.config.LogDirectory, name+".log"))
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(data))
}

func limitMemory(t *testing.T, cgroup string, limit int64) {
	t.Helper()
	if limit == 0 {
		return
	}
	dir := memoryRoot() + cgroup
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"memory.max", "memory.limit_in_bytes"} {
		if _, err := os.Stat(filepath.Join(dir, name)); err == nil {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(fmt.Sprint(limit)), 0); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("no memory controller in %s: the machine's cgroups cannot limit memory", dir)
}
