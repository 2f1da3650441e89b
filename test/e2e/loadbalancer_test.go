package e2e

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestLoadBalancers publishes pods by a Service of type LoadBalancer and by Ingresses, with TLS, while pods are replaced.
func TestLoadBalancers(t *testing.T) {
	dir := t.TempDir()
	certificate(t, dir)
	kubectl(t, "create", "secret", "tls", "shop", "--cert="+filepath.Join(dir, "tls.crt"), "--key="+filepath.Join(dir, "tls.key"))
	t.Cleanup(func() { kubectl(t, "delete", "secret", "shop") })
	apply(t, "loadbalancer.yaml")
	kubectl(t, "rollout", "status", "deployment/shop", "--timeout=90s")
	address := func(object string) (ip string) {
		eventually(t, func() string {
			if ip = kubectl(t, "get", object, "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}"); ip == "" {
				return object + " has no address"
			}
			return ""
		})
		return ip
	}
	nlb, web := address("service/shop"), address("ingress/shop")
	if !strings.HasPrefix(nlb, "10.90.9") || !strings.HasPrefix(web, "10.90.9") || nlb == web {
		t.Errorf("the addresses are %s and %s, not two of the public subnets", nlb, web)
	}
	if other := address("ingress/safe"); other != web {
		t.Errorf("the second Ingress has address %s, not %s", other, web)
	}
	for _, tc := range []struct {
		url, host string
		status    int
		body      string
	}{
		{"http://" + nlb + ":8080/", "", 200, "shop-"},
		{"http://" + web + "/", "shop.example", 200, "shop-"},
		{"https://" + web + "/", "shop.example", 200, "shop-"},
		{"http://" + web + "/", "other.example", 404, "nothing is published at this host and path"},
		{"http://" + web + "/nothing", "shop.example", 503, ""},
		{"http://" + web + "/img/", "safe.example", 301, ""},
		{"https://" + web + "/img/", "safe.example", 200, "shop-"},
		{"https://" + web + "/imgs", "safe.example", 404, ""},
	} {
		eventually(t, func() string {
			status, body, err := ask(tc.url, tc.host)
			if err != nil || status != tc.status || !strings.Contains(body, tc.body) {
				return fmt.Sprintf("%s of %q answers %d, %q, %v; want %d, %q", tc.url, tc.host, status, body, err, tc.status, tc.body)
			}
			return ""
		})
	}
	kubectl(t, "wait", "--for=condition=Ready", "pod/visitor", "--timeout=60s")
	shows(t, "shop-", "exec", "visitor", "--", "wget", "-qO-", "http://"+nlb+":8080/")
	for want, object := range map[string]string{
		"Set annotation service.beta.kubernetes.io/aws-load-balancer-nlb-target-type: ip": "instances",
		"there is no Secret broken": "shop",
		`host "shop.example", path /nothing: there is no Service nothing in namespace default; such requests are answered 503`: "shop",
		"Secret garbled: tls: failed to find any PEM data":                                                                     "safe",
	} {
		shows(t, want, "get", "events", "--field-selector", "involvedObject.name="+object, "-o", "jsonpath={.items[*].message}")
	}
	t.Run("no request fails while pods are replaced", func(t *testing.T) {
		stop, results := make(chan struct{}), make(chan error, 2)
		for _, target := range []string{nlb + ":8080", web} {
			go func() { results <- loadHost(target, "shop.example", stop) }()
		}
		kubectl(t, "rollout", "restart", "deployment/shop")
		kubectl(t, "rollout", "status", "deployment/shop", "--timeout=120s")
		close(stop)
		for range 2 {
			if err := <-results; err != nil {
				t.Error(err)
			}
		}
	})
	t.Run("nobody notices that berth-lb and the agent were killed", func(t *testing.T) {
		stop, result := make(chan struct{}), make(chan error, 1)
		go func() { result <- loadHost(web, "shop.example", stop) }()
		for _, part := range []string{"berth-lb", "berth-host"} {
			before := partPID(part)
			kill(t, before)
			eventually(t, func() string {
				if now := partPID(part); now == before || now == "" || now == "0" {
					return part + " was not started again"
				}
				return ""
			})
		}
		kubectl(t, "scale", "deployment/shop", "--replicas=3") // they work again
		kubectl(t, "rollout", "status", "deployment/shop", "--timeout=90s")
		close(stop)
		if err := <-result; err != nil {
			t.Error(err)
		}
	})
	t.Run("HAProxy is killed and comes back", func(t *testing.T) {
		kill(t, partPID("haproxy"))
		eventually(t, func() string {
			if status, _, err := ask("http://"+web+"/", "shop.example"); status != 200 {
				return fmt.Sprintf("%d, %v", status, err)
			}
			return ""
		})
		if address("service/shop") != nlb {
			t.Error("the Service has another address")
		}
	})
}

// loadHost asks until stop is closed; the first failure ends it.
func loadHost(address, host string, stop <-chan struct{}) error {
	for n := 0; ; n++ {
		select {
		case <-stop:
			return nil
		default:
		}
		if status, body, err := ask("http://"+address+"/", host); err != nil || status != http.StatusOK {
			return fmt.Errorf("request %d to %s: %d, %s, %w", n, address, status, body, err)
		}
		time.Sleep(5 * time.Millisecond) // 200 a second at most
	}
}

// ask asks over a new connection, without following a redirect or checking the certificate.
func ask(url, host string) (int, string, error) {
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: host}}
	client := &http.Client{Timeout: 10 * time.Second, Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	req.Host = host
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(body), err
}

// certificate writes a self-signed one for shop.example to dir.
func certificate(t *testing.T, dir string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"shop.example"}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for name, block := range map[string]*pem.Block{"tls.crt": {Type: "CERTIFICATE", Bytes: cert}, "tls.key": {Type: "PRIVATE KEY", Bytes: der}} {
		if err := os.WriteFile(filepath.Join(dir, name), pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}
