package machine

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

// minimumEntropy is what a clone needs to differ from its siblings for good.
const minimumEntropy = 64

// Configure gives a restored guest everything that is its own. Entropy comes first: whatever is drawn before is drawn by all clones alike.
func Configure(ctx context.Context, disks *Disks, c *guestapi.Configure) error {
	if err := addEntropy(c.Entropy); err != nil {
		return err
	}
	if err := setClock(c.Clock); err != nil {
		return err
	}
	if err := setIdentity(c.Hostname, c.MachineID); err != nil {
		return err
	}
	if err := AddMemory(c.Memory); err != nil {
		return err
	}
	if err := setMemoryLimits(); err != nil {
		return err
	}
	if err := configureLinks(c.Links); err != nil {
		return err
	}
	if err := setSysctls(c.Sysctls); err != nil {
		return err
	}
	if c.EphemeralLUN == guestapi.ToolsLUN {
		return nil
	}
	return mountEphemeral(ctx, disks, c.EphemeralLUN)
}

// addEntropy credits the bytes to the kernel's generator and makes it forget what it would have said next.
func addEntropy(entropy []byte) error {
	if len(entropy) < minimumEntropy {
		return fmt.Errorf("configure.entropy has %d bytes, at least %d are needed", len(entropy), minimumEntropy)
	}
	random, err := os.OpenFile("/dev/urandom", os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	defer func() { _ = random.Close() }()
	// struct rand_pool_info: bits, bytes, then the bytes in whole words.
	words := (len(entropy) + 3) / 4
	pool := make([]int32, 2+words)
	pool[0], pool[1] = int32(8*len(entropy)), int32(len(entropy))
	copy(unsafe.Slice((*byte)(unsafe.Pointer(&pool[2])), 4*words), entropy)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, random.Fd(), unix.RNDADDENTROPY, uintptr(unsafe.Pointer(&pool[0]))); errno != 0 {
		return fmt.Errorf("add entropy: %w", errno)
	}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, random.Fd(), unix.RNDRESEEDCRNG, 0); errno != 0 {
		return fmt.Errorf("reseed the random number generator: %w", errno)
	}
	return nil
}

func setIdentity(hostname, machineID string) error {
	if id, err := hex.DecodeString(machineID); err != nil || len(id) != 16 {
		return fmt.Errorf("configure.machineID %q is not 32 hexadecimal digits", machineID)
	}
	if err := unix.Sethostname([]byte(hostname)); err != nil {
		return fmt.Errorf("set configure.hostname %q: %w", hostname, err)
	}
	for name, content := range map[string]string{"hostname": hostname, "machine-id": machineID} {
		if err := os.WriteFile(filepath.Join(etcDir, name), []byte(content+"\n"), 0o444); err != nil {
			return err
		}
	}
	return nil
}

// AddMemory plugs in ranges of memory. What is there already, which is the beginning of a range, is no error.
func AddMemory(ranges []guestapi.Range) error {
	for _, r := range ranges {
		if err := addMemory(r); err != nil {
			return fmt.Errorf("plug in %d MiB of memory at %#x: %w", r.Bytes>>20, r.Start, err)
		}
	}
	return nil
}

// addMemory leaves out the blocks that are there: of a range with such ones, the kernel takes nothing.
func addMemory(r guestapi.Range) error {
	for {
		err := os.WriteFile("/sys/module/berth_memory/parameters/add", fmt.Appendf(nil, "%x %x", r.Start, r.Bytes), 0)
		if !errors.Is(err, unix.EEXIST) {
			return err
		}
		if r.Bytes <= guestapi.BlockBytes {
			return nil
		}
		r.Start, r.Bytes = r.Start+guestapi.BlockBytes, r.Bytes-guestapi.BlockBytes
	}
}

func setSysctls(sysctls map[string]string) error {
	for name, value := range sysctls {
		if err := os.WriteFile(sysctlPath(name), []byte(value), 0); err != nil {
			return fmt.Errorf("set sysctl %s to %q: %w", name, value, err)
		}
	}
	return nil
}

// sysctlPath understands both spellings: dots as separators, or slashes, between which a dot is part of a name.
func sysctlPath(name string) string {
	if first := strings.IndexAny(name, "./"); first >= 0 && name[first] == '.' {
		name = strings.NewReplacer(".", "/", "/", ".").Replace(name)
	}
	return filepath.Join("/proc/sys", filepath.Join("/", name))
}

// mountEphemeral mounts the pod's disk. What is on it dies with the pod: nothing waits for it to be safe on the host's disk. The
// kernel does not write empty inode tables, which would fill the host's sparse file.
func mountEphemeral(ctx context.Context, disks *Disks, lun int) error {
	device, err := disks.device(ctx, lun)
	if err != nil {
		return fmt.Errorf("configure.ephemeralLUN: %w", err)
	}
	const options = "nobarrier,noinit_itable,discard,prjquota"
	if err := (mount{device, guestapi.PodDir, "ext4", unix.MS_NOATIME | unix.MS_NODEV | unix.MS_NOSUID, options}).do(); err != nil {
		return fmt.Errorf("the ephemeral disk (LUN %d) is no ext4 file system or is damaged: %w", lun, err)
	}
	return os.MkdirAll(guestapi.VolumesDir, 0o755)
}
