package controller_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	admissionregistration "k8s.io/api/admissionregistration/v1"
	certificates "k8s.io/api/certificates/v1"
	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/controller"
	"github.com/berth-run/berth/internal/controller/scheduler"
	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/kit/testkit"
	rules "github.com/berth-run/berth/internal/profile"
)

// runControllers runs the whole process, as user berth:controller with the chart's rights, until the end of the test.
func runControllers(t *testing.T, c client.Client) controller.Options {
	t.Helper()
	if err := env.Create(t.Context(), "charts/berth/templates/controller-rbac.yaml"); err != nil {
		t.Fatal(err)
	}
	user, err := env.ConfigFor("berth:controller")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	o := controller.Options{Kubeconfig: filepath.Join(dir, "kubeconfig"), Region: region, LeaderElect: true, Cluster: "test", Quotas: rules.DefaultQuotas}
	writeKubeconfig(t, user, o.Kubeconfig)
	if o.WebhookCert, o.WebhookKey, o.WebhookCA, err = env.WriteServingCert(dir); err != nil {
		t.Fatal(err)
	}
	for _, port := range []*int{&o.WebhookPort, &o.HealthPort, &o.MetricsPort} {
		if *port, err = testkit.FreePort(); err != nil {
			t.Fatal(err)
		}
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- controller.Run(ctx, o) }()
	hook := &admissionregistration.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: eks.WebhookConfigurationName}}
	t.Cleanup(func() {
		stop()
		if err := <-done; err != nil {
			t.Errorf("the controllers end with %v", err)
		}
		remove(t, hook)
	})
	waitFor(t, "the webhook's registration", func() bool {
		select {
		case err := <-done:
			done <- err
			t.Fatalf("the controllers ended: %v", err)
		default:
		}
		return !gone(t, c, hook)
	})
	checkHook(t, hook.Webhooks[0], fmt.Sprintf("https://127.0.0.1:%d/mutate", o.WebhookPort))
	return o
}

func writeKubeconfig(t *testing.T, config *rest.Config, file string) {
	t.Helper()
	k := api.NewConfig()
	k.Clusters["test"] = &api.Cluster{Server: config.Host, CertificateAuthorityData: config.CAData}
	k.AuthInfos["test"] = &api.AuthInfo{ClientCertificateData: config.CertData, ClientKeyData: config.KeyData}
	k.Contexts["test"] = &api.Context{Cluster: "test", AuthInfo: "test"}
	k.CurrentContext = "test"
	if err := clientcmd.WriteToFile(*k, file); err != nil {
		t.Fatal(err)
	}
}

// checkHook compares with what EKS registers (facts 2.1).
func checkHook(t *testing.T, h admissionregistration.MutatingWebhook, url string) {
	t.Helper()
	rule := h.Rules[0]
	if h.Name != "0500-amazon-eks-fargate-mutation.amazonaws.com" || *h.ClientConfig.URL != url || *h.FailurePolicy != "Ignore" ||
		*h.MatchPolicy != "Equivalent" || *h.ReinvocationPolicy != "Never" || *h.SideEffects != "None" || *h.TimeoutSeconds != 5 ||
		fmt.Sprintf("%v %v %v %v %s", rule.Operations, rule.APIGroups, rule.APIVersions, rule.Resources, *rule.Scope) != "[CREATE] [*] [*] [pods] *" {
		t.Errorf("the webhook is registered as %+v", h)
	}
}

