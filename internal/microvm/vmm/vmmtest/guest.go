// Package vmmtest tests implementations of the port vmm: a fake of it, a guest that tells what it sees, and the suite that the fake and
// every adapter pass. Tests import it.
package vmmtest

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/berth-run/berth/internal/microvm/vmm"
)

// Guest is what a machine boots.
type Guest struct {
	Kernel, Initrd, Tools string
}

const (
	// GuestVariable names the directory of the guest's files, if it is not bin/guest of this repository (make guest).
	GuestVariable = "BERTH_GUEST"
	// ProgramsVariable names a directory that has the programs which the tests need, so that they build none: where building them takes long.
	ProgramsVariable = "BERTH_TEST_PROGRAMS"
	busybox          = "/bin/busybox"
	moduleFile       = "go.mod"
	vsockPort        = "github.com/berth-run/berth/internal/microvm/vmm/vmmtest/vsockport"
)

// RealGuest makes a guest in dir that a real monitor can boot: Berth's own kernel and modules, but the first process is a script that answers
// the questions of Ask.
func RealGuest(dir string) (Guest, error) {
	from, err := guestDir()
	if err != nil {
		return Guest{}, err
	}
	g := Guest{Kernel: filepath.Join(from, "vmlinux"), Initrd: filepath.Join(dir, "initrd"), Tools: filepath.Join(from, "tools.erofs")}
	initrd, err := os.ReadFile(filepath.Join(from, "initrd"))
	if err != nil {
		return Guest{}, fmt.Errorf("no guest image: make it with make guest: %w", err)
	}
	shell, err := os.ReadFile(busybox)
	if err != nil {
		return Guest{}, fmt.Errorf("install the package busybox-static: %w", err)
	}
	programs := os.Getenv(ProgramsVariable)
	if programs == "" {
		programs = dir
		if out, err := exec.Command("go", "build", "-o", dir, vsockPort).CombinedOutput(); err != nil {
			return Guest{}, fmt.Errorf("build %s: %w: %s", vsockPort, err, out)
		}
	}
	bridge, err := os.ReadFile(filepath.Join(programs, "vsockport"))
	if err != nil {
		return Guest{}, err
	}
	// The kernel unpacks archives one after another, and later files replace earlier ones.
	for len(initrd)%4 != 0 {
		initrd = append(initrd, 0)
	}
	initrd = append(initrd, archive(map[string][]byte{"busybox": shell, "vsockport": bridge, "init": []byte(script)})...)
	return g, os.WriteFile(g.Initrd, initrd, 0o644)
}

// guestDir is GuestVariable or bin/guest beside the module's go.mod.
func guestDir() (string, error) {
	if dir := os.Getenv(GuestVariable); dir != "" {
		return dir, nil
	}
	dir, err := os.Getwd()
	for err == nil {
		if _, missing := os.Stat(filepath.Join(dir, moduleFile)); missing == nil {
			return filepath.Join(dir, "bin", "guest"), nil
		}
		if dir == filepath.Dir(dir) {
			break
		}
		dir = filepath.Dir(dir)
	}
	return "", errors.Join(errors.New("no go.mod in this directory or above"), err)
}

// script is process 1. It loads the modules that there are in whatever order they can be loaded, and answers a line with a line, by vsock or, if the machine
// has none, at a serial port. A serial port that nobody is connected to reads as ended.
const script = `#!/busybox sh
B=/busybox
$B mkdir -p /proc /sys /dev /mnt
$B mount -t proc proc /proc; $B mount -t sysfs sys /sys; $B mount -t devtmpfs dev /dev
for round in 1 2 3 4 5 6; do
  for m in $($B find / -xdev -name '*.ko'); do $B insmod $m 2>/dev/null; done
done
kept=nothing
disk() { for d in /sys/class/scsi_disk/*:$1/device/block/*; do [ -b /dev/${d##*/} ] && echo /dev/${d##*/}; done; }
if ! [ -e /sys/bus/virtio/drivers/vmw_vsock_virtio_transport/virtio* ]; then
  while ! [ -e /dev/vport?p1 ]; do $B usleep 1000; done
  for port in /dev/vport?p1; do exec 3<>$port 4>&3; done
else
  $B mkfifo /questions /answers
  /vsockport /questions /answers &
  exec 3<>/questions 4<>/answers
fi
while true; do
  read -r question a b <&3 || { $B usleep 5000; continue; }
  case $question in
  PING | PLUG) answer=PONG ;; # it plugs nothing in: no test needs more memory
  KEEP) kept=$a answer=ok ;;
  KEPT) answer=$kept ;;
  DISKS) answer=; for d in /sys/class/scsi_disk/*; do [ "$(disk ${d##*:})" ] && answer="$answer ${d##*:}"; done ;;
  READ) answer=$($B dd if=$(disk $a) bs=512 count=1 iflag=direct 2>/dev/null | $B tr -d '\0') ;;
  WRITE) echo "$b" | $B dd of=$(disk $a) bs=512 count=1 conv=sync oflag=direct 2>/dev/null; answer=$? ;;
  PROCESSORS) answer=$($B grep -c ^processor /proc/cpuinfo) ;;
  ADDRESS) answer=$($B cat /sys/class/net/eth0/address) ;;
  BURN) i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done; answer=done ;;
  POWEROFF) $B poweroff -f ;;
  PANIC) echo c > /proc/sysrq-trigger ;;
  *) answer="what? $question" ;;
  esac
  echo "$answer" >&4
done
`

// archive is a cpio archive (newc) as an initramfs has it.
func archive(files map[string][]byte) []byte {
	var out bytes.Buffer
	pad := func() {
		for out.Len()%4 != 0 {
			out.WriteByte(0)
		}
	}
	entry := func(name string, mode uint32, data []byte) {
		fmt.Fprintf(&out, "070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X", 0, mode, 0, 0, 1, 0, len(data), 0, 0, 0, 0, len(name)+1, 0)
		out.WriteString(name + "\x00")
		pad()
		out.Write(data)
		pad()
	}
	for name, data := range files {
		entry(name, 0o100755, data)
	}
	entry("TRAILER!!!", 0, nil)
	return out.Bytes()
}

// Ask connects to a machine's agent port, as one user of it does after another, writes a line and returns the line that is answered.
func Ask(ctx context.Context, m vmm.Machine, question string) (string, error) {
	conn, err := m.Dial(ctx)
	if err != nil {
		return "", err
	}
	defer conn.Close()
	if end, limited := ctx.Deadline(); limited {
		if err := conn.SetDeadline(end); err != nil {
			return "", err
		}
	}
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Now()) })()
	if _, err := fmt.Fprintln(conn, question); err != nil {
		return "", err
	}
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("no answer to %q: %w", question, err)
	}
	return strings.TrimSpace(line), nil
}
