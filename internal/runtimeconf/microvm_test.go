package runtimeconf_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/microvm/qemu"
	"github.com/berth-run/berth/internal/microvm/template"
	"github.com/berth-run/berth/internal/microvm/vmm"
)

// holdTemplates does what the host agent does for shims, with templates made by emulation, which runs everywhere.
func (m *machine) holdTemplates(t *testing.T) {
	t.Helper()
	driver := qemu.New(qemu.Options{Acceleration: qemu.TCG, Dir: m.dirs.MicroVM(), Jail: filepath.Join(m.binDir, "berth-jail")})
	store := template.NewStore(template.Options{Dir: m.dirs.Templates(), Driver: driver, Guest: template.GuestIn(layout.Guest(m.binDir)),
		Confinement: vmm.Confinement{UID: 70000, GID: 70000}})
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	holder := template.NewHolder(store)
	go func() { done <- holder.Serve(ctx, m.dirs.TemplateSocket()) }()
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	began := time.Now()
	if err := holder.Preload(ctx, template.Shapes[0]); err != nil {
		t.Fatal(err)
	}
	t.Logf("made the template in %v", time.Since(began).Round(time.Millisecond))
}

func TestPodInMicroVM(t *testing.T) {
	m := start(t)
	m.holdTemplates(t)
	m.handler = layout.RuntimeHandlerMicroVM
	p := m.runPod(t, "web", 0)
	nginx := p.run(t, "nginx", nginxImage)
	busybox := p.run(t, "busybox", busyboxImage, "sh", "-c", "echo to stdout; echo to stderr >&2; exit 7")

	t.Run("a container's exit code and log", func(t *testing.T) { checkEnd(t, p, busybox) })
	t.Run("exec sees the guest's kernel and nginx's page", func(t *testing.T) {
		for range 3 {
			began := time.Now()
			out, stderr, err := m.runtime.ExecSync(t.Context(), nginx, []string{"sh", "-c", "cat /proc/version; curl -sS http://127.0.0.1/"}, time.Minute)
			if err != nil {
				t.Fatalf("exec: %v: %s", err, stderr)
			}
			t.Logf("exec took %v", time.Since(began).Round(time.Millisecond))
			if !strings.Contains(string(out), "Welcome to nginx!") || !strings.Contains(string(out), "cloud-amd64") {
				t.Errorf("output is %q", out)
			}
		}
		waitFor(t, "nginx's access log", func() error {
			if log := p.log(t, "nginx"); !strings.Contains(log, "GET / HTTP/1.1") {
				return errors.New(log)
			}
			return nil
		})
	})
	t.Run("exec's exit code", func(t *testing.T) {
		if _, _, err := m.runtime.ExecSync(t.Context(), nginx, []string{"sh", "-c", "exit 3"}, time.Minute); err == nil || !strings.Contains(err.Error(), "3") {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("statistics", func(t *testing.T) { checkStatistics(t, p, nginx) })
	t.Run("a restart of the same image is quick", func(t *testing.T) {
		p.exited(t, p.run(t, "again", busyboxImage, "true"))
	})
	t.Run("signals", func(t *testing.T) {
		id := p.run(t, "trap", busyboxImage, "sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.1; done")
		waitFor(t, "the trap", func() error {
			if log := p.log(t, "trap"); !strings.Contains(log, "ready") {
				return errors.New(log)
			}
			return nil
		})
		if err := m.runtime.StopContainer(t.Context(), id, 20); err != nil {
			t.Fatal(err)
		}
		if status := p.exited(t, id); status.ExitCode != 9 {
			t.Errorf("exit code is %d, want 9", status.ExitCode)
		}
	})
	t.Run("a missing program is said so", func(t *testing.T) {
		id, err := p.create(t, "none", busyboxImage, "/no/such/program")
		if err == nil {
			err = m.runtime.StartContainer(t.Context(), id)
		}
		if err == nil || !strings.Contains(err.Error(), "/no/such/program") {
			t.Errorf("error is %v", err)
		}
	})
	t.Run("the monitor dies", func(t *testing.T) {
		out, err := exec.Command("pgrep", "-f", "qemu-system").Output()
		if err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("kill", append([]string{"-9"}, strings.Fields(string(out))...)...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		if status := p.exited(t, nginx); status.ExitCode != 137 {
			t.Errorf("exit code is %d, want 137", status.ExitCode)
		}
		waitFor(t, "the sandbox", func() error {
			status, err := m.runtime.PodSandboxStatus(t.Context(), p.id, false)
			if err == nil && status.Status.State != cri.PodSandboxState_SANDBOX_NOTREADY {
				err = fmt.Errorf("its state is %v", status.Status.State)
			}
			return err
		})
	})
	t.Run("the pod goes at once", func(t *testing.T) {
		began := time.Now()
		p.remove(t)
		t.Logf("stop and remove took %v", time.Since(began).Round(time.Millisecond))
		if left, err := m.runtime.ListPodSandbox(t.Context(), nil); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
		if left, err := os.ReadDir(filepath.Dir(m.dirs.MicroVMRun("x"))); err != nil || len(left) > 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	})
}
