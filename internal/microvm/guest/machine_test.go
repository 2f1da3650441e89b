package guest_test

import (
	"archive/tar"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/berth-run/berth/internal/microvm/guestapi"
)

func TestConfiguredMachine(t *testing.T) {
	m := pod(t)
	image := m.busybox()
	report := m.sh("report", "ip addr show eth0; ip route; cat /proc/sys/net/ipv4/ip_unprivileged_port_start; grep -E 'Max (open files|processes)' /proc/self/limits; cat /proc/sys/kernel/threads-max; grep MemTotal /proc/meminfo; date +%s", image)
	for _, want := range []string{"mtu 1450", "10.1.2.3/32", "default via 169.254.1.1 dev eth0", "\n0\n", "unlimited            unlimited            processes", "65535                1048576              files", "\n4194304\n"} {
		if !strings.Contains(report, want) {
			t.Errorf("the machine lacks %q:\n%s", want, report)
		}
	}
	var kilobytes, seconds int64
	tail := report[strings.Index(report, "MemTotal:"):]
	if _, err := fmt.Sscanf(tail, "MemTotal: %d kB\n%d", &kilobytes, &seconds); err != nil {
		t.Fatalf("%v in %q", err, tail)
	}
	if kilobytes < 400<<10 {
		t.Errorf("%d kB of memory: what was plugged in is not there", kilobytes)
	}
	if off := time.Since(time.Unix(seconds, 0)); off < -2*time.Second || off > 5*time.Second {
		t.Errorf("the clock is off by %v", off)
	}
	if err := m.do(guestapi.Request{Op: guestapi.OpMemory, Memory: []guestapi.Range{{Start: 512 << 20, Bytes: 128 << 20}}}); err != nil {
		t.Error(err)
	}
	if err := m.do(guestapi.Request{Op: "dance"}); err == nil || !strings.Contains(err.Error(), "dance") {
		t.Errorf("an unknown request is answered with %v", err)
	}
}

// TestClonesDiffer: two machines of one template have nothing in common that must be unique.
func TestClonesDiffer(t *testing.T) {
	const script = "head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/boot_id; cat /proc/sys/kernel/random/uuid; ip link show eth0 | grep ether; cat /host/machine-id"
	identity := func() []string {
		m := pod(t)
		image := m.busybox()
		m.start("id", shell("id", script, func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Type: "bind", Source: "/run/etc", Destination: "/host", Options: []string{"rbind", "ro"}})
		}), image)
		if status := m.wait("id", ""); status != 0 {
			t.Fatal(m.output("id", "", 2))
		}
		return strings.Split(strings.TrimSpace(m.output("id", "", 1)), "\n")
	}
	one, other := identity(), identity()
	if len(one) != 5 || len(other) != 5 {
		t.Fatalf("%q and %q", one, other)
	}
	for i, what := range []string{"random bytes", "boot id", "random uuid", "MAC address", "machine id"} {
		if one[i] == other[i] {
			t.Errorf("%s of both: %s", what, one[i])
		}
	}
}

// TestClock: what is much too much or too little is corrected at once, the rest little by little and never back in time.
func TestClock(t *testing.T) {
	m := pod(t)
	var doubt time.Duration // the answers may have taken so long
	correct := func(add time.Duration) (ahead time.Duration) {
		t.Helper()
		asked := time.Now()
		s := m.send(guestapi.Request{Op: guestapi.OpClock, Clock: &guestapi.Correction{Add: add.Nanoseconds()}})
		defer s.Close()
		response, err := s.response()
		if err != nil {
			t.Fatal(err)
		}
		doubt += time.Since(asked)
		return time.Unix(0, response.UnixNano).Sub(asked.Round(0))
	}
	for _, step := range []time.Duration{time.Hour, -time.Hour, -90*time.Minute - 700*time.Millisecond, 90*time.Minute + 700*time.Millisecond} {
		doubt = 0
		before := correct(step)
		if after := correct(0); (after - before - step).Abs() > doubt {
			t.Errorf("to add %v changed the clock by %v", step, after-before)
		}
	}
	const little = -400 * time.Millisecond
	doubt = 0
	before := correct(little)
	if at := correct(0); at < before+little/2-doubt {
		t.Errorf("a small correction was made at once: %v, before %v", at, before)
	}
	for deadline := time.Now().Add(answerTimeout); correct(0) > before+little/2; time.Sleep(time.Second) {
		if time.Now().After(deadline) {
			t.Fatalf("half of %v was not corrected: the clock is %v ahead, it was %v", little, correct(0), before)
		}
	}
}

