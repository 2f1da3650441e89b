package localcluster

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/berth-run/berth/internal/hostagent/network"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/runtimeconf"
)

// part is one program of the cluster.
type part struct {
	name string
	// program is one of ours or, with its path, the machine's.
	program string
	args    []string
	needs   []string
	// ready is nil when the part answers.
	ready func(ctx context.Context) error
	// limit is how long it may take until it is ready.
	limit time.Duration
	// keepChildren: its children outlive it (containerd's shims, node processes), so it is stopped alone.
	keepChildren bool
}

const authentication = `apiVersion: apiserver.config.k8s.io/v1
kind: AuthenticationConfiguration
anonymous:
  enabled: true
  conditions: [{path: /livez}, {path: /readyz}, {path: /healthz}]
`

// makeParts writes the parts' configuration and lists them, in order of need.
func makeParts(dirs layout.Dirs, binDir, hostName string, settings Settings) ([]part, error) {
	registryConfig, err := runtimeconf.WriteRegistry(dirs)
	if err != nil {
		return nil, err
	}
	containerdConfig, err := runtimeconf.WriteContainerd(dirs, binDir)
	if err != nil {
		return nil, err
	}
	authFile := filepath.Join(dirs.Config(), "authentication.yaml")
	if err := os.WriteFile(authFile, []byte(authentication), 0o600); err != nil {
		return nil, fmt.Errorf("write %s: %w", authFile, err)
	}
	https := func(port int, path string) func(context.Context) error {
		return answers(dirs, fmt.Sprintf("https://127.0.0.1:%d%s", port, path))
	}
	http := func(port int, path string) func(context.Context) error {
		return answers(dirs, fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
	}
	haproxy, err := exec.LookPath("haproxy")
	if err != nil {
		return nil, fmt.Errorf("find haproxy: %w", err)
	}
	zones := []string{layout.DefaultRegion + "a", layout.DefaultRegion + "b", layout.DefaultRegion + "c"}
	pki := func(name string) string { return filepath.Join(dirs.PKI(), name) }
	return []part{
		{name: "etcd", program: "etcd", args: etcdArgs(dirs), ready: etcdReady(dirs), limit: 60 * time.Second},
		{name: "registry", program: "registry", args: []string{"serve", registryConfig}, ready: http(layout.RegistryPort, "/"), limit: 30 * time.Second},
		{name: "containerd", program: "containerd", args: []string{"--config", containerdConfig}, ready: listens(dirs.ContainerdSocket()), limit: 60 * time.Second, keepChildren: true},
		{name: "kube-apiserver", program: "kube-apiserver", args: apiServerArgs(dirs, authFile), needs: []string{"etcd"}, ready: https(layout.APIServerPort, "/readyz"), limit: 120 * time.Second},
		{name: "kube-controller-manager", program: "kube-controller-manager", args: controllerManagerArgs(dirs), needs: []string{"kube-apiserver"}, ready: https(layout.ControllerManagerPort, "/healthz"), limit: 60 * time.Second},
		{name: "kube-scheduler", program: "kube-scheduler", args: schedulerArgs(dirs), needs: []string{"kube-apiserver"}, ready: https(layout.SchedulerPort, "/healthz"), limit: 60 * time.Second},
		{name: "berth-controller", program: "berth-controller", needs: []string{"kube-apiserver", bootstrapStep}, ready: http(layout.ControllerHealthPort, "/readyz"), limit: 60 * time.Second,
			args: []string{"--kubeconfig=" + dirs.Kubeconfig("berth-controller"), "--region=" + layout.DefaultRegion, "--leader-elect=false", "--isolation=" + string(settings.Isolation),
				"--webhook-cert=" + pki("webhook.crt"), "--webhook-key=" + pki("webhook.key"), "--webhook-ca=" + pki("ca.crt")}},
		{name: "kube-proxy", program: "berth-proxy", needs: []string{"kube-apiserver", bootstrapStep}, ready: http(layout.ProxyHealthPort, "/healthz"), limit: 60 * time.Second,
			args: []string{"--kubeconfig=" + dirs.Kubeconfig("kube-proxy"), "--host-name=" + hostName, "--address=" + hostAddress()}},
		{name: "berth-lb", program: "berth-lb", needs: []string{"kube-apiserver", bootstrapStep}, ready: http(layout.LBHealthPort, "/readyz"), limit: 60 * time.Second,
			args: []string{"--kubeconfig=" + dirs.Kubeconfig("berth-lb"), "--run-dir=" + dirs.LoadBalancer(), "--default"}},
		// A part of its own, so that its connections outlive berth-lb, which writes its configuration before it is ready.
		{name: "haproxy", program: haproxy, needs: []string{"berth-lb"}, ready: listens(filepath.Join(dirs.LoadBalancer(), layout.HAProxySocket)), limit: 30 * time.Second,
			args: []string{"-W", "-S", filepath.Join(dirs.LoadBalancer(), layout.HAProxyMaster) + ",mode,600", "-f", filepath.Join(dirs.LoadBalancer(), layout.HAProxyConfig)}},
		{name: "berth-host", program: "berth-host", needs: []string{"kube-apiserver", "containerd", bootstrapStep}, ready: http(layout.AgentHealthPort, "/readyz"), limit: 60 * time.Second, keepChildren: true,
			args: []string{"--kubeconfig=" + dirs.Kubeconfig("berth-host"), "--host-name=" + hostName, "--zones=" + strings.Join(zones, ","),
				"--region=" + layout.DefaultRegion, "--cluster-dns=" + layout.DNSServiceIP, "--bin-dir=" + binDir, "--client-ca=" + pki("ca.crt"),
				"--state-dir=" + dirs.State, "--run-dir=" + dirs.Run, "--log-dir=" + dirs.Log}},
	}, nil
}

// hostAddress is by which others reach this machine; one without a way out is reached from its own pods only.
func hostAddress() string {
	if _, address := network.Uplink(); address != "" {
		return address
	}
	return layout.GatewayIP
}

func etcdArgs(dirs layout.Dirs) []string {
	p := func(name string) string { return filepath.Join(dirs.PKI(), name) }
	client, peer := fmt.Sprintf("https://127.0.0.1:%d", layout.EtcdPort), fmt.Sprintf("https://127.0.0.1:%d", layout.EtcdPeerPort)
	return []string{
		"--name=berth", "--data-dir=" + dirs.Etcd(), "--log-level=warn",
		"--listen-client-urls=" + client, "--advertise-client-urls=" + client,
		"--listen-peer-urls=" + peer, "--initial-advertise-peer-urls=" + peer, "--initial-cluster=berth=" + peer,
		"--cert-file=" + p("etcd.crt"), "--key-file=" + p("etcd.key"), "--client-cert-auth", "--trusted-ca-file=" + p("etcd-ca.crt"),
		"--peer-cert-file=" + p("etcd.crt"), "--peer-key-file=" + p("etcd.key"), "--peer-client-cert-auth", "--peer-trusted-ca-file=" + p("etcd-ca.crt"),
		"--auto-compaction-retention=1h", "--quota-backend-bytes=8589934592",
	}
}

func apiServerArgs(dirs layout.Dirs, authFile string) []string {
	p := func(name string) string { return filepath.Join(dirs.PKI(), name) }
	return []string{
		fmt.Sprintf("--etcd-servers=https://127.0.0.1:%d", layout.EtcdPort),
		"--etcd-cafile=" + p("etcd-ca.crt"), "--etcd-certfile=" + p("etcd-client.crt"), "--etcd-keyfile=" + p("etcd-client.key"),
		fmt.Sprintf("--secure-port=%d", layout.APIServerPort), "--advertise-address=" + layout.GatewayIP,
		"--tls-cert-file=" + p("apiserver.crt"), "--tls-private-key-file=" + p("apiserver.key"), "--client-ca-file=" + p("ca.crt"),
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction", "--authentication-config=" + authFile,
		"--service-cluster-ip-range=" + layout.ServiceCIDR,
		"--service-account-issuer=https://kubernetes.default.svc." + layout.ClusterDomain,
		"--service-account-key-file=" + p("service-account.key"), "--service-account-signing-key-file=" + p("service-account.key"),
		"--kubelet-client-certificate=" + p("apiserver-kubelet-client.crt"), "--kubelet-client-key=" + p("apiserver-kubelet-client.key"),
		"--kubelet-certificate-authority=" + p("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
		"--requestheader-client-ca-file=" + p("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-", "--requestheader-group-headers=X-Remote-Group", "--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file=" + p("front-proxy-client.crt"), "--proxy-client-key-file=" + p("front-proxy-client.key"),
		"--enable-aggregator-routing=true", "--profiling=false", "--allow-privileged=true",
	}
}

func controllerManagerArgs(dirs layout.Dirs) []string {
	p := func(name string) string { return filepath.Join(dirs.PKI(), name) }
	kubeconfig := dirs.Kubeconfig("controller-manager")
	return []string{
		"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", layout.ControllerManagerPort), "--leader-elect=false",
		"--use-service-account-credentials=true", "--service-account-private-key-file=" + p("service-account.key"), "--root-ca-file=" + p("ca.crt"),
		"--cluster-signing-cert-file=" + p("ca.crt"), "--cluster-signing-key-file=" + p("ca.key"), "--cluster-name=" + layout.DefaultCluster,
		"--allocate-node-cidrs=false", "--profiling=false", "--kube-api-qps=200", "--kube-api-burst=400",
	}
}

func schedulerArgs(dirs layout.Dirs) []string {
	kubeconfig := dirs.Kubeconfig("scheduler")
	return []string{
		"--kubeconfig=" + kubeconfig, "--authentication-kubeconfig=" + kubeconfig, "--authorization-kubeconfig=" + kubeconfig,
		"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", layout.SchedulerPort), "--leader-elect=false", "--profiling=false",
	}
}

// answers is nil when the URL answers 200. The parts' own certificates are not checked: this is loopback, and the answer
// is not used.
func answers(_ layout.Dirs, url string) func(context.Context) error {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	return func(ctx context.Context) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("%s answers %s", url, resp.Status)
		}
		return nil
	}
}

func etcdReady(dirs layout.Dirs) func(context.Context) error {
	return func(ctx context.Context) error {
		pair, err := tls.LoadX509KeyPair(filepath.Join(dirs.PKI(), "etcd-client.crt"), filepath.Join(dirs.PKI(), "etcd-client.key"))
		if err != nil {
			return err
		}
		ca, err := os.ReadFile(filepath.Join(dirs.PKI(), "etcd-ca.crt"))
		if err != nil {
			return err
		}
		pool := x509.NewCertPool()
		pool.AppendCertsFromPEM(ca)
		client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true,
			TLSClientConfig: &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}}}}
		resp, err := client.Get(fmt.Sprintf("https://127.0.0.1:%d/readyz", layout.EtcdPort))
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if resp.StatusCode != http.StatusOK {
			return fmt.Errorf("etcd answers %s", resp.Status)
		}
		return nil
	}
}

func listens(socket string) func(context.Context) error {
	return func(ctx context.Context) error {
		conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", socket)
		if err != nil {
			return err
		}
		return conn.Close()
	}
}
