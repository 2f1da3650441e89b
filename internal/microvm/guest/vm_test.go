package guest_test

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	api "github.com/containerd/containerd/api/runtime/task/v3"
	"github.com/containerd/ttrpc"
	"github.com/hashicorp/yamux"
	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/internal/microvm/disk"
	"github.com/berth-run/berth/internal/microvm/guestapi"
)

// These tests run the guest that `make guest` made in real virtual machines, emulated, as the driver runs them: a template is booted once, and every
// test restores machines from it. They need root (disk images with foreign owners) and QEMU, and fail without.

const (
	templateMiB   = 192
	pluggedMiB    = 384 // where the memory ends that the template has plugged in
	machineMiB    = 2048
	answerTimeout = 60 * time.Second
)

// guestDir is bin/guest.
func guestDir(t testing.TB) string {
	dir, err := filepath.Abs("../../../bin/guest")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "manifest.json")); err != nil {
		t.Fatalf("the guest is not built: %v; run `make guest`", err)
	}
	return dir
}

type template struct {
	ram   *os.File
	state string
	err   error
}

var theTemplate = sync.OnceValue(func() template {
	ram, err := unix.MemfdCreate("template", unix.MFD_CLOEXEC)
	if err != nil {
		return template{err: err}
	}
	return template{ram: os.NewFile(uintptr(ram), "template")}
})

var buildOnce sync.Once
var builtState string

func TestMain(m *testing.M) {
	status := m.Run()
	if builtState != "" {
		_ = os.RemoveAll(filepath.Dir(builtState))
	}
	os.Exit(status)
}

// built boots the template once for all tests.
func built(t testing.TB) template {
	tmpl := theTemplate()
	if tmpl.err != nil {
		t.Fatal(tmpl.err)
	}
	buildOnce.Do(func() {
		if err := tmpl.ram.Truncate(templateMiB << 20); err != nil {
			t.Fatal(err)
		}
		dir, err := os.MkdirTemp("", "berth-guest")
		if err != nil {
			t.Fatal(err)
		}
		m := launch(t, tmpl.ram, "on", "-kernel", filepath.Join(guestDir(t), "vmlinux"), "-initrd", filepath.Join(guestDir(t), "initrd"),
			"-append", fmt.Sprintf("console=ttyS0 quiet panic=-1 reboot=t mem=%dM tsc_early_khz=%d tsc=reliable lpj=10000000 no_timer_check", templateMiB, tscKHz(t)))
		defer m.end()
		port := m.dial()
		m.exchange(port, guestapi.Ping, guestapi.Pong)
		m.exchange(port, guestapi.PlugLine(guestapi.Range{Start: 256 << 20, Bytes: 1}), "invalid argument\n")
		m.exchange(port, guestapi.PlugLine(guestapi.Range{Start: 256 << 20, Bytes: (pluggedMiB - 256) << 20}), guestapi.Pong)
		_ = port.Close()
		m.qmp("stop", nil)
		m.migrate("migrate", "exec:cat > "+filepath.Join(dir, "state"))
		builtState = filepath.Join(dir, "state")
	})
	if builtState == "" {
		t.Fatal("the template could not be built, see the first test")
	}
	tmpl.state = builtState
	return tmpl
}

// tscKHz is what the emulated processor counts: the host's own counter.
func tscKHz(t testing.TB) int {
	content, err := os.ReadFile("/proc/cpuinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(content)) {
		if name, value, _ := strings.Cut(line, ":"); strings.TrimSpace(name) == "cpu MHz" {
			mhz, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
			if err != nil {
				t.Fatal(err)
			}
			return int(mhz * 1000)
		}
	}
	t.Fatal("/proc/cpuinfo tells no frequency")
	return 0
}

// vm is a running machine.
type vm struct {
	t       testing.TB
	dir     string
	command *exec.Cmd
	control net.Conn
	answers *bufio.Reader
	session *yamux.Session
	tasks   api.TTRPCTaskService
	luns    int
}

