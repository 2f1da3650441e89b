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

// certificateLife is how long a node's certificates are good for; a pod that lives longer is restarted by patching.
const certificateLife = 365 * 24 * 3600 // seconds

// Files of a node's credentials, in its run directory.
const (
	kubeconfigFile  = "kubeconfig"
	servingCertFile = "serving.crt"
	servingKeyFile  = "serving.key"
)

// issuer gets certificates for nodes from the cluster: a request as a CertificateSigningRequest, approved by
// berth-controller because a Berth names the node, signed by kube-controller-manager.
type issuer struct {
	kube      kubernetes.Interface
	apiServer string
	ca        []byte
}

// ensure writes the node's kubeconfig and serving certificate into dir, unless they are there.
func (i *issuer) ensure(ctx context.Context, b *v1alpha1.Berth, dir string) error {
	if _, err := os.Stat(filepath.Join(dir, kubeconfigFile)); err == nil {
		return nil
	}
	var clientCert, clientKey, servingCert, servingKey []byte
	subject := pkix.Name{CommonName: "system:node:" + b.Spec.NodeName, Organization: []string{"system:nodes"}}
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		clientCert, clientKey, err = i.issue(gctx, b, "client", certificates.KubeAPIServerClientKubeletSignerName,
			certificates.UsageClientAuth, &x509.CertificateRequest{Subject: subject})
		return err
	})
	g.Go(func() (err error) {
		servingCert, servingKey, err = i.issue(gctx, b, "serving", certificates.KubeletServingSignerName, certificates.UsageServerAuth,
			&x509.CertificateRequest{Subject: subject, DNSNames: []string{b.Spec.NodeName}, IPAddresses: []net.IP{net.ParseIP(b.Spec.IP)}})
		return err
	})
	if err := g.Wait(); err != nil {
		return err
	}
	for name, data := range map[string][]byte{servingCertFile: servingCert, servingKeyFile: servingKey} {
		if err := os.WriteFile(filepath.Join(dir, name), data, 0o600); err != nil {
			return fmt.Errorf("keep the node's certificate: %w", err)
		}
	}
	config := clientcmdapi.NewConfig()
	config.Clusters["berth"] = &clientcmdapi.Cluster{Server: i.apiServer, CertificateAuthorityData: i.ca}
	config.AuthInfos["node"] = &clientcmdapi.AuthInfo{ClientCertificateData: clientCert, ClientKeyData: clientKey}
	config.Contexts["node"] = &clientcmdapi.Context{Cluster: "berth", AuthInfo: "node"}
	config.CurrentContext = "node"
	if err := clientcmd.WriteToFile(*config, filepath.Join(dir, kubeconfigFile)); err != nil {
		return fmt.Errorf("write the node's kubeconfig: %w", err)
	}
	return nil
}

func (i *issuer) issue(ctx context.Context, b *v1alpha1.Berth, kind, signer string, usage certificates.KeyUsage, template *x509.CertificateRequest) (cert, key []byte, err error) {
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("make a key: %w", err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, template, private)
	if err != nil {
		return nil, nil, fmt.Errorf("make a certificate request: %w", err)
	}
	keyDER, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		return nil, nil, fmt.Errorf("encode the key: %w", err)
	}
	csr := &certificates.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{GenerateName: fmt.Sprintf("berth-%s-%s-", b.UID, kind)},
		Spec: certificates.CertificateSigningRequestSpec{
			Request:           pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der}),
			SignerName:        signer,
			ExpirationSeconds: ptr.To[int32](certificateLife),
			Usages:            []certificates.KeyUsage{certificates.UsageDigitalSignature, usage},
		},
	}
	if cert, err = i.signed(ctx, csr); err != nil {
		return nil, nil, fmt.Errorf("get a %s certificate for node %s: %w", kind, b.Spec.NodeName, err)
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: keyDER}), nil
}

// signed submits the request, waits until it is signed or refused, and removes it.
func (i *issuer) signed(ctx context.Context, csr *certificates.CertificateSigningRequest) ([]byte, error) {
	requests := i.kube.CertificatesV1().CertificateSigningRequests()
	csr, err := requests.Create(ctx, csr, metav1.CreateOptions{})
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
