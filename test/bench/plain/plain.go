// Package plain runs a program in a runc container, without any of Berth but the pod's kind of network link and its rules: what pods are
// measured against. It also runs commands for the benchmarks. Only the programs below test/bench import it.
package plain

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/podnet"
)

const (
	mtu = 1500
	// cpuPeriod in microseconds, the kernel's default.
	cpuPeriod = 100_000
)

// Command runs a program and returns what it printed.
func Command(ctx context.Context, input []byte, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(input), &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

// Kubectl runs Berth's kubectl.
func Kubectl(ctx context.Context, input string, args ...string) (string, error) {
	return Command(ctx, []byte(input), append([]string{"bin/kubectl"}, args...)...)
}

// Container is a plain container.
type Container struct {
	// Name is unique on the machine, Dir the benchmark's directory, IP an address of a private subnet that no pod has.
	Name, Dir, IP string
	// Args are the first process's; Rootfs puts its files into a directory.
	Args   []string
	Rootfs func(ctx context.Context, dir string) error
	// CPUs that it may use; 0: all there are.
	CPUs int64
}

// Start starts it. Remove removes what there is of it, also after an error.
func (c *Container) Start(ctx context.Context) error {
	if _, err := exec.LookPath("runc"); err != nil {
		return errors.New("command runc is missing: install Debian package runc")
	}
	if _, err := Command(ctx, nil, "ip", "netns", "add", c.Name); err != nil {
		return err
	}
	if err := podnet.Add(c.Name, c.namespace(), podnet.Config{IP: c.IP, Gateway: layout.GatewayIP, MTU: mtu}); err != nil {
		return err
	}
	if err := c.rules(ctx, "add"); err != nil {
		return err
	}
	bundle := filepath.Join(c.Dir, c.Name)
	rootfs := filepath.Join(bundle, "rootfs")
	if err := os.MkdirAll(rootfs, 0o755); err != nil {
		return err
	}
	if err := c.Rootfs(ctx, rootfs); err != nil {
		return err
	}
	config, err := json.Marshal(c.config())
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), config, 0o600); err != nil {
		return err
	}
	// Its output goes nowhere: the container, which stays, would hold a pipe open.
	if err := exec.CommandContext(ctx, "runc", "--root", c.state(), "run", "--detach", "--bundle", bundle, c.Name).Run(); err != nil {
		return fmt.Errorf("start a plain container: %w", err)
	}
	return nil
}

// Exec runs a program in it and returns what that printed.
func (c *Container) Exec(ctx context.Context, args ...string) (string, error) {
	return Command(ctx, nil, append([]string{"runc", "--root", c.state(), "exec", c.Name}, args...)...)
}

// Spawn leaves another program running in it.
func (c *Container) Spawn(ctx context.Context, args ...string) error {
	return exec.CommandContext(ctx, "runc", append([]string{"--root", c.state(), "exec", "--detach", c.Name}, args...)...).Run()
}

// Remove ends it and takes away what it had.
func (c *Container) Remove(ctx context.Context) error {
	_, gone := Command(ctx, nil, "runc", "--root", c.state(), "delete", "--force", c.Name)
	rules := c.rules(ctx, "delete")
	_, space := Command(ctx, nil, "ip", "netns", "del", c.Name)
	return errors.Join(gone, podnet.Del(c.Name), rules, space)
}

func (c *Container) state() string     { return filepath.Join(c.Dir, "runc") }
func (c *Container) namespace() string { return "/run/netns/" + c.Name }

// rules lets its address through where pods' are.
func (c *Container) rules(ctx context.Context, verb string) error {
	_, err := Command(ctx, nil, "nft", verb, "element", "ip", layout.NFTTable, "pods", fmt.Sprintf("{ %s . %s }", podnet.HostLink(c.Name), c.IP))
	return err
}

type object map[string]any

// config is the least that runc asks for.
func (c *Container) config() object {
	mount := func(target, fstype, source string, options ...string) object {
		return object{"destination": target, "type": fstype, "source": source, "options": options}
	}
	linux := object{"namespaces": []object{{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"},
		{"type": "network", "path": c.namespace()}}}
	if c.CPUs > 0 {
		linux["cgroupsPath"] = "/" + c.Name
		linux["resources"] = object{"cpu": object{"quota": c.CPUs * cpuPeriod, "period": cpuPeriod}}
	}
	return object{"ociVersion": "1.0.2", "root": object{"path": "rootfs"}, "linux": linux,
		"process": object{"cwd": "/", "args": c.Args, "env": []string{"PATH=/usr/bin:/bin:/"}, "user": object{"uid": 0, "gid": 0}},
		"mounts": []object{mount("/proc", "proc", "proc"), mount("/dev", "tmpfs", "tmpfs"), mount("/sys", "sysfs", "sysfs", "ro"),
			mount("/dev/shm", "tmpfs", "shm"), mount("/tmp", "tmpfs", "tmpfs")}}
}
