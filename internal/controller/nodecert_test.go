package controller_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"net"
	"strings"
	"testing"

	certificates "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"

	"github.com/berth-run/berth/internal/controller/nodecert"
)

const (
	certNode = "fargate-ip-10-91-80-4.local-1.compute.internal"
	certIP   = "10.91.80.4"
)

func csrPEM(t *testing.T, request *x509.CertificateRequest) []byte {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, request, key)
	if err != nil {
		t.Fatal(err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
}

func nodeSubject(node string) pkix.Name {
	return pkix.Name{CommonName: "system:node:" + node, Organization: []string{"system:nodes"}}
}

func TestNodeCertificatesAreForTheHostsOwnNodesOnly(t *testing.T) {
	c := admin(t)
	kube, err := kubernetes.NewForConfig(env.Config)
	if err != nil {
		t.Fatal(err)
	}
	pod := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace(t, c), Name: "web", UID: "cert"}}
	newBerth(t, c, pod, "cert", "host-1", certNode, certIP)
	serving := func(names []string, ips ...string) *x509.CertificateRequest {
		r := &x509.CertificateRequest{Subject: nodeSubject(certNode), DNSNames: names}
		for _, ip := range ips {
			r.IPAddresses = append(r.IPAddresses, net.ParseIP(ip))
		}
		return r
	}
	client := &x509.CertificateRequest{Subject: nodeSubject(certNode)}
	const clientSigner, servingSigner = certificates.KubeAPIServerClientKubeletSignerName, certificates.KubeletServingSignerName
	clientUsages := []certificates.KeyUsage{certificates.UsageDigitalSignature, certificates.UsageClientAuth}
	servingUsages := []certificates.KeyUsage{certificates.UsageDigitalSignature, certificates.UsageServerAuth}
	for name, tc := range map[string]struct {
		user, group, signer string
		request             *x509.CertificateRequest
		usages              []certificates.KeyUsage
		denied              string // empty: approved; "-": left alone
	}{
		"client":            {"berth:host:host-1", "berth:hosts", clientSigner, client, clientUsages, ""},
		"serving":           {"berth:host:host-1", "berth:hosts", servingSigner, serving([]string{certNode}, certIP), servingUsages, ""},
		"other-host":        {"berth:host:host-2", "berth:hosts", clientSigner, client, clientUsages, "no Berth on host host-2 names node"},
		"unknown-node":      {"berth:host:host-1", "berth:hosts", clientSigner, &x509.CertificateRequest{Subject: nodeSubject("master-1")}, clientUsages, "names node master-1"},
		"not-a-node":        {"berth:host:host-1", "berth:hosts", clientSigner, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "admin", Organization: []string{"system:nodes"}}}, clientUsages, "the subject is not that of a node"},
		"masters":           {"berth:host:host-1", "berth:hosts", clientSigner, &x509.CertificateRequest{Subject: pkix.Name{CommonName: "system:node:" + certNode, Organization: []string{"system:nodes", "other"}}}, clientUsages, "the subject is not that of a node"},
		"client-with-name":  {"berth:host:host-1", "berth:hosts", clientSigner, serving([]string{certNode}), clientUsages, "no subject alternative names"},
		"serving-other-ip":  {"berth:host:host-1", "berth:hosts", servingSigner, serving([]string{certNode}, "10.96.0.1"), servingUsages, "only"},
		"serving-more-ips":  {"berth:host:host-1", "berth:hosts", servingSigner, serving([]string{certNode}, certIP, "10.96.0.1"), servingUsages, "only"},
		"serving-more-dns":  {"berth:host:host-1", "berth:hosts", servingSigner, serving([]string{certNode, "kubernetes"}, certIP), servingUsages, "only"},
		"serving-no-ip":     {"berth:host:host-1", "berth:hosts", servingSigner, serving([]string{certNode}), servingUsages, "only"},
		"client-for-server": {"berth:host:host-1", "berth:hosts", clientSigner, client, servingUsages, "usages"},
		"server-for-client": {"berth:host:host-1", "berth:hosts", servingSigner, serving([]string{certNode}, certIP), clientUsages, "usages"},
		"apiserver-client":  {"berth:host:host-1", "berth:hosts", certificates.KubeAPIServerClientSignerName, client, clientUsages, "may not use signer"},
		"not-in-the-group":  {"berth:host:host-1", "others", clientSigner, client, clientUsages, "-"},
		"a-kubelet":         {"system:node:" + certNode, "system:nodes", clientSigner, client, clientUsages, "-"},
	} {
		t.Run(name, func(t *testing.T) {
			config, err := env.ConfigFor(tc.user, tc.group, "system:masters") // rights to make requests are not the subject here
			if err != nil {
				t.Fatal(err)
			}
			csr := &certificates.CertificateSigningRequest{
				ObjectMeta: metav1.ObjectMeta{Name: "cert-" + name},
				Spec:       certificates.CertificateSigningRequestSpec{Request: csrPEM(t, tc.request), SignerName: tc.signer, Usages: tc.usages},
			}
			create(t, clientFor(t, config), csr)
			reconcileOnce(t, &nodecert.Reconciler{Client: c, Live: c, Approver: kube}, csr)
			get(t, c, csr)
			checkVerdict(t, csr, tc.denied)
		})
	}
}

func checkVerdict(t *testing.T, csr *certificates.CertificateSigningRequest, denied string) {
	t.Helper()
	switch got := csr.Status.Conditions; {
	case denied == "-" && len(got) > 0:
		t.Errorf("judged as %+v, want it left alone", got)
	case denied == "-":
	case len(got) != 1:
		t.Errorf("conditions are %+v, want one", got)
	case denied == "" && got[0].Type != certificates.CertificateApproved:
		t.Errorf("denied: %s", got[0].Message)
	case denied != "" && (got[0].Type != certificates.CertificateDenied || !strings.Contains(got[0].Message, denied)):
		t.Errorf("condition is %+v, want Denied with %q", got[0], denied)
	}
}
