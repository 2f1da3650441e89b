// Package localcluster is what `berth up` makes on one machine: a Kubernetes control plane, containerd, a registry,
// Berth's controllers and one host agent, all started, watched and stopped by one supervisor process.
package localcluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/hostagent/network"
	"github.com/berth-run/berth/internal/images"
	"github.com/berth-run/berth/internal/layout"
)

// startLimit is how long `berth up` waits for the whole cluster.
const startLimit = 4 * time.Minute

// ErrNotRunning says that no supervisor runs.
var ErrNotRunning = errors.New("the cluster is not running; start it with: berth up")

// Up starts the cluster, if it does not run, and waits until it is ready; progress goes to out. When ctx ends first, what
// was started is stopped again. isolation is for profiles that name none; empty is what was chosen before, or auto.
func Up(ctx context.Context, dirs layout.Dirs, isolation v1alpha1.Isolation, out io.Writer) error {
	if err := needRoot(); err != nil {
		return err
	}
	if status, err := GetStatus(ctx, dirs); err == nil && status.Failed == "" {
		if err := refuseChange(dirs, isolation); err != nil {
			return err
		}
		fmt.Fprintln(out, "The cluster runs already.")
		return follow(ctx, dirs, out, nil)
	}
	binDir, err := programs()
	if err != nil {
		return err
	}
	if err := stopLeftovers(dirs, false); err != nil {
		return err
	}
	settings, err := choose(dirs, isolation)
	if err != nil {
		return err
	}
	if err := errors.Join(preflight(ctx, dirs, binDir), needMicroVM(settings.Isolation, binDir)); err != nil {
		return err
	}
	for _, d := range []string{dirs.State, dirs.Run, dirs.Log, dirs.Config(), dirs.Etcd()} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("make %s: %w", d, err)
		}
	}
	if err := settings.write(dirs); err != nil {
		return err
	}
	if err := launch(ctx, dirs, binDir, out); err != nil {
		return err
	}
	return tellIsolation(ctx, dirs, settings.Isolation, out)
}

// launch starts the supervisor and waits until the cluster is ready; if it does not get so, it is stopped again.
func launch(ctx context.Context, dirs layout.Dirs, binDir string, out io.Writer) error {
	log, err := openLog(filepath.Join(dirs.Log, "supervisor.log"))
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(filepath.Join(binDir, "berth"), "supervise")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start the supervisor: %w", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if err := follow(ctx, dirs, out, ended); err != nil {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		fmt.Fprintln(out, "Stopping what was started ...")
		return errors.Join(err, Down(context.WithoutCancel(ctx), dirs, io.Discard, false))
	}
	return nil
}

// follow shows what becomes ready until all is, or the start fails.
func follow(ctx context.Context, dirs layout.Dirs, out io.Writer, ended <-chan error) error {
	began := time.Now()
	shown := map[string]bool{}
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		status, err := GetStatus(ctx, dirs)
		if err == nil {
			for _, p := range status.Parts {
				if p.Ready && !shown[p.Name] {
					shown[p.Name] = true
					fmt.Fprintf(out, "%6.1f s  %s is ready\n", time.Since(began).Seconds(), p.Name)
				}
			}
			if status.Failed != "" {
				return errors.New(status.Failed)
			}
			if status.Ready {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return errors.New("interrupted before the cluster was ready; `berth up` starts it again")
		case err := <-ended:
			return fmt.Errorf("the supervisor ended (%w): %s", err, lastLine(filepath.Join(dirs.Log, "supervisor.log")))
		case <-tick.C:
			if time.Since(began) > startLimit {
				return fmt.Errorf("the cluster was not ready within %s; `berth status` and the logs in %s say more", startLimit, dirs.Log)
			}
		}
	}
}

// Supervise is the supervisor's process: it runs the cluster until ctx ends.
func Supervise(ctx context.Context, dirs layout.Dirs) error {
	lock, err := os.OpenFile(pidPath(dirs), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("open the supervisor's lock: %w", err)
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return fmt.Errorf("another supervisor runs: %w", err)
	}
	if err := errors.Join(lock.Truncate(0), writeAt(lock, strconv.Itoa(os.Getpid()))); err != nil {
		return fmt.Errorf("write the supervisor's process id: %w", err)
	}
	binDir, err := programs()
	if err != nil {
		return err
	}
	hostName, err := os.Hostname()
	if err != nil {
		return fmt.Errorf("find the host's name: %w", err)
	}
	if err := ensurePKI(dirs, hostName); err != nil {
		return err
	}
	if err := network.EnsureGateway(); err != nil {
		return err
	}
	// What an earlier HAProxy was to do may not be possible any more; it does not run.
	if err := os.RemoveAll(dirs.LoadBalancer()); err != nil {
		return fmt.Errorf("clear the load balancer's directory: %w", err)
	}
	settings, err := ReadSettings(dirs)
	if err != nil {
		return err
	}
	parts, err := makeParts(dirs, binDir, hostName, settings)
	if err != nil {
		return err
	}
	s := newSupervisor(dirs, binDir, parts, []step{
		{name: bootstrapStep, needs: []string{"kube-apiserver", "registry"}, run: func(ctx context.Context) error {
			return errors.Join(bootstrap(ctx, dirs), images.Seed(ctx, dirs, binDir))
		}},
		// The cluster's own pods come when the webhook can put them on Berth.
		{name: systemStep, needs: []string{"berth-controller"}, run: func(ctx context.Context) error { return installSystem(ctx, dirs) }},
	})
	s.drain = func() {
		if err := stopSandboxes(context.WithoutCancel(ctx), dirs); err != nil {
			slog.Error("stop the pods", "error", err)
		}
	}
	if err := s.serve(ctx); err != nil {
		return err
	}
	return s.run(ctx)
}

