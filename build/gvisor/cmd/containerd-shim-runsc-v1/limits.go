package main

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Soft and hard limits of a user's open files and processes, as on Fargate (Amazon EKS user guide, fargate: "default nofile
// and nproc soft limit is 1024 and the hard limit is 65535").
const (
	softLimit = 1024
	hardLimit = 65535
)

// applyLimits sets them for a container's processes; Kubernetes has no field for them.
func applyLimits(spec *specs.Spec) {
	if spec.Process == nil {
		return
	}
	for _, kind := range []string{"RLIMIT_NOFILE", "RLIMIT_NPROC"} {
		spec.Process.Rlimits = slices.DeleteFunc(spec.Process.Rlimits, func(l specs.POSIXRlimit) bool { return l.Type == kind })
		spec.Process.Rlimits = append(spec.Process.Rlimits, specs.POSIXRlimit{Type: kind, Soft: softLimit, Hard: hardLimit})
	}
}
