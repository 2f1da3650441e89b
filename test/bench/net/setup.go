package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/podnet"
)

const (
	name = "bench-net"
	// limit bounds every step of the set-up.
	limit = 2 * time.Minute
	// settle is how long a policy's connection has been open before the policy comes.
	settle = 300 * time.Millisecond
	// outsideIP and nearIP are the ends of the link to a machine outside (documentation addresses, RFC 5737).
	outsideIP, nearIP = "203.0.113.9", "203.0.113.1"
)

// runcs are the plain containers' addresses: the last ones of a private subnet, which pods get last.
var runcs = map[string]string{"client": "10.90.31.253", "server": "10.90.31.254"}

// bench is what was set up.
type bench struct {
	dir, self string
	sides     []*side
	// web is the address of Ingresses.
	web  string
	undo []func(context.Context) error
}

func setUp(ctx context.Context) (*bench, error) {
	if _, err := exec.LookPath("runc"); err != nil {
		return nil, errors.New("command runc is missing: install Debian package runc")
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", name)
	if err != nil {
		return nil, err
	}
	b := &bench{dir: dir, self: self}
	b.undo = append(b.undo, func(context.Context) error { return os.RemoveAll(dir) })
	for _, step := range []func(context.Context) error{b.pods, b.plain, b.publish, b.beyond} {
		limited, cancel := context.WithTimeout(ctx, limit)
		err := step(limited)
		cancel()
		if err != nil {
			return b, err
		}
	}
	return b, nil
}

func (b *bench) tearDown(ctx context.Context) error {
	var failed []error
	for i := len(b.undo) - 1; i >= 0; i-- {
		failed = append(failed, b.undo[i](ctx))
	}
	return errors.Join(failed...)
}

// command runs a program and returns what it printed.
func command(ctx context.Context, input []byte, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, args[0], args[1:]...)
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stderr = bytes.NewReader(input), &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return strings.TrimSpace(string(out)), nil
}

func kubectl(ctx context.Context, input string, args ...string) (string, error) {
	return command(ctx, []byte(input), append([]string{"bin/kubectl"}, args...)...)
}

func number(text string, err error) (float64, error) {
	if err != nil {
		return 0, err
	}
	return strconv.ParseFloat(text, 64)
}

const profileAndPods = `
{apiVersion: berth.run/v1alpha1, kind: FargateProfile, metadata: {name: bench-net}, spec: {selectors: [{namespace: default, labels: {bench: net}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: bench-client, labels: {bench: net}}, spec: {terminationGracePeriodSeconds: 0, containers: [
  {name: c, image: busybox, command: [sleep, "86400"], resources: {requests: {cpu: "2", memory: 1Gi}}}]}}
---
{apiVersion: v1, kind: Pod, metadata: {name: bench-server, labels: {bench: net, app: bench-server}}, spec: {terminationGracePeriodSeconds: 0, containers: [
  {name: c, image: busybox, command: [sh, -c, "until [ -x /ready ]; do sleep 0.1; done; exec /ready serve"], resources: {requests: {cpu: "2", memory: 1Gi}}}]}}
---
` + "{apiVersion: v1, kind: Service, metadata: {name: bench-berth}, spec: {selector: {app: bench-server}, ports: [" + ports + "]}}\n"

const ports = `{name: sink, port: 5001}, {name: short, port: 5002}, {name: echo, port: 5003}, {name: http, port: 8080}`

// pods makes Berth's pods, and copies this program into them.
func (b *bench) pods(ctx context.Context) error {
	b.undo = append(b.undo, func(ctx context.Context) error {
		_, err := kubectl(ctx, profileAndPods, "delete", "-f", "-", "--ignore-not-found", "--timeout=60s")
		return err
	})
	if _, err := kubectl(ctx, profileAndPods, "apply", "-f", "-"); err != nil {
		return err
	}
	program, err := os.ReadFile(b.self)
	if err != nil {
		return err
	}
	for _, pod := range []string{"bench-client", "bench-server"} {
		if _, err := kubectl(ctx, "", "wait", "--for=condition=Ready", "pod/"+pod, "--timeout=90s"); err != nil {
			return err
		}
		if _, err := kubectl(ctx, string(program), "exec", "-i", pod, "--", "sh", "-c", "cat > /copy && chmod +x /copy && mv /copy /ready"); err != nil {
			return err
		}
	}
	s := &side{name: "Berth", ingressHost: "berth.bench", in: func(ctx context.Context, args ...string) (float64, error) {
		return number(kubectl(ctx, "", append([]string{"exec", "bench-client", "--", "/ready"}, args...)...))
	}}
	if s.server, err = kubectl(ctx, "", "get", "pod", "bench-server", "-o", "jsonpath={.status.podIP}"); err != nil {
		return err
	}
	s.service, err = kubectl(ctx, "", "get", "service", "bench-berth", "-o", "jsonpath={.spec.clusterIP}")
	b.sides = append(b.sides, s)
	return err
}

