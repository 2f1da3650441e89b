package e2e

import (
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// everybody asks 30 times, each time over a new connection, and prints who answered.
const everybody = "curl -sS --max-time 30 -H 'Connection: close' '%s?[1-30]' | sort -u"

// TestServices reaches pods through Services of every kind, by name and address, from a pod and from the host.
func TestServices(t *testing.T) {
	apply(t, "services.yaml")
	kubectl(t, "rollout", "status", "deployment/echo", "--timeout=90s")
	kubectl(t, "wait", "--for=condition=Ready", "pod/client", "--timeout=90s")
	client := func(command ...string) string {
		out, _ := berth(append([]string{"kubectl", "exec", "client", "--"}, command...)...)
		return strings.TrimSpace(out)
	}
	pods := strings.Fields(kubectl(t, "get", "pods", "-l", "app=echo", "-o", "jsonpath={.items[*].metadata.name}"))
	ips := strings.Fields(kubectl(t, "get", "pods", "-l", "app=echo", "-o", "jsonpath={.items[*].status.podIP}"))
	for _, url := range []string{"http://echo:8080/", "http://echo.default:8080/", "http://echo.default.svc.cluster.local:8080/", "http://echo-headless/",
		"http://echo-local/", "http://echo-alias:8080/", "http://198.51.100.7/", "http://10.96.0.10:9153/metrics"} {
		eventually(t, func() string {
			if out := client("curl", "-sSf", "--max-time", "5", url); !strings.Contains(out, "echo-") && !strings.Contains(out, "coredns") {
				return url + ": " + out
			}
			return ""
		})
	}
	t.Run("balanced over all pods, sticky where asked for", func(t *testing.T) {
		if out := client("sh", "-c", fmt.Sprintf(everybody, "http://echo:8080/")); out != strings.Join(sorted(pods), "\n") {
			t.Errorf("30 requests were answered by %q, want %q", out, pods)
		}
		if out := client("sh", "-c", fmt.Sprintf(everybody, "http://echo-sticky/")); len(strings.Fields(out)) != 1 {
			t.Errorf("sticky requests were answered by %q", out)
		}
	})
	t.Run("headless names are the pods' addresses", func(t *testing.T) {
		out := client("sh", "-c", "getent ahostsv4 echo-headless | cut -d' ' -f1 | sort -u")
		if strings.Join(sorted(strings.Fields(out)), " ") != strings.Join(sorted(ips), " ") {
			t.Errorf("echo-headless is %q, want %q", out, ips)
		}
	})
	t.Run("dnsConfig, search domains and hostAliases", func(t *testing.T) {
		for name, want := range map[string]string{"alias.example": "192.0.2.9", "kube-dns": "10.96.0.10", "kubernetes": "10.96.0.1"} {
			if out := client("getent", "hosts", name); !strings.HasPrefix(out, want+" ") {
				t.Errorf("%s is %q, want %s", name, out, want)
			}
		}
	})
	t.Run("dnsPolicy", func(t *testing.T) {
		kubectl(t, "wait", "--for=condition=Ready", "pod/own-names", "pod/hosts-names", "--timeout=60s")
		resolvConf := func(pod string) string { return kubectl(t, "exec", pod, "--", "cat", "/etc/resolv.conf") }
		if got := strings.Fields(resolvConf("own-names")); strings.Join(got, " ") != "search own.example nameserver 192.0.2.53 options ndots:2" {
			t.Errorf("with dnsPolicy None it is %q", got)
		}
		host := shell(t, "awk '$1 == \"nameserver\" { print $2 }' /etc/resolv.conf")
		for server := range strings.FieldsSeq(host) {
			if got := resolvConf("hosts-names"); !strings.Contains(got, "nameserver "+server) || strings.Contains(got, "10.96.0.10") {
				t.Errorf("with dnsPolicy Default it is %q, the host has %s", got, server)
			}
		}
	})
	t.Run("environment", func(t *testing.T) {
		if out := client("sh", "-c", "echo $KUBERNETES_SERVICE_HOST:$KUBERNETES_SERVICE_PORT"); out != "10.96.0.1:443" {
			t.Errorf("Service kubernetes is %q in the environment", out)
		}
	})
	t.Run("nobody behind it: refused at once", func(t *testing.T) {
		if out := client("curl", "-sS", "--max-time", "5", "http://nobody/"); !strings.Contains(out, "Couldn't connect") && !strings.Contains(out, "refused") {
			t.Errorf("%s", out)
		}
	})
	t.Run("a pod reaches itself through its Service", func(t *testing.T) {
		if out := kubectl(t, "exec", pods[0], "--", "sh", "-c", fmt.Sprintf(everybody, "http://echo:8080/")); out != strings.Join(sorted(pods), "\n") {
			t.Errorf("it reached %q", out)
		}
	})
	t.Run("from the host", func(t *testing.T) {
		vip := kubectl(t, "get", "service", "echo", "-o", "jsonpath={.spec.clusterIP}:{.spec.ports[0].port}")
		port := kubectl(t, "get", "service", "echo", "-o", "jsonpath={.spec.ports[0].nodePort}")
		for _, address := range []string{vip, "10.90.255.1:" + port} {
			if err := load(address, 5, nil); err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("no request fails while pods are replaced and programs killed", func(t *testing.T) { replaceUnderLoad(t) })
}

// byName asks by name, and looks names up with one try each, until there is a file /stop.
const byName = `RES_OPTIONS="attempts:1 timeout:5"; export RES_OPTIONS
(until [ -e /stop ]; do getent ahostsv4 kubernetes >/dev/null || echo "lookup failed at $(date -u +%T)"; sleep 0.05; done) &
until [ -e /stop ]; do curl -sSf --max-time 8 http://echo:8080/ >/dev/null || echo "request failed at $(date -u +%T)"; sleep 0.1; done
wait; echo asked`

// replaceUnderLoad replaces the pods and every CoreDNS, and kills kube-proxy, while requests and lookups go on.
func replaceUnderLoad(t *testing.T) {
	t.Helper()
	vip := kubectl(t, "get", "service", "echo", "-o", "jsonpath={.spec.clusterIP}:{.spec.ports[0].port}")
	stop, result := make(chan struct{}), make(chan error, 1)
	go func() { result <- load(vip, 1<<20, stop) }()
	names := make(chan string, 1)
	go func() {
		out, _ := berth("kubectl", "exec", "client", "--", "sh", "-c", byName)
		names <- strings.TrimSpace(out)
	}()
	kill(t, partPID("kube-proxy"))
	dns := strings.Fields(kubectl(t, "-n", "kube-system", "get", "pods", "-l", "k8s-app=kube-dns", "-o", "name"))
	kubectl(t, "-n", "kube-system", "delete", dns[0], "--wait=false")
	kubectl(t, "rollout", "restart", "deployment/echo")
	kubectl(t, "rollout", "status", "deployment/echo", "--timeout=120s")
	close(stop)
	if err := <-result; err != nil {
		t.Error(err)
	}
	kubectl(t, "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s")
	kubectl(t, "-n", "kube-system", "rollout", "restart", "deployment/coredns")
	kubectl(t, "-n", "kube-system", "rollout", "status", "deployment/coredns", "--timeout=120s")
	eventually(t, func() string { // the old ones are gone
		if pods := strings.Fields(kubectl(t, "-n", "kube-system", "get", "pods", "-l", "k8s-app=kube-dns", "-o", "name")); len(pods) != 2 {
			return strings.Join(pods, " ")
		}
		return ""
	})
	kubectl(t, "exec", "client", "--", "touch", "/stop")
	if out := <-names; out != "asked" {
		t.Errorf("by name: %s", out)
	}
}

// load asks until stop is closed, at most count times, each time over a new connection; the first failure ends it.
func load(address string, count int, stop <-chan struct{}) error {
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	for n := range count {
		select {
		case <-stop:
			return nil
		default:
		}
		if err := get(client, "http://"+address+"/"); err != nil {
			return fmt.Errorf("request %d to %s: %w", n, address, err)
		}
		time.Sleep(5 * time.Millisecond) // 200 a second at most
	}
	return nil
}

func get(client *http.Client, url string) error {
	resp, err := client.Get(url)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s", resp.Status, body)
	}
	return nil
}

func sorted(words []string) []string { return slices.Sorted(slices.Values(words)) }
