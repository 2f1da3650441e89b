package hostagent

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	certificates "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/utils/ptr"

	"golang.org/x/sync/errgroup"

	"github.com/berth-run/berth/api/v1alpha1"
)

const (
	// certificateLife is how long a node's certificates are good for.
	certificateLife = 30 * 24 * time.Hour
	// renewLeft is how much of it is left when they are renewed: enough to notice, and mend, an agent that does not run.
	renewLeft = certificateLife / 3
	// renewRetry: what could not be renewed is tried again then.
	renewRetry = time.Hour
	// createLimit is how long the API server may take to accept a request.
	createLimit = 30 * time.Second
)

// Files of a node's credentials, in its run directory. Each of the PEM files holds a certificate and its key, so that both
// change in one step; the kubelet reads them again when they change.
const (
	kubeconfigFile = "kubeconfig"
	clientFile     = "client.pem"
	servingFile    = "serving.pem"
)

// issuer gets certificates for nodes from the cluster: a request as a CertificateSigningRequest, approved by
// berth-controller because a Berth names the node, signed by kube-controller-manager.
type issuer struct {
	kube      kubernetes.Interface
	apiServer string
	ca        []byte
	now       func() time.Time
}

// ensure writes the node's kubeconfig and certificates into dir, unless they are there and good for more than renewLeft. It
// returns when they are to be looked at again.
func (i *issuer) ensure(ctx context.Context, b *v1alpha1.Berth, dir string) (renew time.Time, err error) {
	if renew, err = i.renewal(dir); err == nil && i.now().Before(renew) {
		return renew, nil
	}
	g, gctx := errgroup.WithContext(ctx)
	subject := pkix.Name{CommonName: "system:node:" + b.Spec.NodeName, Organization: []string{"system:nodes"}}
	g.Go(func() error {
		return i.issue(gctx, b, filepath.Join(dir, clientFile), "client", certificates.KubeAPIServerClientKubeletSignerName,
			certificates.UsageClientAuth, &x509.CertificateRequest{Subject: subject})
	})
	g.Go(func() error {
		return i.issue(gctx, b, filepath.Join(dir, servingFile), "serving", certificates.KubeletServingSignerName, certificates.UsageServerAuth,
			&x509.CertificateRequest{Subject: subject, DNSNames: []string{b.Spec.NodeName}, IPAddresses: []net.IP{net.ParseIP(b.Spec.IP)}})
	})
	if err := g.Wait(); err != nil {
		return time.Time{}, err
	}
	if err := i.writeKubeconfig(dir); err != nil {
		return time.Time{}, err
	}
	return i.renewal(dir)
}

// renewal is when the credentials in dir are to be renewed.
func (i *issuer) renewal(dir string) (time.Time, error) {
	var first time.Time
	for _, name := range []string{clientFile, servingFile} {
		data, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return time.Time{}, fmt.Errorf("read the node's certificate: %w", err)
		}
		block, _ := pem.Decode(data)
		if block == nil {
			return time.Time{}, fmt.Errorf("%s in %s is not PEM", name, dir)
		}
		cert, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return time.Time{}, fmt.Errorf("read the node's certificate: %w", err)
		}
		if at := cert.NotAfter.Add(-renewLeft); first.IsZero() || at.Before(first) {
			first = at
		}
	}
	if _, err := os.Stat(filepath.Join(dir, kubeconfigFile)); err != nil {
		return time.Time{}, fmt.Errorf("find the node's kubeconfig: %w", err)
	}
	return first, nil
}

func (i *issuer) writeKubeconfig(dir string) error {
	config := clientcmdapi.NewConfig()
	config.Clusters["berth"] = &clientcmdapi.Cluster{Server: i.apiServer, CertificateAuthorityData: i.ca}
	pair := filepath.Join(dir, clientFile)
	config.AuthInfos["node"] = &clientcmdapi.AuthInfo{ClientCertificate: pair, ClientKey: pair}
	config.Contexts["node"] = &clientcmdapi.Context{Cluster: "berth", AuthInfo: "node"}
	config.CurrentContext = "node"
	if err := clientcmd.WriteToFile(*config, filepath.Join(dir, kubeconfigFile)); err != nil {
		return fmt.Errorf("write the node's kubeconfig: %w", err)
	}
	return nil
}

// issue makes a key, gets a certificate for it and writes both to file.
func (i *issuer) issue(ctx context.Context, b *v1alpha1.Berth, file, kind, signer string, usage certificates.KeyUsage, template *x509.CertificateRequest) error {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, private)
	if err != nil {
		return fmt.Errorf("make a certificate request: %w", err)
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		return fmt.Errorf("encode the key: %w", err)
	}
	csr := &certificates.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: fmt.Sprintf("berth-%s-%s-", b.UID, kind)},
		Spec: certificates.CertificateSigningRequestSpec{
			Request:           pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
			SignerName:        signer,
			ExpirationSeconds: ptr.To(int32(certificateLife.Seconds())),
			Usages:            []certificates.KeyUsage{certificates.UsageDigitalSignature, usage},
		},
	}
	cert, err := i.signed(ctx, csr)
	if err != nil {
		return fmt.Errorf("get a %s certificate for node %s: %w", kind, b.Spec.NodeName, err)
	}
	pair := append(cert, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER})...)
	if err := os.WriteFile(file+".new", pair, 0o600); err != nil {
		return fmt.Errorf("write the node's certificate: %w", err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		return fmt.Errorf("put the node's certificate into place: %w", err)
	}
	return nil
}

// signed submits the request, waits until it is signed or refused, and removes it.
func (i *issuer) signed(ctx context.Context, csr *certificates.CertificateSigningRequest) ([]byte, error) {
	requests := i.kube.CertificatesV1().CertificateSigningRequests()
	// Not cancelled half-way: what was created and whose name is not known could not be removed.
	createCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), createLimit)
	defer cancel()
	csr, err := requests.Create(createCtx, csr, metav1.CreateOptions{})
	if err != nil {
		return nil, err
	}
	defer func() {
		go requests.Delete(context.WithoutCancel(ctx), csr.Name, metav1.DeleteOptions{}) //nolint:errcheck // the cluster's own cleaner takes what is left
	}()
	w, err := requests.Watch(ctx, metav1.ListOptions{
		FieldSelector: fields.OneTermEqualSelector("metadata.name", csr.Name).String(), ResourceVersion: csr.ResourceVersion,
	})
	if err != nil {
		return nil, err
	}
	defer w.Stop()
	for event := range w.ResultChan() {
		if event.Type == watch.Error {
			return nil, apierrors.FromObject(event.Object)
		}
		now, ok := event.Object.(*certificates.CertificateSigningRequest)
		if !ok {
			continue
		}
		for _, c := range now.Status.Conditions {
			if c.Type != certificates.CertificateApproved && c.Status == corev1.ConditionTrue {
				return nil, fmt.Errorf("certificate request %s: %s", c.Type, c.Message)
			}
		}
		if len(now.Status.Certificate) > 0 {
			return now.Status.Certificate, nil
		}
	}
	if ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return nil, fmt.Errorf("the watch of certificate request %s ended before it was signed", csr.Name)
}
