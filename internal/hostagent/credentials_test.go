package hostagent

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	certificates "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/berth-run/berth/api/v1alpha1"
)

// signer does, on the real API server, what berth-controller and kube-controller-manager do with requests: it denies them
// all or approves and signs them.
type signer struct {
	kube kubernetes.Interface
	ca   *x509.Certificate
	key  *ecdsa.PrivateKey
	deny string
}

func startSigner(t *testing.T, deny string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	s := &signer{kube: kubernetes.NewForConfigOrDie(env.Config), key: key, deny: deny}
	if s.ca, err = x509.ParseCertificate(der); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	w, err := s.kube.CertificatesV1().CertificateSigningRequests().Watch(ctx, metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		for event := range w.ResultChan() {
			if csr, ok := event.Object.(*certificates.CertificateSigningRequest); ok && len(csr.Status.Conditions) == 0 {
				if err := s.answer(ctx, csr); err != nil && !apierrors.IsNotFound(err) && ctx.Err() == nil {
					t.Errorf("answer request %s: %v", csr.Name, err)
				}
			}
		}
	}()
	t.Cleanup(func() { cancel(); w.Stop(); <-over })
}

func (s *signer) answer(ctx context.Context, csr *certificates.CertificateSigningRequest) error {
	requests := s.kube.CertificatesV1().CertificateSigningRequests()
	condition := certificates.CertificateSigningRequestCondition{Type: certificates.CertificateApproved, Status: corev1.ConditionTrue, Reason: "Test"}
	if s.deny != "" {
		condition.Type, condition.Message = certificates.CertificateDenied, s.deny
	}
	csr.Status.Conditions = append(csr.Status.Conditions, condition)
	csr, err := requests.UpdateApproval(ctx, csr.Name, csr, metav1.UpdateOptions{})
	if err != nil || s.deny != "" {
		return err
	}
	block, _ := pem.Decode(csr.Spec.Request)
	request, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: request.Subject, DNSNames: request.DNSNames, IPAddresses: request.IPAddresses,
		NotBefore: time.Now().Add(-time.Minute), NotAfter: time.Now().Add(time.Duration(*csr.Spec.ExpirationSeconds) * time.Second)}
	der, err := x509.CreateCertificate(rand.Reader, template, s.ca, request.PublicKey, s.key)
	if err != nil {
		return err
	}
	csr.Status.Certificate = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	_, err = requests.UpdateStatus(ctx, csr, metav1.UpdateOptions{})
	return err
}

func newIssuer() *issuer {
	return &issuer{kube: kubernetes.NewForConfigOrDie(env.Config), apiServer: "https://10.0.0.1:6443", ca: []byte("the CA"), now: time.Now}
}

func certifiedBerth() *v1alpha1.Berth {
	return &v1alpha1.Berth{ObjectMeta: metav1.ObjectMeta{Name: "b", UID: "uid"}, Spec: v1alpha1.BerthSpec{NodeName: "fargate-ip-10-0-0-4", IP: "10.0.0.4"}}
}

// leaf is the certificate of a file that holds it and its key.
func leaf(t *testing.T, file string) *x509.Certificate {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(file, file)
	if err != nil {
		t.Fatal(err)
	}
	return pair.Leaf
}

func noRequestsLeft(t *testing.T) {
	t.Helper()
	requests := kubernetes.NewForConfigOrDie(env.Config).CertificatesV1().CertificateSigningRequests()
	until(t, "the requests are removed", func() bool {
		list, err := requests.List(t.Context(), metav1.ListOptions{})
		return err == nil && len(list.Items) == 0
	})
}

func TestCredentials(t *testing.T) {
	startSigner(t, "")
	i, dir := newIssuer(), t.TempDir()
	renew, err := i.ensure(t.Context(), certifiedBerth(), dir)
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(renew); left > certificateLife-renewLeft || left < certificateLife-renewLeft-time.Minute {
		t.Errorf("they are to be renewed in %s", left)
	}
	client, serving := leaf(t, filepath.Join(dir, clientFile)), leaf(t, filepath.Join(dir, servingFile))
	if client.Subject.CommonName != "system:node:fargate-ip-10-0-0-4" || len(client.Subject.Organization) != 1 || client.Subject.Organization[0] != "system:nodes" {
		t.Errorf("the client is %s", client.Subject)
	}
	for _, name := range []string{"10.0.0.4", "fargate-ip-10-0-0-4"} {
		if err := serving.VerifyHostname(name); err != nil {
			t.Error(err)
		}
	}
	config, err := clientcmd.BuildConfigFromFlags("", filepath.Join(dir, kubeconfigFile))
	if err != nil || config.Host != i.apiServer || string(config.CAData) != "the CA" || config.CertFile != filepath.Join(dir, clientFile) {
		t.Errorf("the kubeconfig says %+v, %v", config, err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(files) != 3 {
		t.Errorf("files: %v, %v", files, err)
	}
	for _, f := range files {
		if info, err := os.Stat(f); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s can be read by others: %v, %v", f, info.Mode(), err)
		}
	}
	noRequestsLeft(t)
}

func TestCredentialsAreRenewedInTime(t *testing.T) {
	startSigner(t, "")
	i, dir := newIssuer(), t.TempDir()
	if _, err := i.ensure(t.Context(), certifiedBerth(), dir); err != nil {
		t.Fatal(err)
	}
	read := func() []byte {
		data, err := os.ReadFile(filepath.Join(dir, clientFile))
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	first := read()
	start := time.Now()
	i.now = func() time.Time { return start.Add(certificateLife - renewLeft - time.Hour) }
	if _, err := i.ensure(t.Context(), certifiedBerth(), dir); err != nil || !bytes.Equal(read(), first) {
		t.Fatalf("renewed too early, or: %v", err)
	}
	i.now = func() time.Time { return start.Add(certificateLife - renewLeft + time.Hour) }
	if _, err := i.ensure(t.Context(), certifiedBerth(), dir); err != nil || bytes.Equal(read(), first) {
		t.Fatalf("not renewed, or: %v", err)
	}
	leaf(t, filepath.Join(dir, clientFile))
	if err := os.WriteFile(filepath.Join(dir, servingFile), []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	i.now = time.Now
	if _, err := i.ensure(t.Context(), certifiedBerth(), dir); err != nil {
		t.Fatalf("a damaged file is not replaced: %v", err)
	}
	leaf(t, filepath.Join(dir, servingFile))
}

func TestDeniedCredentials(t *testing.T) {
	startSigner(t, "no Berth on host h names the node")
	dir := t.TempDir()
	_, err := newIssuer().ensure(t.Context(), certifiedBerth(), dir)
	if err == nil || !strings.Contains(err.Error(), "certificate for node fargate-ip-10-0-0-4: certificate request Denied: no Berth on host h names the node") {
		t.Errorf("got %v", err)
	}
	if files, _ := filepath.Glob(filepath.Join(dir, "*")); len(files) != 0 {
		t.Errorf("files were written: %v", files)
	}
	noRequestsLeft(t)
}

func TestCredentialsThatNobodySigns(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if _, err := newIssuer().ensure(ctx, certifiedBerth(), t.TempDir()); err == nil {
		t.Error("certificates came from nowhere")
	}
	noRequestsLeft(t)
}
