package testkit

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

func TestStartServesAndStopLeavesNothing(t *testing.T) {
	e, err := Start(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	stopped := false
	t.Cleanup(func() {
		if !stopped {
			_ = e.Stop()
		}
	})
	admin, err := client.New(e.Config, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var namespaces corev1.NamespaceList
	if err := admin.List(t.Context(), &namespaces); err != nil {
		t.Errorf("an administrator lists namespaces: %v", err)
	}
	config, err := e.ConfigFor("nobody-special")
	if err != nil {
		t.Fatal(err)
	}
	user, err := client.New(config, client.Options{Mapper: admin.RESTMapper()})
	if err != nil {
		t.Fatal(err)
	}
	if err := user.List(t.Context(), &namespaces); !apierrors.IsForbidden(err) {
		t.Errorf("a user without rights lists namespaces: got %v, want forbidden", err)
	}
	var pids []int
	for _, p := range e.processes {
		pids = append(pids, p.cmd.Process.Pid)
	}
	if len(pids) != 2 {
		t.Errorf("%d processes run, want etcd and kube-apiserver", len(pids))
	}
	stopped = true
	if err := e.Stop(); err != nil {
		t.Fatal(err)
	}
	for _, pid := range pids {
		if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
			t.Errorf("process %d is left: %v", pid, err)
		}
	}
	if _, err := os.Stat(e.dir); !os.IsNotExist(err) {
		t.Errorf("%s is left: %v", e.dir, err)
	}
}

func TestMissingProgramsAreNamed(t *testing.T) {
	dir := t.TempDir()
	t.Setenv(EnvBin, dir)
	_, err := Start(t.Context())
	if err == nil || !strings.Contains(err.Error(), filepath.Join(dir, "etcd")) || !strings.Contains(err.Error(), "make build") {
		t.Errorf("got %v, want the missing program and what to do", err)
	}
}
