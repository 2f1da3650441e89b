package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/berth-run/berth/test/bench/plain"
)

const (
	name = "bench-net"
	// limit bounds every step of the set-up.
	limit = 2 * time.Minute
	// outsideIP and nearIP are the ends of the link to a machine outside (documentation addresses, RFC 5737).
	outsideIP, nearIP = "203.0.113.9", "203.0.113.1"
)

// addresses are the plain containers' addresses: the last ones of a private subnet, which pods get last. The web server is behind the
// Service and the Ingress, and nobody asks it otherwise: who is asked by two addresses, thousands of times a minute, ignores a
// connection now and then (docs/decisions/20261126-remember-closed-connections.md), and one measurement would spoil another.
var addresses = map[string]string{"client": "10.90.31.253", "server": "10.90.31.254", "web": "10.90.31.252"}

// bench is what was set up.
type bench struct {
	dir, self string
	sides     []*side
	runcs     map[string]*plain.Container // by role
	// web is the address of Ingresses.
	web  string
	undo []func(context.Context) error
}

func setUp(ctx context.Context) (*bench, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", name)
	if err != nil {
		return nil, err
	}
	b := &bench{dir: dir, self: self, runcs: map[string]*plain.Container{}}
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
{apiVersion: v1, kind: Pod, metadata: {name: bench-web, labels: {bench: net, app: bench-web}}, spec: {terminationGracePeriodSeconds: 0, containers: [
  {name: c, image: busybox, command: [sh, -c, "until [ -x /ready ]; do sleep 0.1; done; exec /ready serve"], resources: {requests: {cpu: "2", memory: 1Gi}}}]}}
---
` + "{apiVersion: v1, kind: Service, metadata: {name: bench-berth}, spec: {selector: {app: bench-web}, ports: [" + ports + "]}}\n"

const ports = `{name: sink, port: 5001}, {name: short, port: 5002}, {name: echo, port: 5003}, {name: http, port: 8080}`

// pods makes Berth's pods, and copies this program into them.
func (b *bench) pods(ctx context.Context) error {
	b.undo = append(b.undo, func(ctx context.Context) error {
		_, err := plain.Kubectl(ctx, profileAndPods, "delete", "-f", "-", "--ignore-not-found", "--timeout=60s")
		return err
	})
	if _, err := plain.Kubectl(ctx, profileAndPods, "apply", "-f", "-"); err != nil {
		return err
	}
	program, err := os.ReadFile(b.self)
	if err != nil {
		return err
	}
	for _, pod := range []string{"bench-client", "bench-server", "bench-web"} {
		if _, err := plain.Kubectl(ctx, "", "wait", "--for=condition=Ready", "pod/"+pod, "--timeout=90s"); err != nil {
			return err
		}
		if _, err := plain.Kubectl(ctx, string(program), "exec", "-i", pod, "--", "sh", "-c", "cat > /copy && chmod +x /copy && mv /copy /ready"); err != nil {
			return err
		}
	}
	s := &side{name: "Berth", ingressHost: "berth.bench", in: func(ctx context.Context, args ...string) (float64, error) {
		return number(plain.Kubectl(ctx, "", append([]string{"exec", "bench-client", "--", "/ready"}, args...)...))
	}}
	if s.server, err = plain.Kubectl(ctx, "", "get", "pod", "bench-server", "-o", "jsonpath={.status.podIP}"); err != nil {
		return err
	}
	s.service, err = plain.Kubectl(ctx, "", "get", "service", "bench-berth", "-o", "jsonpath={.spec.clusterIP}")
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
	for role, ip := range addresses {
		if err := b.container(ctx, role, ip); err != nil {
			return err
		}
	}
	manifest := fmt.Sprintf(plainService, addresses["web"])
	b.undo = append(b.undo, func(ctx context.Context) error {
		_, err := plain.Kubectl(ctx, manifest, "delete", "-f", "-", "--ignore-not-found")
		return err
	})
	if _, err := plain.Kubectl(ctx, manifest, "apply", "-f", "-"); err != nil {
		return err
	}
	vip, err := plain.Kubectl(ctx, "", "get", "service", "bench-runc", "-o", "jsonpath={.spec.clusterIP}")
	b.sides = append(b.sides, &side{name: "runc", server: addresses["server"], service: vip, ingressHost: "runc.bench",
		in: func(ctx context.Context, args ...string) (float64, error) {
			return number(b.runcs["client"].Exec(ctx, append([]string{"/ready"}, args...)...))
		}})
	return err
}

func (b *bench) container(ctx context.Context, role, ip string) error {
	c := &plain.Container{Name: name + "-" + role, Dir: b.dir, IP: ip, Args: []string{"/ready", "serve"}, Rootfs: func(ctx context.Context, dir string) error {
		_, err := plain.Command(ctx, nil, "cp", b.self, filepath.Join(dir, "ready"))
		return err
	}}
	b.runcs[role] = c
	b.undo = append(b.undo, c.Remove)
	return c.Start(ctx)
}
