package localcluster

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"time"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/client-go/util/keyutil"

	"github.com/berth-run/berth/internal/layout"
)

const (
	caLife    = 10 * 365 * 24 * time.Hour
	leafLife  = 365 * 24 * time.Hour
	renewLeft = 30 * 24 * time.Hour
)

// authority is a certificate authority in files NAME.crt and NAME.key.
type authority struct {
	cert *x509.Certificate
	key  crypto.Signer
}

// leaf is a certificate to be made: its file name, subject and what it is for.
type leaf struct {
	file, name string
	groups     []string
	dns        []string
	ips        []net.IP
	usages     []x509.ExtKeyUsage
}

var (
	asClient = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	asServer = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}
	asBoth   = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth}
)

// ensurePKI makes what is missing of the cluster's certificates and keys and renews what runs out soon, then writes the
// kubeconfigs that are made from them.
func ensurePKI(dirs layout.Dirs, hostName string) error {
	dir := dirs.PKI()
	for _, d := range []string{dir, filepath.Dir(dirs.AdminKubeconfig())} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return fmt.Errorf("make the directory of certificates: %w", err)
		}
	}
	loopback := net.ParseIP("127.0.0.1")
	apiServer := leaf{file: "apiserver", name: "kube-apiserver", usages: asServer,
		ips: []net.IP{loopback, net.ParseIP(layout.GatewayIP), net.ParseIP(layout.APIServiceIP)},
		dns: []string{"localhost", hostName, "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc." + layout.ClusterDomain}}
	byCA := map[string][]leaf{
		"ca": {apiServer,
			{file: "apiserver-kubelet-client", name: "kube-apiserver-kubelet-client", usages: asClient},
			{file: "admin", name: "berth-admin", groups: []string{"berth:admins"}, usages: asClient},
			{file: "controller-manager", name: "system:kube-controller-manager", usages: asClient},
			{file: "scheduler", name: "system:kube-scheduler", usages: asClient},
			{file: "kube-proxy", name: "system:kube-proxy", usages: asClient},
			{file: "berth-lb", name: "berth:lb", usages: asClient},
			{file: "berth-controller", name: "berth:controller", usages: asClient},
			{file: "berth-host", name: "berth:host:" + hostName, groups: []string{"berth:hosts"}, usages: asClient},
			{file: "webhook", name: "berth-webhook", ips: []net.IP{loopback}, usages: asServer}},
		"front-proxy-ca": {{file: "front-proxy-client", name: "front-proxy-client", usages: asClient}},
		"etcd-ca": {{file: "etcd", name: "etcd", ips: []net.IP{loopback}, usages: asBoth},
			{file: "etcd-client", name: "kube-apiserver", usages: asClient}},
	}
	for name, leaves := range byCA {
		ca, err := ensureCA(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		for _, l := range leaves {
			if err := ensureLeaf(dir, ca, l); err != nil {
				return err
			}
		}
	}
	if err := ensureKey(filepath.Join(dir, "service-account.key")); err != nil {
		return err
	}
	for _, user := range []string{"admin", "controller-manager", "scheduler", "kube-proxy", "berth-lb", "berth-controller", "berth-host"} {
		if err := writeKubeconfig(dirs, user); err != nil {
			return err
		}
	}
	return nil
}

func ensureCA(base string) (*authority, error) {
	if ca, err := loadCA(base); err == nil {
		return ca, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	template := &x509.Certificate{
		Subject: pkix.Name{CommonName: "berth-" + filepath.Base(base)}, NotAfter: time.Now().Add(caLife),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature,
	}
	if err := makeCert(base, template, nil); err != nil {
		return nil, err
	}
	return loadCA(base)
}

func loadCA(base string) (*authority, error) {
	cert, err := loadCert(base + ".crt")
	if err != nil {
		return nil, err
	}
	data, err := os.ReadFile(base + ".key")
	if err != nil {
		return nil, fmt.Errorf("read the CA's key: %w", err)
	}
	key, err := keyutil.ParsePrivateKeyPEM(data)
	if err != nil {
		return nil, fmt.Errorf("%s.key: %w", base, err)
	}
	return &authority{cert, key.(crypto.Signer)}, nil
}

func loadCert(path string) (*x509.Certificate, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read certificate: %w", err)
	}
	block, _ := pem.Decode(data)
	if block == nil {
		return nil, fmt.Errorf("%s is not a PEM certificate; remove it and run `berth up` again", path)
	}
	return x509.ParseCertificate(block.Bytes)
}

