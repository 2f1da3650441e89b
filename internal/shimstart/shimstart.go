// Package shimstart starts containerd's shims: it carries out a shim program's command "start" and executes the shim itself for all others.
// It imports the standard library only, since a program of it begins once for each container. containerd-shim-start alone imports it.
package shimstart

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
)

const (
	// socketDir is where shims have their sockets: beside containerd's own. The usual /run/containerd/s is every containerd's of the
	// machine, so that nobody could tell what in it is ours.
	socketDir = "s"
	// addressFile and pidFile are the shim's address and process, in the bundle of the sandbox that it was started for. Other
	// containers of the pod have the address only.
	addressFile, pidFile = "address", "shim.pid"
	scheme               = "unix://"
	// sandboxAnnotation groups the containers of a pod into one shim.
	sandboxAnnotation = "io.kubernetes.cri.sandbox-id"
)

// versions are those of the task service that the shims serve.
var versions = map[string]int{"containerd-shim-runsc-v1": 2, "containerd-shim-berth-v1": 3}

// request is what containerd says on the command line (containerd's core/runtime/v2 shim protocol).
type request struct {
	namespace, address, id string
	debug                  bool
}

// Run is the program of path self; the shim is found beside it by its name. It answers on out, and returns only when a shim was
// started or found, or with an error.
func Run(self string, args []string, out io.Writer) error {
	program := strings.TrimSuffix(filepath.Base(self), "-start") + "-v1"
	version, known := versions[program]
	if !known || !filepath.IsAbs(self) {
		return errors.New("this program is for containerd: it is called by an absolute path that ends in containerd-shim-runsc-start or containerd-shim-berth-start")
	}
	shim := filepath.Join(filepath.Dir(self), program)
	var r request
	flags := flag.NewFlagSet(program, flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	flags.StringVar(&r.namespace, "namespace", "", "")
	flags.StringVar(&r.address, "address", "", "")
	flags.StringVar(&r.id, "id", "", "")
	flags.BoolVar(&r.debug, "debug", false, "")
	_ = flags.String("publish-binary", "", "")
	_ = flags.String("bundle", "", "")
	valid := flags.Parse(args) == nil
	if valid && flags.Arg(0) == "delete" {
		if err := removeSocket(); err != nil {
			return err
		}
	}
	if !valid || flags.Arg(0) != "start" {
		return fmt.Errorf("execute %s: %w", shim, syscall.Exec(shim, append([]string{shim}, args...), os.Environ()))
	}
	if r.namespace == "" || r.id == "" || !filepath.IsAbs(r.address) {
		return errors.New("-namespace, -id and -address, an absolute path, are needed; this program is for containerd, not for people")
	}
	address, err := start(r, shim)
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(map[string]any{"version": version, "address": address, "protocol": "ttrpc"})
}

// start starts the pod's shim, or finds the one that runs already, and gives its address. The working directory is the
// container's bundle.
func start(r request, shim string) (string, error) {
	group, err := sandboxOf(r.id)
	if err != nil {
		return "", err
	}
	key := filepath.Join(r.address, r.namespace, group)
	if r.debug {
		key = filepath.Join(key, "debug")
	}
	path := filepath.Join(filepath.Dir(r.address), socketDir, fmt.Sprintf("%x", sha256.Sum256([]byte(key))))
	address := scheme + path
	if err := write(addressFile, address); err != nil {
		return "", err
	}
	if found, err := answers(path); found || err != nil {
		return address, err
	}
	socket, err := listen(path)
	if err != nil {
		return "", err
	}
	defer socket.Close()
	if err := launch(r, shim, socket); err != nil {
		_ = os.Remove(path)
		return "", err
	}
	return address, nil
}

// answers tells whether a shim listens at the socket. The kernel knows, whether or not the shim has the time to accept. What else
// fails proves nothing: a second shim would take the socket's place away from one that lives.
func answers(path string) (bool, error) {
	conn, err := net.Dial("unix", path)
	if err == nil {
		return true, conn.Close()
	}
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		return false, nil
	}
	return false, fmt.Errorf("find out whether the pod's shim runs: %w", err)
}

// listen makes the shim's socket; nothing answers at it, so what is there is a dead shim's.
func listen(path string) (*os.File, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("make the directory of shims' sockets: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove a dead shim's socket: %w", err)
	}
	listener, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("make the shim's socket: %w", err)
	}
	// The shim inherits it: closing ours must not remove it from the file system.
	listener.SetUnlinkOnClose(false)
	defer listener.Close()
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, fmt.Errorf("protect the shim's socket: %w", err)
	}
	file, err := listener.File()
	if err != nil {
		return nil, fmt.Errorf("get the shim's socket: %w", err)
	}
	return file, nil
}

// removeSocket removes the socket of the shim whose sandbox's bundle is the working directory: containerd has lost the shim for good,
// and one that was killed could not do it.
func removeSocket() error {
	if _, err := os.Stat(pidFile); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	address, err := os.ReadFile(addressFile)
	if err == nil {
		err = os.Remove(strings.TrimPrefix(string(address), scheme))
	}
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove the shim's socket: %w", err)
	}
	return nil
}

func launch(r request, shim string, socket *os.File) error {
	args := []string{"-namespace", r.namespace, "-address", r.address, "-id", r.id}
	if r.debug {
		args = append(args, "-debug")
	}
	cmd := exec.Command(shim, args...)
	cmd.Env = append(os.Environ(), "GOMAXPROCS=2")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.ExtraFiles = []*os.File{socket}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the shim: %w", err)
	}
	if err := write(pidFile, strconv.Itoa(cmd.Process.Pid)); err != nil {
		_ = cmd.Process.Kill()
		return err
	}
	return nil
}

// sandboxOf reads, from the bundle that containerd made, which pod's shim a container belongs to.
func sandboxOf(id string) (string, error) {
	file, err := os.Open("config.json")
	if err != nil {
		return "", fmt.Errorf("read the container's specification: %w", err)
	}
	defer file.Close()
	var spec struct {
		Annotations map[string]string `json:"annotations"`
	}
	if err := json.NewDecoder(file).Decode(&spec); err != nil {
		return "", fmt.Errorf("the container's specification is not valid: %w", err)
	}
	if group := strings.TrimSpace(spec.Annotations[sandboxAnnotation]); group != "" {
		return group, nil
	}
	return id, nil
}

// write replaces a file of the bundle as a whole, because containerd may read it at any time.
func write(name, content string) error {
	temporary := "." + name
	if err := os.WriteFile(temporary, []byte(content), 0o644); err != nil {
		return fmt.Errorf("write the shim's %s: %w", name, err)
	}
	if err := os.Rename(temporary, name); err != nil {
		return fmt.Errorf("write the shim's %s: %w", name, err)
	}
	return nil
}
