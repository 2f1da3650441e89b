package controller_test

import (
	"crypto/x509"
	"strings"
	"testing"

	certificates "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/berth-run/berth/api/v1alpha1"
)

// hostClient is a client of a host's agent, with the chart's rights and limits. The policy stays for the rest of this package's tests.
func hostClient(t *testing.T, host string) client.Client {
	t.Helper()
	for _, file := range []string{"host-rbac", "host-limits"} {
		if err := env.Create(t.Context(), "charts/berth/templates/"+file+".yaml"); err != nil {
			t.Fatal(err)
		}
	}
	config, err := env.ConfigFor("berth:host:"+host, "berth:hosts")
	if err != nil {
		t.Fatal(err)
	}
	return clientFor(t, config)
}

// limited is what two hosts have: limits-1, whose agent is tried, and limits-2.
type limited struct {
	agent, admin client.Client
	own, other   *v1alpha1.Berth
	leaving      *v1alpha1.Berth // on limits-1, being deleted
	otherHost    *v1alpha1.Host
	ownRequest   *certificates.CertificateSigningRequest
	request      *certificates.CertificateSigningRequest
}

func newLimited(t *testing.T) limited {
	t.Helper()
	c := admin(t)
	ns := namespace(t, c)
	pod := func(name string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: name, UID: types.UID(name)}}
	}
	l := limited{agent: hostClient(t, "limits-1"), admin: c, otherHost: newHost(t, c, "limits-2", "z")}
	l.own = newBerth(t, c, pod("limits-own"), "own", "limits-1", "fargate-ip-10-91-97-4.local-1.compute.internal", "10.91.97.4")
	l.other = newBerth(t, c, pod("limits-other"), "other", "limits-2", "fargate-ip-10-91-97-5.local-1.compute.internal", "10.91.97.5")
	l.leaving = newBerth(t, c, pod("limits-leaving"), "leaving", "limits-1", "fargate-ip-10-91-97-6.local-1.compute.internal", "10.91.97.6")
	if err := c.Delete(t.Context(), l.leaving); err != nil {
		t.Fatal(err)
	}
	l.request, l.ownRequest = certificateRequest(t, "limits-other"), certificateRequest(t, "limits-own")
	create(t, c, l.request)
	if err := l.agent.Create(t.Context(), l.ownRequest); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { remove(t, l.ownRequest) })
	waitFor(t, "the API server to know of the policy", func() bool {
		return apierrors.IsForbidden(l.agent.Update(t.Context(), get(t, c, l.otherHost), client.DryRunAll))
	})
	return l
}

// certificateRequest is one that nodecert leaves alone or denies, whoever makes it.
func certificateRequest(t *testing.T, name string) *certificates.CertificateSigningRequest {
	t.Helper()
	return &certificates.CertificateSigningRequest{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: certificates.CertificateSigningRequestSpec{
		Request: csrPEM(t, &x509.CertificateRequest{Subject: nodeSubject("nobody")}), SignerName: certificates.KubeAPIServerClientKubeletSignerName,
		Usages: []certificates.KeyUsage{certificates.UsageDigitalSignature, certificates.UsageClientAuth},
	}}
}

// TestHostChangesWhatIsItsOwn: what the agent does is allowed.
func TestHostChangesWhatIsItsOwn(t *testing.T) {
	l := newLimited(t)
	ctx := t.Context()
	host := &v1alpha1.Host{ObjectMeta: metav1.ObjectMeta{Name: "limits-1"}}
	if _, err := controllerutil.CreateOrUpdate(ctx, l.agent, host, func() error { host.Spec.Zones = []string{"z"}; return nil }); err != nil {
		t.Fatalf("create its Host: %v", err)
	}
	t.Cleanup(func() { remove(t, host) })
	if _, err := controllerutil.CreateOrUpdate(ctx, l.agent, host, func() error { host.Spec.Zones = []string{"z", "y"}; return nil }); err != nil {
		t.Errorf("change its Host: %v", err)
	}
	before := host.DeepCopy()
	host.Status.HeartbeatTime = metav1.Now()
	if err := l.agent.Status().Patch(ctx, host, client.MergeFrom(before)); err != nil {
		t.Errorf("report: %v", err)
	}
	beforeBerth := l.own.DeepCopy()
	l.own.Status.NodeVersion = "v"
	if err := l.agent.Status().Patch(ctx, l.own, client.MergeFrom(beforeBerth)); err != nil {
		t.Errorf("write the status of its Berth: %v", err)
	}
	if err := l.letGo(t, l.leaving); err != nil {
		t.Errorf("let its Berth go: %v", err)
	}
	if err := l.agent.Delete(ctx, l.ownRequest); err != nil {
		t.Errorf("remove its certificate request: %v", err)
	}
}

// letGo takes the host's finalizer off, and whatever else change does.
func (l limited) letGo(t *testing.T, b *v1alpha1.Berth, change ...func(*v1alpha1.Berth)) error {
	t.Helper()
	get(t, l.admin, b)
	before := b.DeepCopy()
	controllerutil.RemoveFinalizer(b, v1alpha1.FinalizerHost)
	for _, f := range change {
		f(b)
	}
	return l.agent.Patch(t.Context(), b, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
}

// TestHostChangesNothingElse: a machine that was taken over cannot reach into the others.
func TestHostChangesNothingElse(t *testing.T) {
	l := newLimited(t)
	ctx := t.Context()
	const ownHost, ownBerths, ownRequests = "may change its own Host only, not limits-2", "may change the Berths on its own host only; this one is on limits-2", "its own certificate requests only"
	const finalizer = "takes its own finalizer off those that are being deleted; nothing else"
	for name, tc := range map[string]struct {
		do   func() error
		want string
	}{
		"another's Host": {func() error { return l.agent.Update(ctx, get(t, l.admin, l.otherHost)) }, ownHost},
		"another's report": {func() error {
			return l.agent.Status().Patch(ctx, l.otherHost, client.RawPatch(types.MergePatchType, []byte(`{"status":{"address":"10.0.0.66"}}`)))
		}, ownHost},
		"a Host of another name": {func() error {
			return l.agent.Create(ctx, &v1alpha1.Host{ObjectMeta: metav1.ObjectMeta{Name: "limits-2b"}, Spec: v1alpha1.HostSpec{Zones: []string{"z"}}})
		}, "not limits-2b"},
		"the status of another's Berth": {func() error {
			return l.agent.Status().Patch(ctx, l.other, client.RawPatch(types.MergePatchType, []byte(`{"status":{"nodeVersion":"v"}}`)))
		}, ownBerths},
		"another's Berth": {func() error { return l.letGo(t, l.other) }, ownBerths},
		"its Berth's labels": {func() error {
			return l.letGo(t, l.own, func(b *v1alpha1.Berth) { b.Labels = map[string]string{"a": "b"} })
		}, finalizer},
		"its Berth, before its end": {func() error { return l.letGo(t, l.own) }, finalizer},
		"the pod's finalizer": {func() error {
			return l.letGo(t, l.leaving, func(b *v1alpha1.Berth) { controllerutil.RemoveFinalizer(b, v1alpha1.FinalizerPod) })
		}, finalizer},
		"deletes no Berth":               {func() error { return l.agent.Delete(ctx, l.other) }, "cannot delete resource"},
		"another's certificate requests": {func() error { return l.agent.Delete(ctx, l.request) }, ownRequests},
	} {
		if err := tc.do(); !apierrors.IsForbidden(err) || !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s: %v, want %q", name, err, tc.want)
		}
	}
}