// TestUsage: what a pod writes is counted for the container, or the volume, that it is in.
func TestUsage(t *testing.T) {
	m := pod(t)
	image := m.busybox()
	memory, onDisk := guestapi.MemoryDir+"/memory", guestapi.VolumesDir+"/disk"
	for _, mount := range []guestapi.Mount{{Target: memory, Type: "tmpfs", Options: []string{"size=8m"}, Mode: 0o1777}, {Target: onDisk, Mode: 0o777}} {
		if err := m.do(guestapi.Request{Op: guestapi.OpMount, Mount: &mount}); err != nil {
			t.Fatal(err)
		}
	}
	usage := func() *guestapi.Usage {
		s := m.send(guestapi.Request{Op: guestapi.OpUsage})
		defer s.Close()
		response, err := s.response()
		if err != nil {
			t.Fatal(err)
		}
		return response.Usage
	}
	const mib = 1 << 20
	script := `write() { dd if=/dev/zero of=$1 bs=1M count=$2 2>/dev/null; }
write /disk/x 30; mkdir -p /disk/a/b; write /disk/a/b/y 10; write /own 20; write /memory/m 5; chmod 700 /bin; echo done; exec sleep 1000`
	m.start("main", shell("main", script, func(s *specs.Spec) {
		for name, source := range map[string]string{"/memory": memory, "/disk": onDisk} {
			s.Mounts = append(s.Mounts, specs.Mount{Type: "bind", Source: source, Destination: name, Options: []string{"rbind", "rw"}})
		}
	}), image)
	m.stdio("main", "", 1).line(t)
	got := usage()
	for what, c := range map[string]struct {
		space  guestapi.Space
		mib    uint64
		inodes uint64
	}{
		"the volume":           {got.Volumes["disk"], 40, 5},
		"the volume in memory": {got.Volumes["memory"], 5, 2},
		"the container":        {got.Containers["main"], 20, 0},
	} {
		if used := c.space.Used / mib; used != c.mib || c.inodes > 0 && c.space.InodesUsed != c.inodes {
			t.Errorf("%s: %+v, want %d MiB and %d inodes", what, c.space, c.mib, c.inodes)
		}
	}
	if got.Volumes["memory"].Capacity != 8*mib || got.Disk.Used < 60*mib || got.Disk.Capacity < 1800*mib {
		t.Errorf("the disk is %+v, the volume in memory %+v", got.Disk, got.Volumes["memory"])
	}
	m.addExec("less", false, "sh", "-c", "rm -r /disk/x /disk/a")
	if status := m.wait("main", "less"); status != 0 {
		t.Fatal(m.output("main", "less", 2))
	}
	if got := usage().Volumes["disk"]; got.Used > mib || got.InodesUsed != 1 {
		t.Errorf("after its files are gone, the volume has %+v", got)
	}
}

// volume is a directory as the kubelet's AtomicWriter keeps it.
func (m *vm) putVolume(target, version string, content map[string]string) error {
	m.t.Helper()
	s := m.send(guestapi.Request{Op: guestapi.OpPut, Put: &guestapi.Put{Target: target, Atomic: true}})
	archive := tar.NewWriter(s)
	add := func(header tar.Header, data string) {
		header.Size = int64(len(data))
		if err := archive.WriteHeader(&header); err != nil {
			m.t.Fatal(err)
		}
		if _, err := io.WriteString(archive, data); err != nil {
			m.t.Fatal(err)
		}
	}
	add(tar.Header{Name: "..data", Typeflag: tar.TypeSymlink, Linkname: ".." + version}, "")
	for name, data := range content {
		add(tar.Header{Name: name, Typeflag: tar.TypeSymlink, Linkname: "..data/" + name}, "")
		add(tar.Header{Name: ".." + version + "/" + name, Typeflag: tar.TypeReg, Mode: 0o644, Uid: 1000, Gid: 2000}, data)
	}
	if err := archive.Close(); err != nil {
		m.t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		m.t.Fatal(err)
	}
	_, err := s.response()
	return err
}

