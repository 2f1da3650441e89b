package testkit

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strconv"
	"time"

	"k8s.io/client-go/rest"
)

// pollInterval of readiness checks.
const pollInterval = 50 * time.Millisecond

func (e *Env) start(ctx context.Context, bin string) error {
	var err error
	if e.pki, err = newPKI(e.dir); err != nil {
		return err
	}
	etcd, err := e.startEtcd(ctx, filepath.Join(bin, "etcd"))
	if err != nil {
		return err
	}
	return e.startAPIServer(ctx, filepath.Join(bin, "kube-apiserver"), etcd)
}

func (e *Env) startEtcd(ctx context.Context, program string) (url string, err error) {
	client, err := FreePort()
	if err != nil {
		return "", err
	}
	peer, err := FreePort()
	if err != nil {
		return "", err
	}
	url = "http://" + address(client)
	p, err := run(e.dir, program, "--data-dir", filepath.Join(e.dir, "etcd"), "--unsafe-no-fsync", "--log-level=warn",
		"--listen-client-urls", url, "--advertise-client-urls", url, "--listen-peer-urls", "http://"+address(peer),
		"--initial-advertise-peer-urls", "http://"+address(peer), "--initial-cluster", "default=http://"+address(peer))
	if err != nil {
		return "", err
	}
	e.processes = append(e.processes, p)
	return url, p.wait(ctx, http.DefaultClient, url+"/health")
}

func (e *Env) startAPIServer(ctx context.Context, program, etcd string) error {
	port, err := FreePort()
	if err != nil {
		return err
	}
	p, err := run(e.dir, program,
		"--etcd-servers="+etcd, "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", "--secure-port="+strconv.Itoa(port),
		"--tls-cert-file="+e.pki.servingCert, "--tls-private-key-file="+e.pki.servingKey, "--client-ca-file="+e.pki.caFile,
		"--service-account-issuer=https://kubernetes.default.svc", "--service-account-key-file="+e.pki.servingKey,
		"--service-account-signing-key-file="+e.pki.servingKey, "--service-cluster-ip-range=10.96.0.0/16",
		"--authorization-mode=Node,RBAC", "--anonymous-auth=false", "--allow-privileged=true", "--endpoint-reconciler-type=none",
		// No kube-controller-manager runs here that would make the service accounts.
		"--disable-admission-plugins=ServiceAccount")
	if err != nil {
		return err
	}
	e.processes = append(e.processes, p)
	cert, key, err := e.pki.client("berth:test", []string{"system:masters"})
	if err != nil {
		return err
	}
	e.Config = &rest.Config{
		Host: "https://" + address(port), QPS: -1,
		TLSClientConfig: rest.TLSClientConfig{CAData: e.pki.caPEM, CertData: cert, KeyData: key},
	}
	client, err := rest.HTTPClientFor(e.Config)
	if err != nil {
		return fmt.Errorf("make the API client: %w", err)
	}
	return p.wait(ctx, client, e.Config.Host+"/readyz")
}

// wait returns when the URL answers 200, the process ends or ctx does.
func (p *process) wait(ctx context.Context, client *http.Client, url string) error {
	for {
		if err := p.ended(); err != nil {
			return err
		}
		if answers(ctx, client, url) {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s does not answer at %s: %w; the end of its log:\n%s", p.name, url, ctx.Err(), p.tail())
		case <-time.After(pollInterval):
		}
	}
}

func answers(ctx context.Context, client *http.Client, url string) bool {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return false
	}
	response, err := client.Do(request)
	if err != nil {
		return false
	}
	_ = response.Body.Close() // nothing is read of it
	return response.StatusCode == http.StatusOK
}
