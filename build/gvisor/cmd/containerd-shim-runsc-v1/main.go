// Command containerd-shim-runsc-v1 is gVisor's containerd shim with two things mended:
//
//   - a machine on which oom_score_adj cannot be lowered (no CAP_SYS_RESOURCE) is tolerated; gVisor's own shim kills the
//     new shim process there ("failed to set OOM Score on shim");
//   - Shutdown is answered with an empty message rather than none (task.go).
//
// Everything else is gVisor's.
package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"runtime/debug"

	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/shim"
	"golang.org/x/sys/unix"
	gvisor "gvisor.dev/gvisor/pkg/shim/v1"
)

const (
	runtimeName = "io.containerd.runsc.v1"
	// sandboxAnnotation groups the containers of a pod into one shim.
	sandboxAnnotation = "io.kubernetes.cri.sandbox-id"
)

// gcPercent keeps the shim, of which there is one per pod, small: it is idle nearly always. It is not set by the environment
// (GOGC), because runsc would inherit it and take a megabyte more for each of its processes.
const gcPercent = 25

func main() {
	debug.SetGCPercent(gcPercent)
	shim.Run(context.Background(), manager{gvisor.NewShimManager(runtimeName)})
}

// manager is gVisor's but for Start.
type manager struct{ shim.Manager }

// Start starts the pod's shim, or finds the one that runs already.
func (m manager) Start(ctx context.Context, id string, opts shim.StartOpts) (shim.BootstrapParams, error) {
	group, err := sandboxOf(id)
	if err != nil {
		return shim.BootstrapParams{}, err
	}
	address, err := shim.SocketAddress(ctx, opts.Address, group, opts.Debug)
	if err != nil {
		return shim.BootstrapParams{}, fmt.Errorf("find the shim's address: %w", err)
	}
	params := shim.BootstrapParams{Version: 2, Address: address, Protocol: "ttrpc"}
	socket, err := shim.NewSocket(address)
	if err != nil {
		if !shim.SocketEaddrinuse(err) {
			return shim.BootstrapParams{}, fmt.Errorf("make the shim's socket: %w", err)
		}
		if shim.CanConnect(address) {
			return params, writeAddress(address)
		}
		if err := shim.RemoveSocket(address); err != nil {
			return shim.BootstrapParams{}, fmt.Errorf("remove a dead shim's socket: %w", err)
		}
		if socket, err = shim.NewSocket(address); err != nil {
			return shim.BootstrapParams{}, fmt.Errorf("make the shim's socket again: %w", err)
		}
	}
	// The shim inherits the socket: closing ours must not remove it from the file system.
	socket.SetUnlinkOnClose(false)
	defer socket.Close()
	file, err := socket.File()
	if err != nil {
		return shim.BootstrapParams{}, fmt.Errorf("get the shim's socket: %w", err)
	}
	defer file.Close()
	if err := writeAddress(address); err != nil {
		return shim.BootstrapParams{}, err
	}
	if err := launch(ctx, id, opts, file); err != nil {
		_ = shim.RemoveSocket(address)
		return shim.BootstrapParams{}, err
	}
	return params, nil
}

func launch(ctx context.Context, id string, opts shim.StartOpts, socket *os.File) error {
	namespace, err := namespaces.NamespaceRequired(ctx)
	if err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the shim's own program: %w", err)
	}
	args := []string{"-namespace", namespace, "-address", opts.Address, "-id", id}
	if opts.Debug {
		args = append(args, "-debug")
	}
	cmd := exec.Command(self, args...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2")
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.ExtraFiles = []*os.File{socket}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the shim: %w", err)
	}
	go cmd.Wait()
	if err := shim.WritePidFile("shim.pid", cmd.Process.Pid); err != nil {
		_ = cmd.Process.Kill()
		return fmt.Errorf("write the shim's process id: %w", err)
	}
	return nil
}

// sandboxOf reads, from the bundle that containerd made in the working directory, which pod's shim a container belongs to.
func sandboxOf(id string) (string, error) {
	data, err := os.ReadFile("config.json")
	if err != nil {
		return "", fmt.Errorf("read the container's specification: %w", err)
	}
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.Unmarshal(data, &spec); err != nil {
		return "", fmt.Errorf("the container's specification is not valid: %w", err)
	}
	if group := spec.Annotations[sandboxAnnotation]; group != "" {
		return group, nil
	}
	return id, nil
}

func writeAddress(address string) error {
	if err := os.WriteFile("address", []byte(address), 0o644); err != nil {
		return fmt.Errorf("write the shim's address: %w", err)
	}
	return nil
}