func launch(t testing.TB, ram *os.File, share string, extra ...string) *vm {
	m := &vm{t: t, dir: t.TempDir()}
	args := append([]string{"-M", "microvm,acpi=on,rtc=off,pit=off", "-accel", "tcg,tb-size=32", "-cpu", "max", "-smp", "1", "-m", fmt.Sprintf("%dM", machineMiB),
		"-object", fmt.Sprintf("memory-backend-file,id=m0,size=%dM,mem-path=/proc/self/fd/3,share=%s", templateMiB, share),
		"-object", fmt.Sprintf("memory-backend-memfd,id=m1,size=%dM,share=on", machineMiB-templateMiB),
		"-numa", "node,memdev=m0,cpus=0", "-numa", "node,memdev=m1",
		"-display", "none", "-nodefaults", "-no-user-config", "-no-reboot", "-serial", "file:" + m.path("console"),
		"-qmp", "unix:" + m.path("qmp") + ",server=on,wait=off",
		"-device", "virtio-serial-device", "-chardev", "socket,id=agent,path=" + m.path("agent") + ",server=on,wait=off",
		"-device", "virtserialport,chardev=agent,name=" + guestapi.PortName,
		"-device", "virtio-scsi-device,id=scsi0",
		"-drive", "if=none,id=tools,format=raw,readonly=on,file=" + filepath.Join(guestDir(t), "tools.erofs"),
		"-device", "scsi-hd,bus=scsi0.0,scsi-id=0,lun=0,drive=tools",
		"-netdev", "hubport,id=net,hubid=0", "-device", "virtio-net-device,netdev=net"}, extra...)
	m.command = exec.Command("qemu-system-x86_64", args...)
	m.command.ExtraFiles = []*os.File{ram}
	m.command.Stderr = os.Stderr
	if err := m.command.Start(); err != nil {
		t.Fatalf("start QEMU (Debian's package qemu-system-x86): %v", err)
	}
	t.Cleanup(m.end)
	m.control = m.connect("qmp")
	m.answers = bufio.NewReader(m.control)
	m.read()
	m.qmp("qmp_capabilities", nil)
	m.qmp("migrate-set-capabilities", map[string]any{"capabilities": []any{map[string]any{"capability": "x-ignore-shared", "state": true}}})
	return m
}

func (m *vm) path(name string) string { return filepath.Join(m.dir, name) }

// end stops the machine, and tells what the guest said if the test failed.
func (m *vm) end() {
	if m.command.ProcessState != nil {
		return
	}
	if m.session != nil {
		_ = m.session.Close()
	}
	_ = m.command.Process.Kill()
	_ = m.command.Wait()
	if m.t.Failed() {
		console, _ := os.ReadFile(m.path("console"))
		m.t.Logf("console: %s", console)
	}
}

// connect waits for QEMU to listen.
func (m *vm) connect(name string) net.Conn {
	m.t.Helper()
	for deadline := time.Now().Add(answerTimeout); ; time.Sleep(time.Millisecond) {
		conn, err := net.Dial("unix", m.path(name))
		if err == nil {
			return conn
		}
		if time.Now().After(deadline) {
			m.t.Fatal(err)
		}
	}
}

func (m *vm) read() map[string]json.RawMessage {
	m.t.Helper()
	line, err := m.answers.ReadBytes('\n')
	if err != nil {
		m.t.Fatalf("QEMU is gone: %v", err)
	}
	var message map[string]json.RawMessage
	if err := json.Unmarshal(line, &message); err != nil {
		m.t.Fatal(err)
	}
	return message
}

// qmp gives QEMU a command.
func (m *vm) qmp(command string, arguments map[string]any) json.RawMessage {
	m.t.Helper()
	request := map[string]any{"execute": command}
	if arguments != nil {
		request["arguments"] = arguments
	}
	if err := json.NewEncoder(m.control).Encode(request); err != nil {
		m.t.Fatal(err)
	}
	for {
		message := m.read()
		if problem, failed := message["error"]; failed {
			m.t.Fatalf("QEMU: %s: %s", command, problem)
		}
		if answer, ok := message["return"]; ok {
			return answer
		}
	}
}

func (m *vm) migrate(command, uri string) {
	m.t.Helper()
	m.qmp(command, map[string]any{"uri": uri})
	for {
		var status struct{ Status string }
		if err := json.Unmarshal(m.qmp("query-migrate", nil), &status); err != nil {
			m.t.Fatal(err)
		}
		switch status.Status {
		case "completed":
			return
		case "failed":
			m.t.Fatalf("%s failed", command)
		}
	}
}

func (m *vm) dial() net.Conn {
	m.t.Helper()
	port := m.connect("agent")
	if err := port.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		m.t.Fatal(err)
	}
	return port
}

func (m *vm) exchange(port net.Conn, say, expect string) {
	m.t.Helper()
	if _, err := io.WriteString(port, say); err != nil {
		m.t.Fatal(err)
	}
	// What the guest wrote to the host before may come first.
	var heard []byte
	for one := make([]byte, 1); !strings.HasSuffix(string(heard), expect); heard = append(heard, one...) {
		if _, err := io.ReadFull(port, one); err != nil {
			m.t.Fatalf("the guest answers %q to %q: %v", heard, say, err)
		}
	}
}

// restore makes a machine from the template, without a session.
func restore(t testing.TB) *vm {
	t.Helper()
	tmpl := built(t)
	m := launch(t, tmpl.ram, "off", "-incoming", "defer")
	m.migrate("migrate-incoming", "exec:cat "+tmpl.state)
	m.qmp("cont", nil)
	return m
}

