package localcluster

import (
	"crypto/x509"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/berth-run/berth/internal/layout"
)

func TestPKI(t *testing.T) {
	dirs := layout.Dirs{State: t.TempDir()}
	if err := ensurePKI(dirs, "machine"); err != nil {
		t.Fatal(err)
	}
	ca, err := loadCert(filepath.Join(dirs.PKI(), "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(ca)
	for file, usage := range map[string]x509.ExtKeyUsage{"apiserver": x509.ExtKeyUsageServerAuth, "admin": x509.ExtKeyUsageClientAuth, "berth-host": x509.ExtKeyUsageClientAuth} {
		cert, err := loadCert(filepath.Join(dirs.PKI(), file+".crt"))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := cert.Verify(x509.VerifyOptions{Roots: pool, KeyUsages: []x509.ExtKeyUsage{usage}}); err != nil {
			t.Errorf("%s: %v", file, err)
		}
	}
	server, err := loadCert(filepath.Join(dirs.PKI(), "apiserver.crt"))
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"localhost", "machine", "kubernetes.default.svc", "127.0.0.1", layout.GatewayIP, layout.APIServiceIP} {
		if err := server.VerifyHostname(name); err != nil {
			t.Errorf("the API server's certificate is not good for %s: %v", name, err)
		}
	}
	agent, err := loadCert(filepath.Join(dirs.PKI(), "berth-host.crt"))
	if err != nil {
		t.Fatal(err)
	}
	if agent.Subject.CommonName != "berth:host:machine" || agent.Subject.Organization[0] != "berth:hosts" {
		t.Errorf("the agent's subject is %s", agent.Subject)
	}
	before, err := os.ReadFile(filepath.Join(dirs.PKI(), "ca.crt"))
	if err != nil {
		t.Fatal(err)
	}
	if err := ensurePKI(dirs, "machine"); err != nil {
		t.Fatal(err)
	}
	if after, err := os.ReadFile(filepath.Join(dirs.PKI(), "ca.crt")); err != nil || string(after) != string(before) {
		t.Error("a second start made another CA")
	}
	if info, err := os.Stat(filepath.Join(dirs.PKI(), "ca.key")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the CA's key can be read by others: %v, %v", info.Mode(), err)
	}
}

func TestCollision(t *testing.T) {
	if _, _, err := net.ParseCIDR(layout.VPCCIDR); err != nil {
		t.Fatal(err)
	}
	if err := collision(); err != nil {
		t.Fatalf("this machine's routes: %v", err)
	}
}
