// Command containerd-shim-start is what containerd executes as a shim, by the name of containerd-shim-NAME-start. It carries out
// "start" by itself and executes containerd-shim-NAME-v1, which lies beside it, for everything else. containerd starts a shim
// program once for each container, only to learn its address; the shim with gVisor in it takes about 70 ms to get to its first
// line, this one about 5.
//
// It is also here that a machine on which oom_score_adj cannot be lowered (no CAP_SYS_RESOURCE) is tolerated: gVisor's own
// start kills the new shim there ("failed to set OOM Score on shim").
package main

import (
	"fmt"
	"os"
	"path/filepath"

	"github.com/berth-run/berth/internal/shimstart"
)

func main() {
	if err := shimstart.Run(os.Args[0], os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintf(os.Stderr, "%s: %v\n", filepath.Base(os.Args[0]), err)
		os.Exit(1)
	}
}