func TestFilesChangeInRunningContainers(t *testing.T) {
	m := pod(t)
	image := m.busybox()
	config := guestapi.FilesDir + "/config"
	if err := m.putVolume(config, "1", map[string]string{"a": "first", "gone": "x"}); err != nil {
		t.Fatal(err)
	}
	m.start("main", shell("main", forever, func(s *specs.Spec) {
		s.Mounts = append(s.Mounts, specs.Mount{Type: "bind", Source: config, Destination: "/config", Options: []string{"rbind", "ro"}})
	}), image)
	m.stdio("main", "", 1).line(t)
	look := func(exec string) string {
		m.addExec(exec, false, "sh", "-c", "cat /config/a; ls /config; ls -ln /config/..data/a; echo; (touch /config/x) 2>&1")
		return m.output("main", exec, 1)
	}
	if got := look("one"); !strings.HasPrefix(got, "firsta\ngone\n-rw-r--r--") || !strings.Contains(got, "1000     2000") || !strings.Contains(got, "Read-only") {
		t.Errorf("the container sees %q", got)
	}
	if err := m.putVolume(config, "2", map[string]string{"a": "second"}); err != nil {
		t.Fatal(err)
	}
	if got := look("two"); !strings.HasPrefix(got, "seconda\n-rw-r--r--") {
		t.Errorf("after the change the container sees %q", got)
	}
	s := m.send(guestapi.Request{Op: guestapi.OpGet, Get: &guestapi.Get{Path: config + "/..data/a", Limit: 3}})
	response, err := s.response()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(s); err != nil || response.Size != 3 || string(got) != "sec" {
		t.Errorf("get: %d, %q, %v", response.Size, got, err)
	}
	if err := m.putVolume("/etc/evil", "1", nil); err == nil {
		t.Error("files were put outside of their directory")
	}
}

func TestVolumes(t *testing.T) {
	m := pod(t)
	image := m.busybox()
	memory, disk := guestapi.MountsDir+"/memory", guestapi.VolumesDir+"/disk"
	for range 2 {
		for _, mount := range []guestapi.Mount{
			{Target: memory, Type: "tmpfs", Options: []string{"size=1m", "noexec"}, Mode: 0o1777},
			{Target: disk, Mode: 0o2770, UID: 5, GID: 1234},
		} {
			if err := m.do(guestapi.Request{Op: guestapi.OpMount, Mount: &mount}); err != nil {
				t.Fatal(err)
			}
		}
	}
	script := "ls -ldn /disk; dd if=/dev/zero of=/memory/x bs=1M count=2; ls -ln /memory; echo data > /disk/x; grep memory /proc/mounts"
	m.start("main", shell("main", script, func(s *specs.Spec) {
		for name, source := range map[string]string{"/memory": memory, "/disk": disk} {
			s.Mounts = append(s.Mounts, specs.Mount{Type: "bind", Source: source, Destination: name, Options: []string{"rbind", "rw"}})
		}
		s.Process.Capabilities = nil
		s.Process.User.AdditionalGids = []uint32{1234}
	}), image)
	if status := m.wait("main", ""); status != 0 {
		t.Fatalf("status %d: %s", status, m.output("main", "", 2))
	}
	got := m.output("main", "", 1)
	for _, want := range []string{"drwxrws---    2 5        1234", "1048576", "noexec"} {
		if !strings.Contains(got, want) {
			t.Errorf("volumes lack %q: %s", want, got)
		}
	}
	if err := m.do(guestapi.Request{Op: guestapi.OpMount, Mount: &guestapi.Mount{Target: "/usr"}}); err == nil {
		t.Error("a mount outside of the volumes' directories")
	}
	if err := m.do(guestapi.Request{Op: guestapi.OpMount, Mount: &guestapi.Mount{Target: guestapi.MountsDir + "/nfs", Type: "nfs4", Source: "127.0.0.1:/"}}); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Errorf("an NFS server that is not there: %v", err)
	}
}

