package main

import (
	"fmt"
	"runtime"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/specutils"
)

// Annotations that say the pod's size (internal/node/runtime.go sets them): bytes, and thousandths of a core.
const (
	annotationMemory = "berth.run/size-memory"
	annotationDisk   = "berth.run/size-ephemeral-storage"
	annotationCPU    = "berth.run/size-cpu-milli"
)

// cpuPeriod in microseconds, the kernel's default.
const cpuPeriod = 100_000

// applySize makes the sandbox as large as the pod: its kernel tells programs that much memory and that many CPUs (two at
// least: gVisor shows no fewer), and a container's writable layer is no larger than the pod's disk. The host's cgroup of
// the pod enforces memory and CPU; this is so that programs know. A pod without the annotations is left as it is.
func applySize(conf *config.Config, spec *specs.Spec) error {
	memory, err := number(spec, annotationMemory)
	if err != nil {
		return err
	}
	disk, err := number(spec, annotationDisk)
	if err != nil {
		return err
	}
	milli, err := number(spec, annotationCPU)
	if err != nil {
		return err
	}
	if disk > 0 && conf.Overlay2.Enabled() {
		if err := conf.Overlay2.Set(fmt.Sprintf("root:%s,size=%d", conf.Overlay2.RootOverlayMedium(), disk)); err != nil {
			return fmt.Errorf("limiting the disk: %w", err)
		}
	}
	if specutils.SpecContainerType(spec) != specutils.ContainerTypeSandbox {
		return nil
	}
	if spec.Linux == nil {
		spec.Linux = &specs.Linux{}
	}
	if spec.Linux.Resources == nil {
		spec.Linux.Resources = &specs.LinuxResources{}
	}
	if memory > 0 {
		spec.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &memory}
	}
	// The sandbox's own cgroup, below the pod's, gets whole CPUs; with as many as the machine has it needs no quota.
	if cpus := max((milli+999)/1000, 2); milli > 0 && cpus < int64(runtime.NumCPU()) {
		quota, period := cpus*cpuPeriod, uint64(cpuPeriod)
		spec.Linux.Resources.CPU = &specs.LinuxCPU{Quota: &quota, Period: &period}
		conf.CPUNumFromQuota = true
	}
	return nil
}

func number(spec *specs.Spec, annotation string) (int64, error) {
	text, ok := spec.Annotations[annotation]
	if !ok {
		return 0, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 {
		return 0, fmt.Errorf("annotation %s is %q, not a number of zero or more", annotation, text)
	}
	return n, nil
}
