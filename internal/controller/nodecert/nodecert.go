// Package nodecert approves the certificates that host agents ask for on behalf of their pods' nodes, and only those:
// an agent gets a credential for a node if, and while, a Berth on its own host names that node.
package nodecert

import (
	"context"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"slices"
	"strings"

	certificates "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/berth-run/berth/api/v1alpha1"
)

const (
	// HostUserPrefix begins the user name of a host agent; the host's name follows.
	HostUserPrefix = "berth:host:"
	// HostGroup is the group of all host agents.
	HostGroup = "berth:hosts"

	nodeUserPrefix = "system:node:"
	nodesGroup     = "system:nodes"
	parallel       = 8
)

// Reconciler approves or denies certificate requests of host agents; those of others it leaves alone.
type Reconciler struct {
	Client client.Client
	// Live reads past the cache, for berths that were made a moment ago.
	Live     client.Reader
	Approver kubernetes.Interface
}

// Setup lets the manager run the reconciler.
func (r *Reconciler) Setup(mgr ctrl.Manager) error {
	return ctrl.NewControllerManagedBy(mgr).Named("nodecert").For(&certificates.CertificateSigningRequest{}).
		WithOptions(controller.Options{MaxConcurrentReconciles: parallel}).Complete(r)
}

// Reconcile judges one request.
func (r *Reconciler) Reconcile(ctx context.Context, req reconcile.Request) (reconcile.Result, error) {
	csr := &certificates.CertificateSigningRequest{}
	if err := r.Client.Get(ctx, req.NamespacedName, csr); err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	host, ours := strings.CutPrefix(csr.Spec.Username, HostUserPrefix)
	if !ours || !slices.Contains(csr.Spec.Groups, HostGroup) || len(csr.Status.Conditions) > 0 {
		return reconcile.Result{}, nil
	}
	refusal, err := r.judge(ctx, csr, host)
	if err != nil {
		return reconcile.Result{}, err
	}
	condition := certificates.CertificateSigningRequestCondition{
		Type: certificates.CertificateApproved, Status: corev1.ConditionTrue, Reason: "BerthNode",
		Message: "a Berth on this host names the node", LastUpdateTime: metav1.Now(),
	}
	if refusal != "" {
		condition.Type, condition.Reason, condition.Message = certificates.CertificateDenied, "NotThisHostsNode", refusal
	}
	csr.Status.Conditions = append(csr.Status.Conditions, condition)
	_, err = r.Approver.CertificatesV1().CertificateSigningRequests().UpdateApproval(ctx, csr.Name, csr, metav1.UpdateOptions{})
	if err != nil {
		return reconcile.Result{}, client.IgnoreNotFound(err)
	}
	return reconcile.Result{}, nil
}

// judge says why the request must be denied, or nothing.
func (r *Reconciler) judge(ctx context.Context, csr *certificates.CertificateSigningRequest, host string) (string, error) {
	block, _ := pem.Decode(csr.Spec.Request)
	if block == nil {
		return "the request is not PEM", nil
	}
	req, err := x509.ParseCertificateRequest(block.Bytes)
	if err != nil {
		return "the request does not parse: " + err.Error(), nil //nolint:nilerr // it is the request's fault, and the answer
	}
	node, ok := strings.CutPrefix(req.Subject.CommonName, nodeUserPrefix)
	if !ok || !slices.Equal(req.Subject.Organization, []string{nodesGroup}) {
		return "the subject is not that of a node", nil
	}
	berth, err := r.berthOf(ctx, node, host)
	if err != nil {
		return "", err
	}
	if berth == nil {
		return fmt.Sprintf("no Berth on host %s names node %s", host, node), nil
	}
	if refusal := usages(csr.Spec.SignerName, csr.Spec.Usages); refusal != "" {
		return refusal, nil
	}
	return names(csr.Spec.SignerName, req, berth), nil
}

// usages checks what the key may do: authenticate as a client, or as a server, never both.
func usages(signer string, asked []certificates.KeyUsage) string {
	purpose := map[string]certificates.KeyUsage{
		certificates.KubeAPIServerClientKubeletSignerName: certificates.UsageClientAuth,
		certificates.KubeletServingSignerName:             certificates.UsageServerAuth,
	}[signer]
	if purpose == "" {
		return "host agents may not use signer " + signer
	}
	allowed := []certificates.KeyUsage{certificates.UsageDigitalSignature, certificates.UsageKeyEncipherment, purpose}
	for _, u := range asked {
		if !slices.Contains(allowed, u) {
			return fmt.Sprintf("the usages of signer %s are %v", signer, allowed)
		}
	}
	if !slices.Contains(asked, purpose) {
		return fmt.Sprintf("the usages of signer %s are %v", signer, allowed)
	}
	return ""
}

// names checks what the certificate would be good for.
func names(signer string, req *x509.CertificateRequest, b *v1alpha1.Berth) string {
	switch signer {
	case certificates.KubeAPIServerClientKubeletSignerName:
		if len(req.DNSNames)+len(req.IPAddresses)+len(req.EmailAddresses)+len(req.URIs) > 0 {
			return "a client certificate has no subject alternative names"
		}
	case certificates.KubeletServingSignerName:
		if len(req.EmailAddresses)+len(req.URIs) > 0 || !slices.Equal(req.DNSNames, []string{b.Spec.NodeName}) ||
			len(req.IPAddresses) != 1 || req.IPAddresses[0].String() != b.Spec.IP {
			return fmt.Sprintf("a serving certificate of this node is for %s and %s only", b.Spec.NodeName, b.Spec.IP)
		}
	}
	return ""
}

func (r *Reconciler) berthOf(ctx context.Context, node, host string) (*v1alpha1.Berth, error) {
	for _, reader := range []client.Reader{r.Client, r.Live} {
		var list v1alpha1.BerthList
		if err := reader.List(ctx, &list, client.MatchingFields{v1alpha1.BerthNodeNameField: node}); err != nil {
			return nil, fmt.Errorf("list the berths of node %s: %w", node, err)
		}
		for i, b := range list.Items {
			if b.Spec.HostName == host {
				return &list.Items[i], nil
			}
		}
	}
	return nil, nil
}
