package runtimeconf_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestPodUnderGVisor(t *testing.T) {
	m := start(t)
	events := m.watch(t)
	p := m.runPod(t, "web", 0)
	nginx := p.run(t, "nginx", nginxImage)
	busybox := p.run(t, "busybox", busyboxImage, "sh", "-c", "echo to stdout; echo to stderr >&2; exit 7")

	t.Run("a container's exit code and log", func(t *testing.T) { checkEnd(t, p, busybox) })
	t.Run("exec sees gVisor's kernel and nginx's page", func(t *testing.T) {
		began := time.Now()
		out, stderr, err := m.runtime.ExecSync(t.Context(), nginx, []string{"sh", "-c", "dmesg | head -n 1; curl -sS http://127.0.0.1/"}, time.Minute)
		if err != nil {
			t.Fatalf("exec: %v: %s", err, stderr)
		}
		t.Logf("exec took %v", time.Since(began).Round(time.Millisecond))
		if !strings.Contains(string(out), "Welcome to nginx!") {
			t.Errorf("output is %q", out)
		}
		waitFor(t, "nginx's access log", func() error {
			if log := p.log(t, "nginx"); !strings.Contains(log, "GET / HTTP/1.1") {
				return errors.New(log)
			}
			return nil
		})
	})
	t.Run("raw sockets", func(t *testing.T) {
		p.exited(t, p.run(t, "ping", busyboxImage, "ping", "-c", "1", "-W", "1", "127.0.0.1"))
		if log := p.log(t, "ping"); !strings.Contains(log, "1 packets received") {
			t.Errorf("log is %q", log)
		}
	})
	t.Run("set-user-ID programs", func(t *testing.T) {
		const script = "cp /usr/bin/id /tmp; chmod 4755 /tmp/id; setpriv --reuid=101 --clear-groups /tmp/id -u"
		p.exited(t, p.run(t, "suid", nginxImage, "sh", "-c", script))
		if log := p.log(t, "suid"); !strings.HasSuffix(log, "stdout F 0") {
			t.Errorf("log is %q", log)
		}
	})
	t.Run("statistics", func(t *testing.T) { checkStatistics(t, p, nginx) })
	t.Run("memory", func(t *testing.T) { checkMemory(t, p.id) })
	t.Run("the sandbox is in the pod's cgroup", func(t *testing.T) { checkCgroup(t, p) })
	t.Run("events", func(t *testing.T) {
		want := map[cri.ContainerEventType]bool{}
		for !want[cri.ContainerEventType_CONTAINER_STARTED_EVENT] || !want[cri.ContainerEventType_CONTAINER_STOPPED_EVENT] {
			select {
			case e := <-events:
				want[e.ContainerEventType] = want[e.ContainerEventType] || e.ContainerId == busybox
			case <-time.After(startLimit):
				t.Fatalf("busybox's start and end were not both told: %v", want)
			}
		}
	})
	t.Run("the pod goes at once", func(t *testing.T) {
		began := time.Now()
		p.remove(t)
		took := time.Since(began)
		t.Logf("stop and remove took %v", took.Round(time.Millisecond))
		// The fault that the shim mends shows as two minutes.
		if took > 20*time.Second {
			t.Errorf("stop and remove took %v", took)
		}
		if left, err := m.runtime.ListPodSandbox(t.Context(), nil); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
}

func TestMemoryLimitBites(t *testing.T) {
	const limit = 256 << 20
	m := start(t)
	p := m.runPod(t, "hungry", limit)
	// dd fills a buffer of this size.
	id := p.run(t, "busybox", busyboxImage, "sh", "-c", "dd if=/dev/zero of=/dev/null bs=1000M count=1; echo survived")
	status := p.exited(t, id)
	if status.ExitCode == 0 || strings.Contains(p.log(t, "busybox"), "survived") {
		t.Errorf("a container took 1 GB in a cgroup of %d bytes: %v, log %q", limit, status, p.log(t, "busybox"))
	}
	t.Logf("exit code %d, reason %s", status.ExitCode, status.Reason)
}

// Without internet a pull of an image that is not in the loopback registry fails soon and says what happened.
func TestPullWithoutInternet(t *testing.T) {
	m := start(t)
	began := time.Now()
	_, err := m.images.PullImage(t.Context(), &cri.ImageSpec{Image: "docker.io/library/none-such:1"}, nil, nil)
	if err == nil {
		t.Fatal("an image that does not exist was pulled")
	}
	t.Logf("after %v: %v", time.Since(began).Round(time.Millisecond), err)
	if took := time.Since(began); took > 15*time.Second {
		t.Errorf("the failure took %v", took)
	}
	if !strings.Contains(err.Error(), "docker.io/library/none-such:1") {
		t.Errorf("the error does not name the image: %v", err)
	}
}

// watch collects the CRI's events.
func (m *machine) watch(t *testing.T) <-chan *cri.ContainerEventResponse {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	events, ended := make(chan *cri.ContainerEventResponse, 100), make(chan struct{})
	connected := make(chan struct{})
	go func() {
		defer close(ended)
		_ = m.runtime.GetContainerEvents(ctx, events, func(cri.RuntimeService_GetContainerEventsClient) { close(connected) })
	}()
	t.Cleanup(func() { cancel(); <-ended })
	select {
	case <-connected:
	case <-time.After(startLimit):
		t.Fatal("the stream of events does not open")
	}
	return events
}

func checkStatistics(t *testing.T, p *pod, container string) {
	stats, err := p.runtime.ContainerStats(t.Context(), container)
	if err != nil {
		t.Fatalf("container: %v", err)
	}
	if stats.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || stats.GetMemory().GetWorkingSetBytes().GetValue() == 0 {
		t.Errorf("container: cpu %v, memory %v", stats.GetCpu(), stats.GetMemory())
	}
	sandbox, err := p.runtime.PodSandboxStats(t.Context(), p.id)
	if err != nil {
		t.Fatalf("sandbox: %v", err)
	}
	if linux := sandbox.GetLinux(); linux.GetMemory().GetWorkingSetBytes().GetValue() == 0 || linux.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 {
		t.Errorf("sandbox: cpu %v, memory %v", linux.GetCpu(), linux.GetMemory())
	}
	t.Logf("container: %v\nsandbox: %v", stats, sandbox.GetLinux())
}

// checkCgroup sees that the pod's processes are in the cgroup that was asked for, where a limit binds them.
func checkCgroup(t *testing.T, p *pod) {
	var processes int
	root := memoryRoot() + p.config.Linux.CgroupParent
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.Name() != "cgroup.procs" {
			return err
		}
		data, err := os.ReadFile(path)
		processes += len(strings.Fields(string(data)))
		return err
	})
	if err != nil || processes < 2 {
		t.Errorf("%d processes in %s, want the sandbox and its gofer at least: %v", processes, root, err)
	}
}