// TestControllersTogether runs the whole process against the API server: webhook, scheduler and all controllers.
func TestControllersTogether(t *testing.T) {
	c := admin(t)
	o := runControllers(t, c)
	newSubnet(t, c, "run-a", cidr(90), region+"a")
	newSubnet(t, c, "run-b", cidr(91), region+"b")
	newHost(t, c, "run", region+"a", region+"b")
	ns := namespace(t, c)
	t.Run("a profile becomes active", func(t *testing.T) { testActivation(t, c, ns) })
	createProfile(t, c, "run", v1alpha1.Selector{Namespace: ns, Labels: map[string]string{"app": "web*"}})
	createProfile(t, c, "run-second", v1alpha1.Selector{Namespace: ns, Labels: map[string]string{"app": "web*"}})
	t.Run("admission", func(t *testing.T) { testAdmission(t, c, ns) })
	t.Run("selectors beyond EKS", func(t *testing.T) { testSelectorsBeyondEKS(t, c) })
	t.Run("a pod's whole life", func(t *testing.T) { testLife(t, c, ns) })
	t.Run("fifty at once", func(t *testing.T) { testBurst(t, c, ns) })
	t.Run("a waiting pod is judged again", func(t *testing.T) { testWaiting(t, c) })
	t.Run("the webhook's registration", func(t *testing.T) { testRegistration(t, c, o) })
	t.Run("metrics", func(t *testing.T) { testMetrics(t, o) })
	t.Run("a pod's RuntimeClass", func(t *testing.T) { testClass(t, c, ns) })
	t.Run("a host's certificates", func(t *testing.T) { testCertificate(t, c, ns) })
}

func createProfile(t *testing.T, c client.Client, name string, selectors ...v1alpha1.Selector) *v1alpha1.FargateProfile {
	t.Helper()
	p := create(t, c, &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.FargateProfileSpec{Selectors: selectors}})
	waitFor(t, "profile "+name+" to be ACTIVE", func() bool { return get(t, c, p).Status.Status == v1alpha1.ProfileActive })
	return p
}

func testActivation(t *testing.T, c client.Client, ns string) {
	p := createProfile(t, c, "run-life", v1alpha1.Selector{Namespace: ns + "-nobody"})
	if fmt.Sprint(p.Status.Subnets) != "[run-a run-b]" {
		t.Errorf("subnets are %v, want all private ones", p.Status.Subnets)
	}
	if err := c.Delete(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the profile to go", func() bool { return gone(t, c, p) })
}

// webPod is a pod as a user writes it, for profile run.
func webPod(ns, name string) *corev1.Pod {
	p := plainPod(ns, name)
	p.Labels = map[string]string{"app": "web-shop"}
	return p
}

func testAdmission(t *testing.T, c client.Client, ns string) {
	for name, tc := range map[string]struct {
		change func(*corev1.Pod)
		want   string // the profile; empty: left alone
	}{
		"matches":          {func(*corev1.Pod) {}, "run"},
		"other-label":      {func(p *corev1.Pod) { p.Labels["app"] = "db" }, ""},
		"no-labels":        {func(p *corev1.Pod) { p.Labels = nil }, ""},
		"forced":           {func(p *corev1.Pod) { p.Labels[eks.LabelProfile] = "run-second" }, "run-second"},
		"forced-elsewhere": {func(p *corev1.Pod) { p.Labels[eks.LabelProfile] = "ghost" }, ""},
		"compute-type-ec2": {func(p *corev1.Pod) { p.Annotations = map[string]string{eks.ComputeTypeKey: eks.ComputeTypeEC2} }, ""},
		"own-annotations":  {func(p *corev1.Pod) { p.Annotations = map[string]string{"example.com/a": "d"} }, "run"},
		"other-scheduler":  {func(p *corev1.Pod) { p.Spec.SchedulerName = "mine" }, ""},
		"daemon-set": {func(p *corev1.Pod) {
			p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "DaemonSet", Name: "d", UID: "d"}}
		}, ""},
		"replica-set": {func(p *corev1.Pod) {
			p.OwnerReferences = []metav1.OwnerReference{{APIVersion: "apps/v1", Kind: "ReplicaSet", Name: "r", UID: "r"}}
		}, "run"},
		"critical-priority": {func(p *corev1.Pod) { p.Spec.PriorityClassName = "system-cluster-critical" }, "run"},
	} {
		pod := webPod(ns, "admit-"+name)
		tc.change(pod)
		priority := pod.Spec.PriorityClassName
		if err := c.Create(t.Context(), pod, client.DryRunAll); err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		marked := pod.Spec.SchedulerName == eks.SchedulerName
		if marked != (tc.want != "") || marked && pod.Labels[eks.LabelProfile] != tc.want {
			t.Errorf("%s: scheduler %s, labels %v, want profile %q", name, pod.Spec.SchedulerName, pod.Labels, tc.want)
		}
		if marked && pod.Annotations[v1alpha1.AnnotationAdmitted] == "" || name == "own-annotations" && pod.Annotations["example.com/a"] != "d" {
			t.Errorf("%s: annotations are %v", name, pod.Annotations)
		}
		if pod.Spec.PriorityClassName != priority || len(pod.Spec.Tolerations) != 2 || len(pod.Spec.NodeSelector) > 0 {
			t.Errorf("%s: priority class %q, tolerations %v, node selector %v: more was changed than scheduler and label",
				name, pod.Spec.PriorityClassName, pod.Spec.Tolerations, pod.Spec.NodeSelector)
		}
	}
}