func writeAt(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text+"\n"), 0)
	return err
}

func pidPath(dirs layout.Dirs) string { return filepath.Join(dirs.Run, "supervisor.pid") }

// GetStatus asks the supervisor. The error is ErrNotRunning if there is none.
func GetStatus(ctx context.Context, dirs layout.Dirs) (Status, error) {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return (&net.Dialer{}).DialContext(ctx, "unix", statusSocket(dirs))
		}}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://supervisor/", nil)
	if err != nil {
		return Status{}, err
	}
	resp, err := client.Do(req)
	if errors.Is(err, os.ErrPermission) {
		return Status{}, needRoot()
	}
	if err != nil {
		return Status{}, ErrNotRunning
	}
	defer resp.Body.Close()
	var s Status
	if err := json.NewDecoder(resp.Body).Decode(&s); err != nil {
		return Status{}, fmt.Errorf("read the supervisor's answer: %w", err)
	}
	return s, nil
}

// programs is the directory of this program, in which the others are too.
func programs() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	if self, err = filepath.EvalSymlinks(self); err != nil {
		return "", fmt.Errorf("find this program: %w", err)
	}
	return filepath.Dir(self), nil
}

// stopLeftovers ends what a killed supervisor left: its parts and, with pods, the programs that outlive it on purpose. A
// program is this cluster's if it comes from our directory, or is HAProxy, and its command line names one of the cluster's; another
// cluster's, or a test's, is left alone. Node processes are found by what the agent wrote down (hostagent.RemoveAll).
func stopLeftovers(dirs layout.Dirs, pods bool) error {
	binDir, err := programs()
	if err != nil {
		return err
	}
	names := []string{"etcd", "registry", "containerd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "berth-proxy", "berth-lb", "berth-controller", "berth-host"}
	if pods {
		names = append(names, "containerd-shim-runsc-v1", "runsc", "containerd-shim-berth-v1")
	}
	exes, err := filepath.Glob("/proc/[0-9]*/exe")
	if err != nil {
		return err
	}
	for _, exe := range exes {
		target, err := os.Readlink(exe)
		if err != nil {
			continue // it has ended
		}
		target = strings.TrimSuffix(target, " (deleted)")
		name, proc := filepath.Base(target), filepath.Dir(exe)
		ours := filepath.Dir(target) == binDir && slices.Contains(names, name) || name == "haproxy"
		if !ours || !mentions(proc, dirs, name != "runsc") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(proc))
		if err != nil {
			return err
		}
		if err := endProcess(pid, stopLimit); err != nil {
			return err
		}
	}
	return nil
}

// mentions reports whether the command line of the process names a directory of the cluster, and means it if that can be asked: a sandbox sees
// another root.
func mentions(proc string, dirs layout.Dirs, ask bool) bool {
	line, err := os.ReadFile(filepath.Join(proc, "cmdline"))
	if err != nil {
		return false
	}
	for _, dir := range []string{dirs.State, dirs.Run} {
		if strings.Contains(string(line), dir+"/") && (!ask || sees(proc, dir)) {
			return true
		}
	}
	return false
}

// sees reports whether the process means the same directory by its name. One in a container, whose processes are among the
// host's, too, has another cluster's. Nobody can tell if there is none here.
func sees(proc, dir string) bool {
	here, err := os.Stat(dir)
	if err != nil {
		return true
	}
	there, err := os.Stat(filepath.Join(proc, "root", dir))
	return err == nil && os.SameFile(here, there)
}

// endProcess ends a process: politely, and after the limit for certain.
func endProcess(pid int, limit time.Duration) error {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil // it has ended
	}
	defer unix.Close(fd)
	for _, sig := range []unix.Signal{unix.SIGTERM, unix.SIGKILL} {
		if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil {
			return nil // it has ended
		}
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		if n, err := unix.Poll(poll, int(limit.Milliseconds())); err == nil && n > 0 {
			return nil
		}
	}
	return fmt.Errorf("process %d does not end", pid)
}
