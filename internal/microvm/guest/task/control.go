package task

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/containerd/cgroups/v3/cgroup2"
	api "github.com/containerd/containerd/api/runtime/task/v3"
	taskt "github.com/containerd/containerd/api/types/task"
	"github.com/containerd/errdefs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/emptypb"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

// Pids lists the processes of a container.
func (s *Service) Pids(_ context.Context, r *api.PidsRequest) (*api.PidsResponse, error) {
	group, err := s.group(r.ID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	pids, err := group.Procs(true)
	if err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("list processes of container %s: %w", r.ID, err))
	}
	answer := &api.PidsResponse{}
	for _, pid := range pids {
		answer.Processes = append(answer.Processes, &taskt.ProcessInfo{Pid: uint32(pid)})
	}
	return answer, nil
}

// Stats is not served: what is asked again and again is asked with Measure, which costs an emulated processor a tenth of it.
func (s *Service) Stats(context.Context, *api.StatsRequest) (*api.StatsResponse, error) {
	return nil, errgrpc.ToGRPCf(errdefs.ErrNotImplemented, "statistics: the host reads the control group's files")
}

// measureLimit bounds one file of a control group, in bytes.
const measureLimit = 16 << 10

// Measure reads files of a container's control group.
func (s *Service) Measure(which *guestapi.Measure) ([]string, error) {
	c, err := s.running(which.ID)
	if err != nil {
		return nil, err
	}
	dir, err := unix.Open(filepath.Join(cgroupMount, c.cgroup), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the control group of container %s: %w", which.ID, err)
	}
	defer func() { _ = unix.Close(dir) }()
	buffer, out := make([]byte, measureLimit), make([]string, len(which.Files))
	for i, name := range which.Files {
		n, err := readAt(dir, name, buffer)
		if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EOPNOTSUPP) {
			return nil, fmt.Errorf("read %s of container %s: %w", name, which.ID, err)
		}
		out[i] = string(buffer[:n])
	}
	return out, nil
}

// readAt reads a small file in a directory. It does less than package os, which would have the kernel tell when the file changes.
func readAt(dir int, name string, buffer []byte) (int, error) {
	fd, err := unix.Openat(dir, filepath.Base(name), unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer func() { _ = unix.Close(fd) }()
	for n := 0; ; {
		more, err := unix.Read(fd, buffer[n:])
		if more <= 0 || err != nil {
			return n, err
		}
		n += more
	}
}

// Update changes the limits of a running container: its resources are the OCI runtime configuration's.
func (s *Service) Update(ctx context.Context, r *api.UpdateTaskRequest) (*emptypb.Empty, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	if !json.Valid(r.GetResources().GetValue()) {
		return nil, errgrpc.ToGRPCf(errdefs.ErrInvalidArgument, "update container %s: resources are no JSON of linux.resources", r.ID)
	}
	if err := c.update(ctx, r.Resources.Value); err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("update container %s: %w", r.ID, err))
	}
	return &emptypb.Empty{}, nil
}

// Pause stops every process of the container where it is.
func (s *Service) Pause(_ context.Context, r *api.PauseRequest) (*emptypb.Empty, error) {
	return s.freeze(r.ID, true)
}

// Resume lets them go on.
func (s *Service) Resume(_ context.Context, r *api.ResumeRequest) (*emptypb.Empty, error) {
	return s.freeze(r.ID, false)
}

func (s *Service) freeze(id string, frozen bool) (*emptypb.Empty, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	group, err := s.group(id)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	change := group.Thaw
	if frozen {
		change = group.Freeze
	}
	if err := change(); err != nil {
		return nil, errgrpc.ToGRPC(fmt.Errorf("pause or resume container %s: %w", id, err))
	}
	c.setPaused(frozen)
	return &emptypb.Empty{}, nil
}

// group is the control group of a container that runs.
func (s *Service) group(id string) (*cgroup2.Manager, error) {
	c, err := s.running(id)
	if err != nil {
		return nil, err
	}
	return cgroup2.Load(c.cgroup)
}

func (s *Service) running(id string) (*container, error) {
	c, err := s.container(id)
	if err != nil {
		return nil, err
	}
	if pid, _ := c.init.running(); pid == 0 {
		return nil, fmt.Errorf("container %s is not running: %w", id, errdefs.ErrFailedPrecondition)
	}
	return c, nil
}

// ResizePty changes the size of a process's terminal.
func (s *Service) ResizePty(_ context.Context, r *api.ResizePtyRequest) (*emptypb.Empty, error) {
	_, p, err := s.process(r.ID, r.ExecID)
	if err == nil {
		err = p.streams.resize(uint16(r.Width), uint16(r.Height))
	}
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	return &emptypb.Empty{}, nil
}

// CloseIO closes a process's stdin.
func (s *Service) CloseIO(_ context.Context, r *api.CloseIORequest) (*emptypb.Empty, error) {
	_, p, err := s.process(r.ID, r.ExecID)
	if err != nil {
		return nil, errgrpc.ToGRPC(err)
	}
	if r.Stdin {
		p.streams.closeInput()
	}
	return &emptypb.Empty{}, nil
}

// Connect tells the ids of processes: this agent's, and the container's.
func (s *Service) Connect(_ context.Context, r *api.ConnectRequest) (*api.ConnectResponse, error) {
	answer := &api.ConnectResponse{ShimPid: 1}
	if c, err := s.container(r.ID); err == nil {
		pid, _ := c.init.running()
		answer.TaskPid = uint32(pid)
	}
	return answer, nil
}

// Checkpoint is not possible.
func (s *Service) Checkpoint(context.Context, *api.CheckpointTaskRequest) (*emptypb.Empty, error) {
	return nil, errgrpc.ToGRPCf(errdefs.ErrNotImplemented, "checkpoints of a container in a microVM")
}

// Shutdown does nothing: the host ends the machine.
func (s *Service) Shutdown(context.Context, *api.ShutdownRequest) (*emptypb.Empty, error) {
	return &emptypb.Empty{}, nil
}

func pausedStatus(status taskt.Status) taskt.Status {
	if status == taskt.Status_RUNNING {
		return taskt.Status_PAUSED
	}
	return status
}