// begin begins a session on the agent port.
func (m *vm) begin() {
	m.t.Helper()
	port := m.dial()
	m.exchange(port, guestapi.Hello, guestapi.Hello)
	_ = port.SetDeadline(time.Time{})
	config := yamux.DefaultConfig()
	config.EnableKeepAlive, config.LogOutput = false, io.Discard
	session, err := yamux.Client(port, config)
	if err != nil {
		m.t.Fatal(err)
	}
	m.session = session
	m.tasks = api.NewTTRPCTaskClient(ttrpc.NewClient(m.open(guestapi.Request{Op: guestapi.OpTasks})))
}

// stream is what follows a request, after the response.
type stream struct {
	net.Conn
	reader *bufio.Reader
}

func (s *stream) Read(p []byte) (int, error) { return s.reader.Read(p) }

func (m *vm) send(request guestapi.Request) *stream {
	m.t.Helper()
	conn, err := m.session.Open()
	if err != nil {
		m.t.Fatal(err)
	}
	if err := json.NewEncoder(conn).Encode(request); err != nil {
		m.t.Fatal(err)
	}
	return &stream{Conn: conn, reader: bufio.NewReader(conn)}
}

func (s *stream) response() (guestapi.Response, error) {
	var response guestapi.Response
	line, err := s.reader.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &response)
	}
	if err == nil && response.Error != "" {
		err = fmt.Errorf("guest: %s", response.Error)
	}
	return response, err
}

// open sends a request whose stream is used further.
func (m *vm) open(request guestapi.Request) *stream {
	m.t.Helper()
	s := m.send(request)
	if _, err := s.response(); err != nil {
		m.t.Fatalf("%s: %v", request.Op, err)
	}
	return s
}

// do sends a request that is answered and nothing more.
func (m *vm) do(request guestapi.Request) error {
	m.t.Helper()
	s := m.send(request)
	defer func() { _ = s.Close() }()
	_, err := s.response()
	return err
}

// attach adds a disk and returns its LUN.
func (m *vm) attach(path string, readOnly bool) int {
	m.t.Helper()
	m.luns++
	node := "disk" + strconv.Itoa(m.luns)
	m.qmp("blockdev-add", map[string]any{"driver": "raw", "node-name": node, "read-only": readOnly, "discard": "unmap",
		"file": map[string]any{"driver": "file", "filename": path}})
	m.qmp("device_add", map[string]any{"driver": "scsi-hd", "id": node, "bus": "scsi0.0", "scsi-id": 0, "lun": m.luns, "drive": node})
	return m.luns
}

// configuration as a host would send it.
func (m *vm) configuration() *guestapi.Configure {
	m.t.Helper()
	ephemeral, err := disk.MakeEphemeral(m.t.Context(), m.dir, 2<<30)
	if err != nil {
		m.t.Fatal(err)
	}
	defer ephemeral.Close()
	entropy, id, mac := make([]byte, 64), make([]byte, 16), make([]byte, 5)
	for _, bytes := range [][]byte{entropy, id, mac} {
		_, _ = rand.Read(bytes)
	}
	return &guestapi.Configure{
		Clock:     guestapi.Clock{UnixNano: time.Now().UnixNano()},
		Entropy:   entropy,
		Hostname:  "pod",
		MachineID: fmt.Sprintf("%x", id),
		Links: []guestapi.Link{{Name: "eth0", MAC: net.HardwareAddr(append([]byte{2}, mac...)).String(), MTU: 1450, Addresses: []string{"10.1.2.3/32"},
			Routes:     []guestapi.Route{{Destination: "0.0.0.0/0", Gateway: "169.254.1.1"}},
			Neighbours: []guestapi.Neighbour{{IP: "169.254.1.1", MAC: "ee:ee:ee:ee:ee:ee"}}}},
		Memory:       []guestapi.Range{{Start: 256 << 20, Bytes: 384 << 20}}, // its beginning is the template's
		EphemeralLUN: m.attach(disk.PathOf(ephemeral), false),
		Sysctls:      map[string]string{"net.ipv4.ip_unprivileged_port_start": "0"},
	}
}

// pod is a machine that is ready for containers.
func pod(t testing.TB) *vm {
	t.Helper()
	m := restore(t)
	m.begin()
	if err := m.do(guestapi.Request{Op: guestapi.OpConfigure, Configure: m.configuration()}); err != nil {
		t.Fatal(err)
	}
	return m
}

func run(t testing.TB, name string, args ...string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), answerTimeout)
	defer cancel()
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		t.Fatalf("%s %s: %v: %s", name, strings.Join(args, " "), err, out)
	}
}
