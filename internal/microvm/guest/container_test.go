package guest_test

import (
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

// busybox makes an image disk with Debian's static busybox under every name it has, and returns its LUN.
func (m *vm) busybox() int {
	m.t.Helper()
	root := filepath.Join(m.dir, "busybox")
	for _, dir := range []string{"bin", "tmp", "proc", "sys", "dev", "etc"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			m.t.Fatal(err)
		}
	}
	run(m.t, "cp", "/bin/busybox", filepath.Join(root, "bin/busybox"))
	for _, name := range []string{"sh", "cat", "sleep", "ip", "hostname", "id", "ls", "head", "od", "true", "kill", "dd", "stty", "wc", "readlink", "date", "mount", "mkdir", "sync", "touch", "nc", "tail", "free", "grep", "ps", "ln"} {
		if err := os.Symlink("busybox", filepath.Join(root, "bin", name)); err != nil {
			m.t.Fatal(err)
		}
	}
	image := m.path("busybox.erofs")
	run(m.t, "mkfs.erofs", "--all-root", image, root)
	return m.attach(image, true)
}

// shell is the configuration of a container that runs a script, changed by change.
func shell(id, script string, change func(*specs.Spec)) *specs.Spec {
	mount := func(fstype, target string, options ...string) specs.Mount {
		return specs.Mount{Type: fstype, Source: fstype, Destination: target, Options: options}
	}
	spec := &specs.Spec{
		Version: specs.Version,
		Process: &specs.Process{Args: []string{"/bin/sh", "-c", script}, Cwd: "/", Env: []string{"PATH=/bin"}, Capabilities: &specs.LinuxCapabilities{}},
		Root:    &specs.Root{Path: "rootfs"},
		Mounts: []specs.Mount{
			mount("proc", "/proc", "nosuid", "noexec", "nodev"),
			mount("tmpfs", "/dev", "nosuid", "mode=755"),
			mount("devpts", "/dev/pts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
			mount("sysfs", "/sys", "nosuid", "noexec", "nodev", "ro"),
			mount("cgroup", "/sys/fs/cgroup", "nosuid", "noexec", "nodev", "ro"),
		},
		Linux: &specs.Linux{
			CgroupsPath: "/pod/" + id,
			Resources:   &specs.LinuxResources{},
			Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}},
		},
	}
	if change != nil {
		change(spec)
	}
	return spec
}

func containerOptions(t testing.TB, spec *specs.Spec, luns ...int) *anypb.Any {
	t.Helper()
	config, err := json.Marshal(spec)
	if err != nil {
		t.Fatal(err)
	}
	value, err := json.Marshal(guestapi.Container{Spec: config, Rootfs: guestapi.Rootfs{LUNs: luns}})
	if err != nil {
		t.Fatal(err)
	}
	return &anypb.Any{TypeUrl: guestapi.ContainerType, Value: value}
}

// start creates and starts a container whose output is kept.
func (m *vm) start(id string, spec *specs.Spec, luns ...int) {
	m.t.Helper()
	create := &api.CreateTaskRequest{ID: id, Stdin: "0", Stdout: "1", Stderr: "2", Options: containerOptions(m.t, spec, luns...)}
	if _, err := m.tasks.Create(m.t.Context(), create); err != nil {
		m.t.Fatal(err)
	}
	if _, err := m.tasks.Start(m.t.Context(), &api.StartRequest{ID: id}); err != nil {
		m.t.Fatal(err)
	}
}

func (m *vm) wait(id, exec string) int {
	m.t.Helper()
	exit, err := m.tasks.Wait(m.t.Context(), &api.WaitRequest{ID: id, ExecID: exec})
	if err != nil {
		m.t.Fatal(err)
	}
	return int(exit.ExitStatus)
}

// output is all of a stream, until the process's end of it is closed.
func (m *vm) output(id, exec string, fd int) string {
	m.t.Helper()
	s := m.open(guestapi.Request{Op: guestapi.OpStdio, Stdio: &guestapi.Stdio{ID: id, Exec: exec, FD: fd}})
	defer func() { _ = s.Close() }()
	out, err := io.ReadAll(s)
	if err != nil {
		m.t.Fatal(err)
	}
	return string(out)
}

// sh runs a script in a container of its own and returns what it said.
func (m *vm) sh(id, script string, lun int) string {
	m.t.Helper()
	m.start(id, shell(id, script, nil), lun)
	status := m.wait(id, "")
	out, said := m.output(id, "", 1), m.output(id, "", 2)
	if status != 0 {
		m.t.Fatalf("%s ends with %d: %s%s", script, status, out, said)
	}
	if _, err := m.tasks.Delete(m.t.Context(), &api.DeleteRequest{ID: id}); err != nil {
		m.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}
