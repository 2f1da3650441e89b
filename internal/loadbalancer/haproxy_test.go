package loadbalancer

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/layout"
)

// run starts a HAProxy for the proxy, as the cluster's supervisor does.
func run(t *testing.T, p *proxy) {
	t.Helper()
	cmd := exec.Command("haproxy", "-W", "-S", p.path(layout.HAProxyMaster)+",mode,600", "-f", p.path(layout.HAProxyConfig))
	if err := cmd.Start(); err != nil {
		t.Fatalf("start haproxy (Debian package haproxy): %v", err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // its worker ends with it
		_ = cmd.Wait()
	})
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, err := p.worker(); err == nil {
			return
		} else if time.Now().After(deadline) {
			t.Fatal(err)
		}
	}
}

// target serves its own name.
func target(t *testing.T, name string) Target {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, name) }))
	t.Cleanup(server.Close)
	at := netip.MustParseAddrPort(server.Listener.Addr().String())
	return Target{at.Addr(), int32(at.Port())}
}

// who answers at the port of loopback.
func who(t *testing.T, port int32) string {
	t.Helper()
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(fmt.Sprintf("http://127.0.0.1:%d/", port))
	if err != nil {
		return err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return err.Error()
	}
	return string(body)
}

func freePort(t *testing.T) int32 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return int32(l.Addr().(*net.TCPAddr).Port)
}

// TestProxy feeds a real HAProxy: targets come and go in the same worker, listeners in another one.
func TestProxy(t *testing.T) {
	p, err := newProxy(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	a, b, port := target(t, "a"), target(t, "b"), freePort(t)
	config := func(targets ...Target) Config {
		return Config{Listeners: []Listener{{Name: "one", Addr: netip.MustParseAddr("127.0.0.1"), Port: port, Targets: targets}}}
	}
	apply := func(c Config) (worker string) {
		t.Helper()
		if err := p.apply(t.Context(), c, nil); err != nil {
			t.Fatal(err)
		}
		worker, err := p.worker()
		if err != nil {
			t.Fatal(err)
		}
		return worker
	}
	answered := func(want string) {
		t.Helper()
		if got := who(t, port); got != want {
			t.Errorf("%q answers, want %q", got, want)
		}
	}
	if err := p.apply(t.Context(), config(a), nil); !errors.Is(err, errNotRunning) {
		t.Errorf("without a HAProxy: %v", err)
	}
	run(t, p)
	answered("a") // it started with what it was given before
	first := apply(config(a))
	for _, step := range []struct {
		targets []Target
		want    string
	}{{[]Target{b}, "b"}, {[]Target{a}, "a"}, {nil, ""}, {[]Target{b}, "b"}} {
		if worker := apply(config(step.targets...)); worker != first {
			t.Errorf("targets %v were given to another worker", step.targets)
		}
		if step.want != "" {
			answered(step.want)
		}
	}
	if len(p.resting) > 1 {
		t.Errorf("%v are never deleted", p.resting)
	}
	if apply(Config{Listeners: []Listener{{Name: "other", Addr: netip.MustParseAddr("127.0.0.1"), Port: port, Targets: []Target{a}}}}) == first {
		t.Error("a new listener is served by the old worker")
	}
	answered("a")
	twice := config(a)
	twice.Listeners = append(twice.Listeners, twice.Listeners[0])
	if err := p.apply(t.Context(), twice, nil); err == nil {
		t.Error("a configuration that HAProxy refuses is no error")
	}
	answered("a")
	again, err := newProxy(p.dir) // this process started anew, HAProxy did not
	if err != nil {
		t.Fatal(err)
	}
	p = again
	apply(config(b))
	answered("b")
}

// TestNoHealthyTarget: when all targets have failed their checks, all are asked all the same.
func TestNoHealthyTarget(t *testing.T) {
	p, err := newProxy(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	run(t, p)
	at, port := freePort(t), freePort(t)
	for name, targets := range map[string][]Target{"told": nil, "read": {{netip.MustParseAddr("127.0.0.1"), at}}} {
		// A new listener is read with its targets; those that come later HAProxy is told of.
		c := Config{Listeners: []Listener{{Name: name, Addr: netip.MustParseAddr("127.0.0.1"), Port: port, Targets: targets}}}
		if err := p.apply(t.Context(), c, nil); err != nil {
			t.Fatal(err)
		}
		c.Listeners[0].Targets = []Target{{netip.MustParseAddr("127.0.0.1"), at}}
		if err := p.apply(t.Context(), c, nil); err != nil {
			t.Fatal(err)
		}
		down := fmt.Sprintf("%s,127.0.0.1:%d,", name, at)
		for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
			stat, err := p.ask(layout.HAProxySocket, "show stat")
			if _, line, _ := strings.Cut(stat, down); err == nil && strings.Contains(strings.SplitN(line, "\n", 2)[0], ",DOWN,") {
				break
			} else if time.Now().After(deadline) {
				t.Fatalf("the target is not seen to be down: %v\n%s", err, stat)
			}
		}
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", at))
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "here") }), ReadHeaderTimeout: time.Second}
		go func() { _ = server.Serve(l) }()
		if got := who(t, port); got != "here" {
			t.Errorf("%s: %q answers", name, got)
		}
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	}
}

// TestAccepts: a certificate that Go takes and HAProxy does not must not reach the configuration.
func TestAccepts(t *testing.T) {
	t.Setenv("GODEBUG", "rsa1024min=0")
	p, err := newProxy(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	short, err := rsa.GenerateKey(rand.Reader, 1024)
	if err != nil {
		t.Fatal(err)
	}
	good, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		key crypto.Signer
		ok  bool
	}{"ECDSA P-256": {good, true}, "RSA with 1024 bits": {short, false}} {
		cert, key := selfSigned(t, tc.key)
		if _, err := tls.X509KeyPair(cert, key); err != nil {
			t.Fatalf("%s: Go refuses it already: %v", name, err)
		}
		for range 2 { // judged, and remembered
			if err := p.accepts(append(cert, key...)); (err == nil) != tc.ok {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

func selfSigned(t *testing.T, key crypto.Signer) (certPEM, keyPEM []byte) {
	t.Helper()
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"shop.example"}}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: cert}), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}
