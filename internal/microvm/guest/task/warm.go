package task

import (
	"context"
	"encoding/json"
	"fmt"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/types/known/anypb"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

const warmID = "warm"

// Warm runs a container out of the tools image to its end. In a template it brings crun, its libraries and what the kernel needs for a container
// into memory, where all clones share them. In a clone with an emulated processor it makes the emulator translate that code before it is needed: an
// emulator starts with none. Only one call at a time.
func (s *Service) Warm(ctx context.Context) error {
	spec, err := json.Marshal(warmSpec())
	if err != nil {
		return err
	}
	options, err := json.Marshal(guestapi.Container{Spec: spec, Rootfs: guestapi.Rootfs{LUNs: []int{guestapi.ToolsLUN}}})
	if err != nil {
		return err
	}
	create := &api.CreateTaskRequest{ID: warmID, Stdout: "1", Options: &anypb.Any{TypeUrl: guestapi.ContainerType, Value: options}}
	if _, err := s.Create(ctx, create); err != nil {
		return fmt.Errorf("warm up: %w", err)
	}
	if _, err := s.Start(ctx, &api.StartRequest{ID: warmID}); err != nil {
		return fmt.Errorf("warm up: %w", err)
	}
	exit, err := s.Wait(ctx, &api.WaitRequest{ID: warmID})
	if err != nil {
		return fmt.Errorf("warm up: %w", err)
	}
	if exit.ExitStatus != 0 {
		return fmt.Errorf("warm up: the container ended with status %d", exit.ExitStatus)
	}
	if _, err := s.Delete(ctx, &api.DeleteRequest{ID: warmID}); err != nil {
		return fmt.Errorf("warm up: %w", err)
	}
	return nil
}

// warmSpec is a container as usual: namespaces, the kernel's file systems, limits.
func warmSpec() *specs.Spec {
	limit, shares := int64(64<<20), uint64(256)
	mount := func(fstype, target string, options ...string) specs.Mount {
		return specs.Mount{Type: fstype, Source: fstype, Destination: target, Options: options}
	}
	return &specs.Spec{
		Version:  specs.Version,
		Process:  &specs.Process{Args: []string{crunProgram, "--version"}, Cwd: "/", NoNewPrivileges: true, Capabilities: &specs.LinuxCapabilities{}},
		Root:     &specs.Root{Readonly: true},
		Hostname: warmID,
		Mounts: []specs.Mount{
			mount("proc", "/proc", "nosuid", "noexec", "nodev"),
			mount("tmpfs", "/dev", "nosuid", "mode=755"),
			mount("devpts", "/dev/pts", "nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"),
			mount("mqueue", "/dev/mqueue", "nosuid", "noexec", "nodev"),
			mount("sysfs", "/sys", "nosuid", "noexec", "nodev", "ro"),
			mount("cgroup", "/sys/fs/cgroup", "nosuid", "noexec", "nodev", "ro"),
		},
		Linux: &specs.Linux{
			CgroupsPath: "/pod/" + warmID,
			Resources:   &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}, CPU: &specs.LinuxCPU{Shares: &shares}},
			Namespaces: []specs.LinuxNamespace{{Type: specs.PIDNamespace}, {Type: specs.IPCNamespace}, {Type: specs.UTSNamespace},
				{Type: specs.MountNamespace}, {Type: specs.CgroupNamespace}},
			MaskedPaths:   []string{"/proc/kcore", "/sys/firmware"},
			ReadonlyPaths: []string{"/proc/bus", "/proc/sys"},
		},
	}
}