func ensureLeaf(dir string, ca *authority, l leaf) error {
	base := filepath.Join(dir, l.file)
	if cert, err := loadCert(base + ".crt"); err == nil && time.Until(cert.NotAfter) > renewLeft &&
		cert.CheckSignatureFrom(ca.cert) == nil && cert.Subject.CommonName == l.name {
		return nil
	}
	return makeCert(base, &x509.Certificate{
		Subject: pkix.Name{CommonName: l.name, Organization: l.groups}, NotAfter: time.Now().Add(leafLife),
		DNSNames: l.dns, IPAddresses: l.ips, ExtKeyUsage: l.usages, KeyUsage: x509.KeyUsageDigitalSignature,
	}, ca)
}

// makeCert makes a key and a certificate, signed by ca or, if that is nil, by itself.
func makeCert(base string, template *x509.Certificate, ca *authority) error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return fmt.Errorf("make a serial number: %w", err)
	}
	template.SerialNumber, template.NotBefore = serial, time.Now().Add(-time.Hour)
	parent, signer := template, crypto.Signer(key)
	if ca != nil {
		parent, signer = ca.cert, ca.key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, key.Public(), signer)
	if err != nil {
		return fmt.Errorf("make certificate %s: %w", base, err)
	}
	if err := writeKey(base+".key", key); err != nil {
		return err
	}
	return writePEM(base+".crt", "CERTIFICATE", der, 0o644)
}

func ensureKey(path string) error {
	if _, err := os.Stat(path); err == nil {
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	return writeKey(path, key)
}

func writeKey(path string, key *ecdsa.PrivateKey) error {
	der, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		return fmt.Errorf("encode a key: %w", err)
	}
	return writePEM(path, "EC PRIVATE KEY", der, 0o600)
}

func writePEM(path, kind string, der []byte, mode os.FileMode) error {
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), mode); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

func writeKubeconfig(dirs layout.Dirs, user string) error {
	read := func(name string) []byte {
		data, err := os.ReadFile(filepath.Join(dirs.PKI(), name))
		if err != nil {
			return nil
		}
		return data
	}
	c := clientcmdapi.NewConfig()
	c.Clusters[layout.DefaultCluster] = &clientcmdapi.Cluster{Server: fmt.Sprintf("https://127.0.0.1:%d", layout.APIServerPort), CertificateAuthorityData: read("ca.crt")}
	c.AuthInfos[user] = &clientcmdapi.AuthInfo{ClientCertificateData: read(user + ".crt"), ClientKeyData: read(user + ".key")}
	c.Contexts[layout.DefaultCluster] = &clientcmdapi.Context{Cluster: layout.DefaultCluster, AuthInfo: user}
	c.CurrentContext = layout.DefaultCluster
	if err := clientcmd.WriteToFile(*c, dirs.Kubeconfig(user)); err != nil {
		return fmt.Errorf("write kubeconfig of %s: %w", user, err)
	}
	return nil
}

// masterCertificate makes a client certificate of group system:masters in memory, good for an hour.
func masterCertificate(dirs layout.Dirs) (cert, key []byte, err error) {
	ca, err := loadCA(filepath.Join(dirs.PKI(), "ca"))
	if err != nil {
		return nil, nil, err
	}
	dir, err := os.MkdirTemp(dirs.PKI(), "bootstrap-")
	if err != nil {
		return nil, nil, fmt.Errorf("make a directory for the bootstrap certificate: %w", err)
	}
	defer os.RemoveAll(dir)
	base := filepath.Join(dir, "master")
	template := &x509.Certificate{Subject: pkix.Name{CommonName: "berth-bootstrap", Organization: []string{"system:masters"}},
		NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: asClient, KeyUsage: x509.KeyUsageDigitalSignature}
	if err := makeCert(base, template, ca); err != nil {
		return nil, nil, err
	}
	if cert, err = os.ReadFile(base + ".crt"); err != nil {
		return nil, nil, err
	}
	key, err = os.ReadFile(base + ".key")
	return cert, key, err
}