// TestImageVolumes: a volume that the image declares has what the image has there, and can be written to though the root file system cannot.
func TestImageVolumes(t *testing.T) {
	m := pod(t)
	const script = "touch /bin/new /made/here/new && ls /bin/cat /bin/new /made/here; ! touch /etc/new"
	m.start("main", shell("main", script, func(s *specs.Spec) {
		for _, dir := range []string{"/bin", "/made/here"} {
			s.Mounts = append(s.Mounts, specs.Mount{Type: "bind", Source: guestapi.ImageVolume, Destination: dir, Options: []string{"rbind", "rprivate", "rw"}})
		}
		s.Root.Readonly = true
	}), m.busybox())
	if status := m.wait("main", ""); status != 0 {
		t.Fatalf("status %d: %s", status, m.output("main", "", 2))
	}
	if got, want := m.output("main", "", 1), "/bin/cat\n/bin/new\n\n/made/here:\nnew\n"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// TestPartsOfVolumes: what a container gets of a volume is a directory or file of that volume, whatever links another container left there; it goes
// with the container, and the volume stays.
func TestPartsOfVolumes(t *testing.T) {
	m := pod(t)
	image := m.busybox()
	volume := guestapi.VolumesDir + "/shared"
	if err := m.do(guestapi.Request{Op: guestapi.OpMount, Mount: &guestapi.Mount{Target: volume, Mode: 0o2770, GID: 1234}}); err != nil {
		t.Fatal(err)
	}
	uses := func(source string) func(*specs.Spec) {
		return func(s *specs.Spec) {
			s.Mounts = append(s.Mounts, specs.Mount{Type: "bind", Source: source, Destination: "/v", Options: []string{"rbind", "rw"}})
		}
	}
	in := func(id, script, source string) string {
		t.Helper()
		m.start(id, shell(id, script, uses(source)), image)
		status := m.wait(id, "")
		said := m.output(id, "", 1) + m.output(id, "", 2)
		if status != 0 {
			t.Fatalf("%s: status %d: %s", script, status, said)
		}
		if _, err := m.tasks.Delete(t.Context(), &api.DeleteRequest{ID: id}); err != nil {
			t.Fatal(err)
		}
		return said
	}
	part := func(container, path string) (string, error) {
		target := guestapi.PartsDir + "/" + container + "/0"
		return target, m.do(guestapi.Request{Op: guestapi.OpMount, Mount: &guestapi.Mount{Target: target, Type: "bind", Source: volume, Part: path}})
	}
	in("first", "echo text > /v/file; mkdir /v/real; ln -s real /v/inner; ln -s / /v/root; ln -s ../../.. /v/up; ln -s /proc/self/root /v/proc", volume)
	for _, tc := range []struct{ path, script, want string }{
		{"new/er", "ls -ldn /v; echo made > /v/x", "drwxrws---    2 0        1234"},
		{"file", "cat /v", "text"},
		{"inner", "echo inside > /v/y", ""},
	} {
		id := strings.ReplaceAll(tc.path, "/", "-")
		source, err := part(id, tc.path)
		if err != nil {
			t.Fatalf("%s: %v", tc.path, err)
		}
		if got := in(id, tc.script, source); !strings.Contains(got, tc.want) {
			t.Errorf("part %s: %s, want %q", tc.path, got, tc.want)
		}
	}
	for _, path := range []string{"root", "root/etc", "up", "proc", "../other", "/etc"} {
		if _, err := part("bad", path); err == nil {
			t.Errorf("part %q is mounted", path)
		}
	}
	if got := in("last", "cat /v/new/er/x /v/real/y", volume); got != "made\ninside\n" {
		t.Errorf("the volume holds %q", got)
	}
}

// TestKernelLoadsModules: a privileged container asks for what is in no module that the template has loaded.
func TestKernelLoadsModules(t *testing.T) {
	m := pod(t)
	image := m.busybox()
	const script = `ip link add name br0 type bridge && ip link show br0 && mount -t tmpfs x /tmp &&
		: <> /dev/loop-control && : <> /dev/fuse && : <> /dev/tun && grep -E 'fuse$' /proc/filesystems`
	m.start("main", shell("main", script, func(s *specs.Spec) {
		all := []string{"CAP_NET_ADMIN", "CAP_SYS_ADMIN", "CAP_MKNOD"}
		s.Process.Capabilities = &specs.LinuxCapabilities{Bounding: all, Effective: all, Permitted: all}
		s.Linux.Resources.Devices = []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}
		mode := os.FileMode(0o666)
		for path, minor := range map[string]int64{"/dev/loop-control": 237, "/dev/fuse": 229, "/dev/tun": 200} {
			s.Linux.Devices = append(s.Linux.Devices, specs.LinuxDevice{Path: path, Type: "c", Major: 10, Minor: minor, FileMode: &mode})
		}
	}), image)
	if status := m.wait("main", ""); status != 0 {
		t.Errorf("status %d: %s", status, m.output("main", "", 2))
	}
}

