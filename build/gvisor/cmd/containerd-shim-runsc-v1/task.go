package main

import (
	"context"

	sandboxapi "github.com/containerd/containerd/api/runtime/sandbox/v1"
	task "github.com/containerd/containerd/api/runtime/task/v2"
	"github.com/containerd/containerd/v2/pkg/shim"
	"github.com/containerd/containerd/v2/pkg/shutdown"
	"github.com/containerd/containerd/v2/plugins"
	"github.com/containerd/plugin"
	"github.com/containerd/plugin/registry"
	"github.com/containerd/ttrpc"
	"google.golang.org/protobuf/types/known/emptypb"
	gvisor "gvisor.dev/gvisor/pkg/shim/v1"
)

// taskService is gVisor's, less one fault: while the pod has other containers, Shutdown answers with neither a message
// nor an error, which ttrpc cannot encode; containerd then waits two minutes for every container that is deleted.
type taskService struct{ task.TaskService }

// Shutdown ends the shim if no container is left.
func (s taskService) Shutdown(ctx context.Context, r *task.ShutdownRequest) (*emptypb.Empty, error) {
	resp, err := s.TaskService.Shutdown(ctx, r)
	if resp == nil && err == nil {
		resp = &emptypb.Empty{}
	}
	return resp, err
}

// RegisterTTRPC serves the task service.
func (s taskService) RegisterTTRPC(server *ttrpc.Server) error { //nolint:unparam // the interface has an error
	task.RegisterTaskService(server, s)
	if sandbox, ok := s.TaskService.(sandboxapi.TTRPCSandboxService); ok {
		sandboxapi.RegisterTTRPCSandboxService(server, sandbox)
	}
	return nil
}

func init() {
	registry.Register(&plugin.Registration{
		Type:     plugins.TTRPCPlugin,
		ID:       "task",
		Requires: []plugin.Type{plugins.EventPlugin, plugins.InternalPlugin},
		InitFn: func(ic *plugin.InitContext) (any, error) {
			publisher, err := ic.GetByID(plugins.EventPlugin, "publisher")
			if err != nil {
				return nil, err
			}
			down, err := ic.GetByID(plugins.InternalPlugin, "shutdown")
			if err != nil {
				return nil, err
			}
			service, err := gvisor.NewShimRedirector(ic.Context, publisher.(shim.Publisher), down.(shutdown.Service))
			if err != nil {
				return nil, err
			}
			installDirect()
			return taskService{service.(task.TaskService)}, nil
		},
	})
}