// testSelectorsBeyondEKS: a profile for the namespaces of a team, but not for pods of tier db.
func testSelectorsBeyondEKS(t *testing.T, c client.Client) {
	team := create(t, c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "team-", Labels: map[string]string{"team": "berth"}}}).Name
	other := namespace(t, c)
	createProfile(t, c, "team", v1alpha1.Selector{
		NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"team": "berth"}},
		MatchExpressions:  []metav1.LabelSelectorRequirement{{Key: "tier", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"db"}}},
	})
	for name, tc := range map[string]struct {
		namespace, tier string
		want            bool
	}{
		"taken": {team, "web", true}, "no label": {team, "", true}, "excluded": {team, "db", false}, "another namespace": {other, "web", false},
	} {
		pod := plainPod(tc.namespace, "tiered")
		pod.Labels = map[string]string{"tier": tc.tier}
		if err := c.Create(t.Context(), pod, client.DryRunAll); err != nil {
			t.Fatal(err)
		}
		if got := pod.Labels[eks.LabelProfile] == "team"; got != tc.want {
			t.Errorf("%s: labels %v, want it taken: %t", name, pod.Labels, tc.want)
		}
	}
}

func berthOf(pod *corev1.Pod) *v1alpha1.Berth {
	return &v1alpha1.Berth{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: scheduler.BerthName(pod)}}
}

// released acts as the host agent: it lets go of a Berth that is being deleted.
func released(t *testing.T, c client.Client, b *v1alpha1.Berth) bool {
	t.Helper()
	if gone(t, c, b) {
		return true
	}
	if b.DeletionTimestamp != nil && controllerutil.RemoveFinalizer(b, v1alpha1.FinalizerHost) {
		_ = c.Update(t.Context(), b) // a conflict: tried again at the next look
	}
	return false
}

func testLife(t *testing.T, c client.Client, ns string) {
	pod := create(t, c, webPod(ns, "life"))
	waitFor(t, "the pod to be bound", func() bool { return get(t, c, pod).Spec.NodeName != "" })
	if pod.Annotations[eks.AnnotationCapacityProvisioned] != "0.25vCPU 0.5GB" {
		t.Errorf("annotations are %v", pod.Annotations)
	}
	b := get(t, c, berthOf(pod))
	if b.Spec.NodeName != pod.Spec.NodeName || b.Annotations[v1alpha1.AnnotationAdmitted] != pod.Annotations[v1alpha1.AnnotationAdmitted] {
		t.Errorf("berth %+v does not belong to pod on %s", b, pod.Spec.NodeName)
	}
	waitFor(t, "the event", func() bool {
		var events corev1.EventList
		if err := c.List(t.Context(), &events, client.InNamespace(ns)); err != nil {
			t.Fatal(err)
		}
		for _, e := range events.Items {
			if e.InvolvedObject.UID == pod.UID && e.Reason == "Scheduled" && e.Source.Component == "fargate-scheduler" {
				return true
			}
		}
		return false
	})
	node := create(t, c, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: pod.Spec.NodeName}})
	// The agent never accepts the berth and no kubelet comes: the pod goes all the same, and everything with it.
	if err := c.Delete(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "pod, berth and node to go", func() bool { return released(t, c, b) && gone(t, c, node) && gone(t, c, pod) })
}