// event reads the next event.
func (s *stream) event(t testing.TB) guestapi.Event {
	t.Helper()
	var event guestapi.Event
	if err := json.Unmarshal([]byte(s.line(t)), &event); err != nil {
		t.Fatal(err)
	}
	return event
}

const devour = "exec tail /dev/zero"

func TestMemoryExhausted(t *testing.T) {
	m := pod(t)
	image := m.busybox()
	events := m.open(guestapi.Request{Op: guestapi.OpEvents})

	m.start("limited", shell("limited", devour, func(s *specs.Spec) {
		limit := int64(32 << 20)
		s.Linux.Resources.Memory = &specs.LinuxMemory{Limit: &limit}
	}), image)
	if status := m.wait("limited", ""); status != 137 {
		t.Errorf("status %d: %s", status, m.output("limited", "", 2))
	}
	if got, want := events.event(t), (guestapi.Event{OOM: "limited"}); got != want {
		t.Errorf("event %+v, want %+v", got, want)
	}

	m.start("unlimited", shell("unlimited", devour, nil), image)
	if status := m.wait("unlimited", ""); status != 137 {
		t.Errorf("status %d: %s", status, m.output("unlimited", "", 2))
	}
	for _, want := range []guestapi.Event{{GuestOOM: true}, {OOM: "unlimited"}} {
		if got := events.event(t); got != want {
			t.Errorf("event %+v, want %+v", got, want)
		}
	}
	if got := m.sh("after", "echo alive", image); got != "alive" {
		t.Errorf("after that the machine says %q", got)
	}
}

// TestHostComesBack: containers run on while no host is there, and nothing that they say is lost.
func TestHostComesBack(t *testing.T) {
	m := pod(t)
	image := m.busybox()
	m.start("main", shell("main", "echo one; read line; echo two $line; read line; echo three $line; exit 5", nil), image)
	out := m.stdio("main", "", 1)
	if got := out.line(t); got != "one" {
		t.Fatalf("output %q", got)
	}
	in := m.stdio("main", "", 0)
	if _, err := io.WriteString(in, "a\n"); err != nil {
		t.Fatal(err)
	}
	if got := out.line(t); got != "two a" {
		t.Fatalf("output %q", got)
	}
	if err := m.session.Close(); err != nil {
		t.Fatal(err)
	}
	m.begin()
	if _, err := io.WriteString(m.stdio("main", "", 0), "b\n"); err != nil {
		t.Fatal(err)
	}
	if status := m.wait("main", ""); status != 5 {
		t.Errorf("status %d", status)
	}
	// What the guest has no proof of having been read comes again.
	if got := strings.TrimPrefix(m.output("main", "", 1), "two a\n"); got != "three b\n" {
		t.Errorf("output %q", got)
	}
}

func TestDial(t *testing.T) {
	m := pod(t)
	image := m.busybox()
	m.start("server", shell("server", "echo ready; exec nc -l -p 8080 -e cat", nil), image)
	m.stdio("server", "", 1).line(t)
	var conn net.Conn
	for deadline := time.Now().Add(answerTimeout); conn == nil; {
		s := m.send(guestapi.Request{Op: guestapi.OpDial, Dial: &guestapi.Dial{Network: "tcp", Address: "127.0.0.1:8080"}})
		if _, err := s.response(); err == nil {
			conn = s
		} else if !strings.Contains(err.Error(), "refused") || time.Now().After(deadline) {
			t.Fatal(err)
		} else {
			_ = s.Close()
		}
	}
	sent := strings.Repeat("0123456789", 100000)
	go func() {
		_, _ = io.WriteString(conn, sent)
		_ = conn.Close()
	}()
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != sent {
		t.Errorf("%d bytes of %d came back: %v", len(got), len(sent), err)
	}
	if _, err := m.tasks.Kill(t.Context(), &api.KillRequest{ID: "server", Signal: 9, All: true}); err != nil && !strings.Contains(err.Error(), "ended") {
		t.Error(err)
	}
}
