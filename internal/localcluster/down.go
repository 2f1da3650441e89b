package localcluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	remote "k8s.io/cri-client/pkg"

	"github.com/berth-run/berth/internal/hostagent"
	"github.com/berth-run/berth/internal/layout"
)

// downLimit is how long the supervisor may take to stop everything.
const downLimit = 2 * time.Minute

// sandboxLimit is how long the pods' sandboxes may take to end.
const sandboxLimit = 60 * time.Second

// Down stops the cluster and leaves nothing of it behind on the machine but its state and logs, and with purge not those
// either. It works from whatever state a crash left.
func Down(ctx context.Context, dirs layout.Dirs, out io.Writer, purge bool) error {
	if err := needRoot(); err != nil {
		return err
	}
	var failed []error
	keep := func(what string, err error) {
		if err != nil {
			failed = append(failed, fmt.Errorf("%s: %w", what, err))
		}
	}
	// The supervisor stops the agent, then the pods, then the rest.
	if pid := supervisorPID(dirs); pid != 0 {
		fmt.Fprintln(out, "Stopping the pods and the cluster ...")
		keep("stop the supervisor", endProcess(pid, downLimit))
	}
	keep("stop leftover programs", stopLeftovers(dirs, true))
	keep("clean the machine", hostagent.RemoveAll(ctx, dirs))
	remove := []string{dirs.Run}
	if purge {
		remove = append(remove, dirs.State, dirs.Log)
	}
	if len(failed) == 0 {
		for _, d := range remove {
			keep("remove "+d, os.RemoveAll(d))
		}
	}
	return errors.Join(failed...)
}

func supervisorPID(dirs layout.Dirs) int {
	data, err := os.ReadFile(pidPath(dirs))
	if err != nil {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(data)))
	if err != nil {
		return 0
	}
	// A process that has the id but is not the supervisor is somebody else's.
	command, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "cmdline"))
	if err != nil || !strings.Contains(string(command), "supervise") {
		return 0
	}
	return pid
}

// stopSandboxes ends the agent and the node processes, so that nobody starts a pod again, and then every sandbox.
func stopSandboxes(ctx context.Context, dirs layout.Dirs) error {
	if _, err := os.Stat(dirs.ContainerdSocket()); err != nil {
		return nil
	}
	hostagent.StopNodes(dirs)
	ctx, cancel := context.WithTimeout(ctx, sandboxLimit)
	defer cancel()
	cri, err := remote.NewRemoteRuntimeServiceBuilder().WithEndpoint("unix://" + dirs.ContainerdSocket()).WithConnectionTimeout(sandboxLimit).WithTracerProvider(nil).Build(ctx)
	if err != nil {
		return fmt.Errorf("connect to containerd: %w", err)
	}
	defer cri.Close(ctx)
	return hostagent.StopSandboxes(ctx, cri)
}