func testBurst(t *testing.T, c client.Client, ns string) {
	const pods = 50
	start := time.Now()
	for i := range pods {
		create(t, c, webPod(ns, fmt.Sprintf("burst-%d", i)))
	}
	var list corev1.PodList
	waitFor(t, "all pods to be bound", func() bool {
		if err := c.List(t.Context(), &list, client.InNamespace(ns), client.MatchingLabels{"app": "web-shop"}); err != nil {
			t.Fatal(err)
		}
		for _, p := range list.Items {
			if p.Spec.NodeName == "" {
				return false
			}
		}
		return len(list.Items) == pods
	})
	t.Logf("%d pods created and bound in %s", pods, time.Since(start).Round(time.Millisecond))
	ips, zones := map[string]bool{}, map[string]int{}
	for i := range list.Items {
		b := get(t, c, berthOf(&list.Items[i]))
		t.Cleanup(func() { remove(t, b) })
		ips[b.Spec.IP] = true
		zones[b.Spec.Zone]++
		if b.Spec.NodeName != list.Items[i].Spec.NodeName {
			t.Errorf("pod %s is on %s, its berth says %s", b.Spec.Pod.Name, list.Items[i].Spec.NodeName, b.Spec.NodeName)
		}
	}
	if len(ips) != pods {
		t.Errorf("%d addresses for %d pods", len(ips), pods)
	}
	if zones[region+"a"] != pods/2 || zones[region+"b"] != pods/2 {
		t.Errorf("zones are %v, want them even", zones)
	}
}

// testWaiting: what a pod waits for leads to it when it changes, long before the retry.
func testWaiting(t *testing.T, c client.Client) {
	bound := func(t *testing.T, pod *corev1.Pod) {
		t.Helper()
		waitFor(t, "pod "+pod.Name+" to be bound", func() bool { return get(t, c, pod).Spec.NodeName != "" })
		b := get(t, c, berthOf(pod))
		t.Cleanup(func() { remove(t, b) })
	}
	waits := func(t *testing.T, pod *corev1.Pod, words string) {
		t.Helper()
		waitFor(t, "pod "+pod.Name+" to wait for "+words, func() bool {
			m := condition(get(t, c, pod)).Message
			return strings.Contains(m, "(waits since ") && strings.Contains(m, words)
		})
	}
	t.Run("for its profile", func(t *testing.T) {
		ns := namespace(t, c)
		named, unnamed := create(t, c, markedPod(ns, "early", "run-late")), plainPod(ns, "unnamed")
		unnamed.Spec.SchedulerName = eks.SchedulerName
		create(t, c, unnamed)
		waits(t, named, "for profile run-late to be ACTIVE")
		waits(t, unnamed, "for a profile that matches")
		createProfile(t, c, "run-late", v1alpha1.Selector{Namespace: ns})
		bound(t, named)
		bound(t, unnamed)
		if unnamed.Labels[eks.LabelProfile] != "run-late" {
			t.Errorf("labels are %v, want the profile's", unnamed.Labels)
		}
	})
	t.Run("for its profile's selectors", func(t *testing.T) {
		ns := namespace(t, c)
		p := createProfile(t, c, "run-narrow", v1alpha1.Selector{Namespace: ns, Labels: map[string]string{"app": "x"}})
		pod := create(t, c, markedPod(ns, "outside", "run-narrow"))
		waits(t, pod, "for the selectors of profile run-narrow")
		before := p.DeepCopy()
		p.Spec.Selectors[0].Labels = nil
		if err := c.Patch(t.Context(), p, client.MergeFrom(before)); err != nil {
			t.Fatal(err)
		}
		bound(t, pod)
	})
	t.Run("for its namespace's labels", func(t *testing.T) {
		ns := get(t, c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace(t, c)}})
		createProfile(t, c, "run-labelled", v1alpha1.Selector{NamespaceSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"run": "labelled"}}})
		pod := create(t, c, markedPod(ns.Name, "unlabelled", "run-labelled"))
		waits(t, pod, "for the selectors of profile run-labelled")
		before := ns.DeepCopy()
		ns.Labels["run"] = "labelled"
		if err := c.Patch(t.Context(), ns, client.MergeFrom(before)); err != nil {
			t.Fatal(err)
		}
		bound(t, pod)
	})
	t.Run("for its claim", func(t *testing.T) { testWaitingForClaim(t, c, waits, bound) })
	t.Run("for room", func(t *testing.T) {
		ns := namespace(t, c)
		newSubnet(t, c, "run-late", cidr(92), region+"late")
		before := createProfile(t, c, "run-room", v1alpha1.Selector{Namespace: ns})
		pod := markedPod(ns, "zonal", before.Name)
		pod.Spec.NodeSelector = map[string]string{corev1.LabelTopologyZone: region + "late"}
		create(t, c, pod)
		waits(t, pod, "for room on a host and an address in a subnet")
		newHost(t, c, "run-late", region+"late")
		bound(t, pod)
	})
}

