package main

import (
	"context"
	"errors"
	"time"

	"github.com/berth-run/berth/test/bench/plain"
)

const ingresses = `
{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: bench-net}, spec: {ingressClassName: berth, rules: [
  {host: berth.bench, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: bench-berth, port: {name: http}}}}]}},
  {host: runc.bench, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: bench-runc, port: {name: http}}}}]}}]}}
`

// publish makes the Ingress and waits for its address.
func (b *bench) publish(ctx context.Context) error {
	b.undo = append(b.undo, func(ctx context.Context) error {
		_, err := plain.Kubectl(ctx, ingresses, "delete", "-f", "-", "--ignore-not-found")
		return err
	})
	if _, err := plain.Kubectl(ctx, ingresses, "apply", "-f", "-"); err != nil {
		return err
	}
	for b.web == "" {
		var err error
		if b.web, err = plain.Kubectl(ctx, "", "get", "ingress", "bench-net", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}"); err != nil {
			return err
		}
	}
	return nil
}

// beyond makes a machine outside: a network namespace behind a link, which knows the way to the public subnets.
func (b *bench) beyond(ctx context.Context) error {
	b.undo = append(b.undo, func(ctx context.Context) error {
		_, err := plain.Command(ctx, nil, "ip", "netns", "del", name)
		return err
	})
	for _, line := range [][]string{
		{"netns", "add", name}, {"link", "add", name, "type", "veth", "peer", "name", "eth0", "netns", name},
		{"addr", "add", nearIP + "/24", "dev", name}, {"link", "set", name, "up"},
		{"-n", name, "addr", "add", outsideIP + "/24", "dev", "eth0"}, {"-n", name, "link", "set", "eth0", "up"},
		{"-n", name, "route", "add", "default", "via", nearIP},
	} {
		if _, err := plain.Command(ctx, nil, append([]string{"ip"}, line...)...); err != nil {
			return err
		}
	}
	for _, s := range b.sides { // until it is served
		for {
			_, err := b.outside(ctx, "request", b.web, s.ingressHost, "0.01")
			if err == nil {
				break
			}
			if ctx.Err() != nil {
				return errors.Join(err, ctx.Err())
			}
		}
	}
	return nil
}

func (b *bench) outside(ctx context.Context, args ...string) (float64, error) {
	return number(plain.Command(ctx, nil, append([]string{"ip", "netns", "exec", name, b.self}, args...)...))
}

// denyAll isolates Berth's server: policies are for pods. The side says who talks to it.
const denyAll = `{apiVersion: networking.k8s.io/v1, kind: NetworkPolicy, metadata: {name: bench-net}, spec: {podSelector: {matchLabels: {app: bench-server}}, policyTypes: [Ingress]}}`

// deny measures from the request that makes the policy to the last echo of a connection, in milliseconds.
func (b *bench) deny(ctx context.Context, s *side) (float64, error) {
	took, err := b.timed(ctx, s, "pulse", func() error { return policy(ctx, "create") })
	if err := errors.Join(err, policy(ctx, "delete")); err != nil {
		return 0, err
	}
	_, err = s.in(ctx, "open", b.sides[0].server)
	return took, err
}

// allow measures from the request that deletes the policy to the first connection.
func (b *bench) allow(ctx context.Context, s *side) (float64, error) {
	if err := policy(ctx, "create"); err != nil {
		return 0, err
	}
	for {
		took, err := b.timed(ctx, s, "open", func() error { return policy(ctx, "delete") })
		if !errors.Is(err, errEarly) { // it holds
			return took, err
		}
	}
}

func policy(ctx context.Context, verb string) error {
	_, err := plain.Kubectl(ctx, denyAll, verb, "-f", "-")
	return err
}

// errEarly: the client had nothing to wait for.
var errEarly = errors.New("the client was done before the change")

// timed changes something while the side's client watches, and returns what the client tells, from the start of the change.
func (b *bench) timed(ctx context.Context, s *side, what string, change func() error) (float64, error) {
	type answer struct {
		at  float64
		err error
	}
	told, begins := make(chan answer, 1), make(chan error, 1)
	go func() {
		at, err := s.in(ctx, what, b.sides[0].server)
		told <- answer{at, err}
	}()
	waiting, enough := context.WithCancel(ctx)
	defer enough()
	go func() {
		_, err := s.in(waiting, "begun")
		begins <- err
	}()
	select {
	case a := <-told:
		if a.err != nil {
			return 0, a.err
		}
		return 0, errEarly
	case err := <-begins:
		if err != nil {
			return 0, err
		}
	}
	began := millis(time.Now())
	if err := change(); err != nil {
		return 0, err
	}
	a := <-told
	return a.at - began, a.err
}
