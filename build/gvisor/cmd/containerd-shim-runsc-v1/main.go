// Command containerd-shim-runsc-v1 is gVisor's containerd shim with two things changed:
//
//   - Shutdown is answered with an empty message rather than none (task.go);
//   - most commands of runsc are carried out here rather than executed (direct.go).
//
// Everything else is gVisor's. It is started by containerd-shim-runsc-start.
package main

import (
	"context"
	"runtime/debug"

	"github.com/containerd/containerd/v2/pkg/shim"
	gvisor "gvisor.dev/gvisor/pkg/shim/v1"
)

const runtimeName = "io.containerd.runsc.v1"

// gcPercent keeps the shim, of which there is one per pod, small: it is idle nearly always. It is not set by the environment
// (GOGC), because runsc would inherit it and take a megabyte more for each of its processes.
const gcPercent = 25

func main() {
	debug.SetGCPercent(gcPercent)
	shim.Run(context.Background(), gvisor.NewShimManager(runtimeName))
}