// testWaitingForClaim: as a provisioner does it, the volume comes first, then the claim's name, then its phase.
func testWaitingForClaim(t *testing.T, c client.Client, waits func(*testing.T, *corev1.Pod, string), bound func(*testing.T, *corev1.Pod)) {
	ns := namespace(t, c)
	createProfile(t, c, "run-claim", v1alpha1.Selector{Namespace: ns})
	pod := markedPod(ns, "db", "run-claim")
	pod.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "data"}}}}
	create(t, c, pod)
	waits(t, pod, "for PersistentVolumeClaim data to be bound")
	size := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	modes := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteMany}
	claim := create(t, c, &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: ns, Name: "data"},
		Spec: corev1.PersistentVolumeClaimSpec{AccessModes: modes, StorageClassName: ptr.To(""), Resources: corev1.VolumeResourceRequirements{Requests: size}}})
	since := condition(get(t, c, pod)).LastTransitionTime
	waitFor(t, "the refusal to name the unbound claim", func() bool {
		return strings.Contains(condition(get(t, c, pod)).Message, "PVC data not bound")
	})
	if now := condition(pod).LastTransitionTime; !now.Equal(&since) {
		t.Errorf("the pod waits since %s, before since %s", now, since)
	}
	volume := create(t, c, &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: ns}, Spec: corev1.PersistentVolumeSpec{AccessModes: modes, Capacity: size,
		PersistentVolumeSource: corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{Server: "nfs.example.com", Path: "/"}}}})
	before := claim.DeepCopy()
	claim.Spec.VolumeName = volume.Name
	if err := c.Patch(t.Context(), claim, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	claim.Status.Phase = corev1.ClaimBound
	if err := c.Status().Update(t.Context(), claim); err != nil {
		t.Fatal(err)
	}
	bound(t, pod)
}