const plainService = `
{apiVersion: v1, kind: Service, metadata: {name: bench-runc}, spec: {ports: [` + ports + `]}}
---
{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: bench-runc, labels: {kubernetes.io/service-name: bench-runc}}, addressType: IPv4,
  ports: [` + ports + `], endpoints: [{addresses: [%s], conditions: {ready: true}}]}
`

// plain starts runc's containers, each in a network namespace with a link like a pod's, behind the same rules.
func (b *bench) plain(ctx context.Context) error {
	for role, ip := range runcs {
		if err := b.container(ctx, role, ip); err != nil {
			return err
		}
	}
	manifest := fmt.Sprintf(plainService, runcs["server"])
	b.undo = append(b.undo, func(ctx context.Context) error {
		_, err := kubectl(ctx, manifest, "delete", "-f", "-", "--ignore-not-found")
		return err
	})
	if _, err := kubectl(ctx, manifest, "apply", "-f", "-"); err != nil {
		return err
	}
	vip, err := kubectl(ctx, "", "get", "service", "bench-runc", "-o", "jsonpath={.spec.clusterIP}")
	b.sides = append(b.sides, &side{name: "runc", server: runcs["server"], service: vip, ingressHost: "runc.bench",
		in: func(ctx context.Context, args ...string) (float64, error) {
			return number(command(ctx, nil, append([]string{"runc", "--root", b.dir + "/runc", "exec", "client", "/ready"}, args...)...))
		}})
	return err
}

func (b *bench) container(ctx context.Context, role, ip string) error {
	ns, uid := name+"-"+role, name+"-"+role
	link := podnet.HostLink(uid)
	b.undo = append(b.undo, func(ctx context.Context) error {
		_, gone := command(ctx, nil, "runc", "--root", b.dir+"/runc", "delete", "--force", role)
		_, rules := command(ctx, nil, "nft", "delete", "element", "ip", layout.NFTTable, "pods", fmt.Sprintf("{ %s . %s }", link, ip))
		_, space := command(ctx, nil, "ip", "netns", "del", ns)
		return errors.Join(gone, podnet.Del(uid), rules, space)
	})
	if _, err := command(ctx, nil, "ip", "netns", "add", ns); err != nil {
		return err
	}
	mtu := 1500
	if err := podnet.Add(uid, "/run/netns/"+ns, podnet.Config{IP: ip, Gateway: layout.GatewayIP, MTU: mtu}); err != nil {
		return err
	}
	if _, err := command(ctx, nil, "nft", "add", "element", "ip", layout.NFTTable, "pods", fmt.Sprintf("{ %s . %s }", link, ip)); err != nil {
		return err
	}
	bundle := filepath.Join(b.dir, role)
	if err := os.MkdirAll(filepath.Join(bundle, "rootfs"), 0o755); err != nil {
		return err
	}
	if _, err := command(ctx, nil, "cp", b.self, filepath.Join(bundle, "rootfs", "ready")); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(bundle, "config.json"), fmt.Appendf(nil, runcConfig, "/run/netns/"+ns), 0o600); err != nil {
		return err
	}
	// Its output goes nowhere: the container, which stays, would hold a pipe open.
	if err := exec.CommandContext(ctx, "runc", "--root", b.dir+"/runc", "run", "--detach", "--bundle", bundle, role).Run(); err != nil {
		return fmt.Errorf("start a plain container: %w", err)
	}
	return nil
}

// runcConfig is a container of the least that runc asks for. Both serve; the client is entered besides.
const runcConfig = `{"ociVersion": "1.0.2", "root": {"path": "rootfs"}, "process": {"cwd": "/", "args": ["/ready", "serve"], "env": ["PATH=/"], "user": {"uid": 0, "gid": 0}},
 "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
 "linux": {"namespaces": [{"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network", "path": %q}]}}`