func testCertificate(t *testing.T, c client.Client, ns string) {
	pod := create(t, c, webPod(ns, "certified"))
	b := berthOf(pod)
	waitFor(t, "the berth", func() bool { return !gone(t, c, b) })
	t.Cleanup(func() { remove(t, b) })
	config, err := env.ConfigFor("berth:host:run", "berth:hosts", "system:masters")
	if err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	csr := create(t, clientFor(t, config), &certificates.CertificateSigningRequest{
		ObjectMeta: metav1.ObjectMeta{Name: "run-certified"},
		Spec: certificates.CertificateSigningRequestSpec{
			Request:    csrPEM(t, &x509.CertificateRequest{Subject: nodeSubject(b.Spec.NodeName)}),
			SignerName: certificates.KubeAPIServerClientKubeletSignerName, ExpirationSeconds: ptr.To(int32(3600)),
			Usages: []certificates.KeyUsage{certificates.UsageDigitalSignature, certificates.UsageClientAuth},
		},
	})
	waitFor(t, "the verdict", func() bool { return len(get(t, c, csr).Status.Conditions) > 0 })
	t.Logf("verdict after %s", time.Since(start).Round(time.Millisecond))
	checkVerdict(t, csr, "")
}

// testClass: a pod whose RuntimeClass went after its admission is judged again when there is one.
func testClass(t *testing.T, c client.Client, ns string) {
	class := func() *nodev1.RuntimeClass {
		return create(t, c, &nodev1.RuntimeClass{ObjectMeta: metav1.ObjectMeta{Name: "run-late"}, Handler: "microvm"})
	}
	first := class()
	pod := webPod(ns, "classy")
	pod.Spec.RuntimeClassName = ptr.To(first.Name)
	create(t, c, pod)
	refused := func(want string) func() bool {
		return func() bool { return strings.Contains(condition(get(t, c, pod)).Message, want) }
	}
	notAllowed := refused("runtimeClassName run-late: profile run does not let pods choose their isolation")
	waitFor(t, "the refusal", notAllowed)
	if err := c.Delete(t.Context(), first); err != nil {
		t.Fatal(err)
	}
	pokes, without := 0, refused(" for RuntimeClass run-late)")
	waitFor(t, "the class to be missed", func() bool { // the pod is looked at again and again, until the cache does not have it any more
		pokes++
		poke := client.RawPatch(types.MergePatchType, fmt.Appendf(nil, `{"metadata":{"annotations":{"example.com/poke":"%d"}}}`, pokes))
		return c.Patch(t.Context(), pod, poke) == nil && without()
	})
	class()
	waitFor(t, "another look when there is a class", notAllowed)
}

// testRegistration: what somebody does to the registration is undone, and readiness depends on it.
func testRegistration(t *testing.T, c client.Client, o controller.Options) {
	hook := &admissionregistration.MutatingWebhookConfiguration{ObjectMeta: metav1.ObjectMeta{Name: eks.WebhookConfigurationName}}
	good := func() bool {
		return !gone(t, c, hook) && len(hook.Webhooks) == 2 && *hook.Webhooks[0].FailurePolicy == admissionregistration.Ignore
	}
	waitFor(t, "readiness", func() bool { code, _ := fetch(t, o.HealthPort, "/readyz"); return code == http.StatusOK })
	if _, text := fetch(t, o.HealthPort, "/readyz?verbose"); !strings.Contains(text, "[+]webhook-registration ok") {
		t.Errorf("readyz says\n%s", text)
	}
	uid := get(t, c, hook).UID
	if err := c.Delete(t.Context(), hook); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the registration to be restored", func() bool { return good() && hook.UID != uid })
	fail := admissionregistration.Fail
	hook.Webhooks[0].FailurePolicy = &fail
	if err := c.Update(t.Context(), hook); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "the registration to be corrected", good)
}

func testMetrics(t *testing.T, o controller.Options) {
	_, text := fetch(t, o.MetricsPort, "/metrics")
	for _, want := range []string{"berth_scheduler_pods_bound_total", `berth_scheduler_refusals_total{reason="Unschedulable"}`, `controller_runtime_reconcile_total{controller="berth"`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in /metrics", want)
		}
	}
}

func fetch(t *testing.T, port int, path string) (int, string) {
	t.Helper()
	answer, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d%s", port, path))
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return answer.StatusCode, string(text)
}
