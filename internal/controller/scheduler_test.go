package controller_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/tools/record"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/controller/scheduler"
	"github.com/berth-run/berth/internal/eks"
)

// stage is a scheduler and a place where its pods may run.
type stage struct {
	c         client.Client
	r         *scheduler.Reconciler
	events    *record.FakeRecorder
	clock     time.Time
	namespace string
	profile   *v1alpha1.FargateProfile
}

// newStage makes two subnets in two zones, a host that serves both, and an ACTIVE profile.
func newStage(t *testing.T, name, cidrA, cidrB string) *stage {
	t.Helper()
	c := admin(t)
	s := &stage{c: c, events: record.NewFakeRecorder(100), clock: time.Now(), namespace: namespace(t, c)}
	newSubnet(t, c, name+"-a", cidrA, region+"a")
	newSubnet(t, c, name+"-b", cidrB, region+"b")
	newHost(t, c, name, region+"a", region+"b")
	s.profile = newProfile(t, c, name, s.namespace, name+"-a", name+"-b")
	s.r = scheduler.New(c, s.events, scheduler.NewAddresses(), region)
	s.r.Now = at(&s.clock)
	return s
}

// pod creates a marked pod.
func (s *stage) pod(t *testing.T, name string, change func(*corev1.Pod)) *corev1.Pod {
	t.Helper()
	p := markedPod(s.namespace, name, s.profile.Name)
	if change != nil {
		change(p)
	}
	return create(t, s.c, p)
}

// berth is the pod's, or nil.
func (s *stage) berth(t *testing.T, pod *corev1.Pod) *v1alpha1.Berth {
	t.Helper()
	b := &v1alpha1.Berth{ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: scheduler.BerthName(pod)}}
	if gone(t, s.c, b) {
		return nil
	}
	t.Cleanup(func() { remove(t, b) })
	return b
}

// said takes the events off the recorder.
func (s *stage) said() []string {
	var out []string
	for len(s.events.Events) > 0 {
		out = append(out, <-s.events.Events)
	}
	return out
}

func condition(pod *corev1.Pod) corev1.PodCondition {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled {
			return c
		}
	}
	return corev1.PodCondition{}
}

func TestPodGetsABerthAndIsBound(t *testing.T) {
	s := newStage(t, "bind", cidr(60), cidr(61))
	pod := s.pod(t, "web", func(p *corev1.Pod) {
		p.Annotations = map[string]string{v1alpha1.AnnotationAdmitted: "2026-01-02T03:04:05.678Z", "keep": "me"}
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("400m"), corev1.ResourceMemory: resource.MustParse("1Gi")}
	})
	reconcileOnce(t, s.r, pod)
	get(t, s.c, pod)
	b := s.berth(t, pod)
	if b == nil {
		t.Fatal("the pod has no berth")
	}
	if !metav1.IsControlledBy(b, pod) || ptr.Deref(b.OwnerReferences[0].BlockOwnerDeletion, true) {
		t.Errorf("owner references are %+v, want the pod as controller, not blocking", b.OwnerReferences)
	}
	if !slices.Equal(b.Finalizers, []string{v1alpha1.FinalizerPod, v1alpha1.FinalizerHost, v1alpha1.FinalizerNode}) || b.Labels[eks.LabelProfile] != "bind" {
		t.Errorf("finalizers %v, labels %v", b.Finalizers, b.Labels)
	}
	if b.Annotations[v1alpha1.AnnotationAdmitted] != "2026-01-02T03:04:05.678Z" || b.Annotations[v1alpha1.AnnotationPlaced] == "" {
		t.Errorf("the timeline does not begin in the annotations: %v", b.Annotations)
	}
	if b.Spec.IP != "10.91.60.4" || b.Spec.NodeName != "fargate-ip-10-91-60-4.local-1.compute.internal" ||
		b.Spec.HostName != "bind" || b.Spec.Zone != region+"a" || b.Spec.Isolation != v1alpha1.IsolationGVisor {
		t.Errorf("spec is %+v", b.Spec)
	}
	if pod.Spec.NodeName != b.Spec.NodeName {
		t.Errorf("the pod is on node %q, want %q", pod.Spec.NodeName, b.Spec.NodeName)
	}
	if got := pod.Annotations[eks.AnnotationCapacityProvisioned]; got != "0.5vCPU 2GB" || pod.Annotations["keep"] != "me" {
		t.Errorf("annotations are %v, want CapacityProvisioned 0.5vCPU 2GB and the pod's own", pod.Annotations)
	}
	if got := pod.Annotations["Logging"]; got != "LoggingDisabled: LOGGING_CONFIGMAP_NOT_FOUND" {
		t.Errorf("annotation Logging is %q (facts 2.4)", got)
	}
	want := []string{
		`Warning LoggingDisabled Disabled logging because aws-logging configmap was not found. configmap "aws-logging" not found`, // facts 2.5
		"Normal Scheduled Successfully assigned " + pod.Namespace + "/web to " + b.Spec.NodeName,
	}
	if got := s.said(); !slices.Equal(got, want) {
		t.Errorf("events %q, want %q", got, want)
	}
	version := get(t, s.c, pod).ResourceVersion
	reconcileOnce(t, s.r, pod)
	if get(t, s.c, pod); pod.ResourceVersion != version || len(s.said()) > 0 {
		t.Error("a second look at a bound pod writes or says something")
	}
}

func TestPodsOfAProfileAreSpreadOverItsSubnets(t *testing.T) {
	s := newStage(t, "spread", cidr(62), cidr(63))
	zones := map[string]int{}
	for _, name := range []string{"one", "two", "three", "four"} {
		pod := s.pod(t, name, nil)
		reconcileOnce(t, s.r, pod)
		zones[s.berth(t, pod).Spec.Zone]++
	}
	if zones[region+"a"] != 2 || zones[region+"b"] != 2 {
		t.Errorf("zones are %v, want two pods in each", zones)
	}
	pod := s.pod(t, "pinned", func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{corev1.LabelTopologyZone: region + "b"} })
	reconcileOnce(t, s.r, pod)
	if b := s.berth(t, pod); b == nil || b.Spec.Zone != region+"b" {
		t.Errorf("a pod that asks for zone b has berth %+v", b)
	}
}

func TestBerthThatExistsIsUsedAgain(t *testing.T) {
	s := newStage(t, "retry", cidr(64), cidr(65))
	pod := s.pod(t, "web", nil)
	b := newBerth(t, s.c, pod, scheduler.BerthName(pod), "retry", "fargate-ip-10-91-64-9.local-1.compute.internal", "10.91.64.9")
	reconcileOnce(t, s.r, pod)
	if get(t, s.c, pod); pod.Spec.NodeName != b.Spec.NodeName {
		t.Errorf("the pod is on node %q, want that of the berth that exists, %q", pod.Spec.NodeName, b.Spec.NodeName)
	}
}

func TestBerthThatIsLeavingIsNotUsed(t *testing.T) {
	s := newStage(t, "leaving", cidr(66), cidr(67))
	pod := s.pod(t, "web", nil)
	b := newBerth(t, s.c, pod, scheduler.BerthName(pod), "leaving", "fargate-ip-10-91-66-9.local-1.compute.internal", "10.91.66.9")
	if err := s.c.Delete(t.Context(), b); err != nil {
		t.Fatal(err)
	}
	reconcileOnce(t, s.r, pod)
	if get(t, s.c, pod); pod.Spec.NodeName != "" {
		t.Error("the pod is bound to a node that is being removed")
	}
	remove(t, b)
	reconcileOnce(t, s.r, pod)
	if get(t, s.c, pod); pod.Spec.NodeName == "" || pod.Spec.NodeName == b.Spec.NodeName {
		t.Errorf("the pod is on node %q, want a new one", pod.Spec.NodeName)
	}
}

func TestStaleCacheDoesNotPlaceAPodTwice(t *testing.T) {
	s := newStage(t, "stale", cidr(82), cidr(83))
	pod := s.pod(t, "web", nil)
	early := pod.DeepCopy()
	watching, ok := s.c.(client.WithWatch)
	if !ok {
		t.Fatal("the client cannot watch")
	}
	s.r.Client = interceptor.NewClient(watching, interceptor.Funcs{
		Get: func(ctx context.Context, c client.WithWatch, key client.ObjectKey, o client.Object, opts ...client.GetOption) error {
			switch o := o.(type) {
			case *v1alpha1.Berth:
				return apierrors.NewNotFound(schema.GroupResource{Group: "berth.run", Resource: "berths"}, key.Name)
			case *corev1.Pod:
				if key.Name == early.Name {
					early.DeepCopyInto(o)
					return nil
				}
			}
			return c.Get(ctx, key, o, opts...)
		},
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			if _, ok := list.(*v1alpha1.BerthList); ok {
				return nil
			}
			return c.List(ctx, list, opts...)
		},
	})
	reconcileOnce(t, s.r, pod)
	reconcileOnce(t, s.r, pod)
	if b := s.berth(t, pod); b == nil || b.Spec.IP != "10.91.82.4" {
		t.Errorf("berth %+v, want one in the first subnet", b)
	}
	if said := s.said(); len(said) != 2 {
		t.Errorf("events %q, want those of one binding", said)
	}
	second := s.pod(t, "second", nil)
	reconcileOnce(t, s.r, second)
	if b := s.berth(t, second); b == nil || b.Spec.Zone != region+"b" {
		t.Errorf("berth %+v, want the zone without a pod", b)
	}
}

// TestPodsStayApart: a rule over zones is kept, in words that name it, and other pods decide when it can be met.
func TestPodsStayApart(t *testing.T) {
	s := newStage(t, "apart", cidr(84), cidr(85))
	apart := func(p *corev1.Pod) {
		p.Labels["app"] = "apart"
		p.Spec.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{
			{TopologyKey: corev1.LabelTopologyZone, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "apart"}}}}}}
	}
	first := s.pod(t, "first", apart)
	reconcileOnce(t, s.r, first)
	one := s.berth(t, first)
	second := s.pod(t, "second", apart)
	reconcileOnce(t, s.r, second)
	if two := s.berth(t, second); one == nil || two == nil || one.Spec.Zone == two.Spec.Zone {
		t.Fatalf("berths are %+v and %+v, want two zones", one, two)
	}
	s.said()
	third := s.pod(t, "third", apart)
	reconcileOnce(t, s.r, third)
	const words = "Fargate profile apart cannot satisfy pod's topology spread constraints or pod affinity requirements (zone local-1a, host apart: node(s) didn't match pod anti-affinity rules"
	if said := s.said(); len(said) != 1 || !strings.Contains(said[0], words) || !strings.Contains(said[0], "for pods to come or go") {
		t.Errorf("events %q, want %q", said, words)
	}
	remove(t, first)
	remove(t, one)
	reconcileOnce(t, s.r, third)
	if b := s.berth(t, third); b == nil || b.Spec.Zone != one.Spec.Zone {
		t.Errorf("berth %+v, want the zone that is free again", b)
	}
}

// TestLoggingConfiguration: it is judged in the words of EKS (facts 2.5), and never keeps a pod from running (facts 5.1).
func TestLoggingConfiguration(t *testing.T) {
	s := newStage(t, "logging", cidr(86), cidr(87))
	ns := create(t, s.c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: eks.LoggingNamespace}})
	config := create(t, s.c, &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: eks.LoggingNamespace, Name: eks.LoggingConfigMap}})
	const good = "[OUTPUT]\n    Name es\n    Match *\n"
	for _, tc := range []struct{ name, label, output, annotation, want string }{
		{"no-label", "", good, eks.LoggingInvalid, "Disabled logging for pod due to invalid configmap. namespace aws-observability does not have the label aws-observability: enabled. Please fix the logging configmap."},
		{"wrong", "enabled", strings.Replace(good, "es", "amazon_data_firehose", 1), eks.LoggingInvalid, "Disabled logging for pod due to invalid configmap. amazon_data_firehose is not a supported output plugin. Please fix the logging configmap."},
		{"good", "enabled", good, eks.LoggingNoRouter, "Berth has no log router"},
	} {
		ns.Labels["aws-observability"] = tc.label
		config.Data = map[string]string{"output.conf": tc.output}
		if err := errors.Join(s.c.Update(t.Context(), ns), s.c.Update(t.Context(), config)); err != nil {
			t.Fatal(err)
		}
		pod := s.pod(t, tc.name, nil)
		reconcileOnce(t, s.r, pod)
		s.berth(t, pod)
		if said := s.said(); len(said) != 2 || !strings.HasPrefix(said[0], "Warning LoggingDisabled ") || !strings.Contains(said[0], tc.want) || !strings.Contains(said[0], "Berth has no log router") {
			t.Errorf("%s: events %q, want %q", tc.name, said, tc.want)
		}
		if got := get(t, s.c, pod).Annotations[eks.AnnotationLogging]; got != tc.annotation {
			t.Errorf("%s: annotation Logging is %q, want %q", tc.name, got, tc.annotation)
		}
	}
}

func TestSchedulingGatesAreRespected(t *testing.T) {
	s := newStage(t, "gates", cidr(68), cidr(69))
	pod := s.pod(t, "gated", func(p *corev1.Pod) { p.Spec.SchedulingGates = []corev1.PodSchedulingGate{{Name: "example.com/wait"}} })
	reconcileOnce(t, s.r, pod)
	if s.berth(t, pod) != nil || len(s.said()) > 0 {
		t.Error("a gated pod is placed, or spoken of")
	}
	pod.Spec.SchedulingGates = nil
	if err := s.c.Update(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	reconcileOnce(t, s.r, pod)
	if get(t, s.c, pod); pod.Spec.NodeName == "" {
		t.Error("the pod is not bound though its gate is gone")
	}
}

func TestRefusalsSayWhyOnceAndInTheCondition(t *testing.T) {
	s := newStage(t, "refuse", cidr(70), cidr(71))
	privileged := &corev1.SecurityContext{Privileged: ptr.To(true)}
	for name, tc := range map[string]struct {
		change        func(*corev1.Pod)
		reason, words string
	}{
		"privileged": {func(p *corev1.Pod) { p.Spec.Containers[0].SecurityContext = privileged },
			eks.ReasonUnsupported, "Pod not supported on Fargate: invalid SecurityContext fields: Privileged"},
		"several": {func(p *corev1.Pod) {
			p.Spec.HostNetwork, p.Spec.Containers[0].SecurityContext = true, privileged
			p.Spec.Containers[0].Ports = []corev1.ContainerPort{{ContainerPort: 80, HostPort: 80}}
		}, eks.ReasonUnsupported, "Pod not supported on Fargate: fields not supported: HostNetwork, invalid SecurityContext fields: Privileged, port contains HostIP or HostPort"},
		"too-large": {func(p *corev1.Pod) {
			p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("17")}
		}, eks.ReasonTooLarge, eks.MessageTooLarge},
		"no-claim": {func(p *corev1.Pod) {
			p.Spec.Volumes = []corev1.Volume{{Name: "data", VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "nothing"}}}}
		}, eks.ReasonUnsupported, `volumes not supported: data not supported because: persistentvolumeclaims "nothing" not found`},
		"selector": {func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} }, corev1.PodReasonUnschedulable,
			"MatchNodeSelector failed: Fargate profile refuse cannot satisfy pod's node selector/affinity requirements"},
		"opted-out": {func(p *corev1.Pod) {
			p.Labels, p.Annotations = nil, map[string]string{eks.ComputeTypeKey: eks.ComputeTypeEC2}
		}, corev1.PodReasonUnschedulable, "Pod is not authorized to run on Fargate: it asks for scheduler fargate-scheduler, but annotation eks.amazonaws.com/compute-type: ec2 opts the pod out"},
		"no-such-profile": {func(p *corev1.Pod) { p.Labels[eks.LabelProfile] = "ghost" }, corev1.PodReasonUnschedulable,
			"Misconfigured Fargate Profile: fargate profile ghost"},
	} {
		t.Run(name, func(t *testing.T) {
			pod := s.pod(t, name, tc.change)
			if after := reconcileOnce(t, s.r, pod).RequeueAfter; after <= 0 {
				t.Error("the pod is never judged again")
			}
			get(t, s.c, pod)
			if c := condition(pod); c.Status != corev1.ConditionFalse || c.Reason != tc.reason || !strings.Contains(c.Message, tc.words) {
				t.Errorf("condition PodScheduled is %+v, want False, %s, %q", c, tc.reason, tc.words)
			}
			if said := s.said(); len(said) != 1 || !strings.HasPrefix(said[0], "Warning FailedScheduling ") || !strings.Contains(said[0], tc.words) {
				t.Errorf("events %q, want one with %q", said, tc.words)
			}
			version := pod.ResourceVersion
			reconcileOnce(t, s.r, pod)
			if get(t, s.c, pod); pod.ResourceVersion != version || len(s.said()) > 0 {
				t.Error("the same is written or said again at once")
			}
			if s.berth(t, pod) != nil || pod.Spec.NodeName != "" {
				t.Error("a refused pod is placed")
			}
		})
	}
}

func TestUserCannotWriteTheLabelOfAProfileThatDoesNotSelectThePod(t *testing.T) {
	s := newStage(t, "elsewhere", cidr(72), cidr(73))
	pod := create(t, s.c, markedPod(namespace(t, s.c), "smuggled", "elsewhere"))
	reconcileOnce(t, s.r, pod)
	if get(t, s.c, pod); pod.Spec.NodeName != "" || !strings.Contains(condition(pod).Message, "not authorized") {
		t.Errorf("node %q, condition %+v, want a refusal", pod.Spec.NodeName, condition(pod))
	}
}

func TestLackOfRoomIsSaidOnceThoughItsFiguresChange(t *testing.T) {
	s := newStage(t, "full", cidr(74), cidr(75))
	h := get(t, s.c, &v1alpha1.Host{ObjectMeta: metav1.ObjectMeta{Name: "full"}})
	setMemory := func(memory string) {
		h.Status.Capacity[corev1.ResourceMemory] = resource.MustParse(memory)
		if err := s.c.Status().Update(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	}
	setMemory("300Mi")
	pod := s.pod(t, "waits", nil)
	reconcileOnce(t, s.r, pod)
	if said := s.said(); len(said) != 1 || !strings.Contains(said[0], eks.MessageNoCapacity) {
		t.Errorf("events %q, want one with %q", said, eks.MessageNoCapacity)
	}
	setMemory("301Mi")
	reconcileOnce(t, s.r, pod)
	if said := s.said(); len(said) > 0 {
		t.Errorf("said again: %q", said)
	}
	setMemory("4Gi")
	reconcileOnce(t, s.r, pod)
	if get(t, s.c, pod); pod.Spec.NodeName == "" {
		t.Error("the pod is not bound though there is room now")
	}
	s.berth(t, pod)
}

func TestBothSubnetsExhausted(t *testing.T) {
	s := newStage(t, "small", "10.91.76.0/28", "10.91.76.16/28")
	ips := map[string]bool{}
	for i := range 22 {
		pod := s.pod(t, "p"+string(rune('a'+i)), nil)
		reconcileOnce(t, s.r, pod)
		b := s.berth(t, pod)
		if b == nil || ips[b.Spec.IP] {
			t.Fatalf("pod %d has berth %+v, want one with an address of its own", i, b)
		}
		ips[b.Spec.IP] = true
		s.said()
	}
	pod := s.pod(t, "last", nil)
	reconcileOnce(t, s.r, pod)
	if said := s.said(); len(said) != 1 || !strings.Contains(said[0], "subnet small-a has no free address (0 of 11); subnet small-b has no free address (0 of 11)") {
		t.Errorf("events %q, want the subnets that are exhausted", said)
	}
}

func TestDeletedSubnetGetsNoPodAndItsSuccessorHasItsOwnAddresses(t *testing.T) {
	s := newStage(t, "swap", cidr(77), cidr(78))
	first := s.pod(t, "first", nil)
	reconcileOnce(t, s.r, first)
	b := s.berth(t, first)
	old := get(t, s.c, &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "swap-a"}})
	old.Finalizers = []string{"berth.run/subnet"}
	if err := s.c.Update(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if err := s.c.Delete(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	pin := func(p *corev1.Pod) { p.Spec.NodeSelector = map[string]string{corev1.LabelTopologyZone: region + "a"} }
	second := s.pod(t, "second", pin)
	reconcileOnce(t, s.r, second)
	if s.berth(t, second) != nil {
		t.Error("a pod is placed in a subnet that is being deleted")
	}
	remove(t, first)
	remove(t, b)
	remove(t, old)
	newSubnet(t, s.c, "swap-a", cidr(79), region+"a")
	reconcileOnce(t, s.r, second)
	if b := s.berth(t, second); b == nil || !strings.HasPrefix(b.Spec.IP, "10.91.79.") {
		t.Errorf("berth %+v, want an address of the new subnet", b)
	}
}

func TestExactSizingGivesTheRequest(t *testing.T) {
	s := newStage(t, "exact", cidr(33), cidr(34))
	s.profile.Spec.Sizing = v1alpha1.SizingExact
	if err := s.c.Update(t.Context(), s.profile); err != nil {
		t.Fatal(err)
	}
	pod := s.pod(t, "web", func(p *corev1.Pod) {
		p.Spec.Containers[0].Resources.Requests = corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("333m"), corev1.ResourceMemory: resource.MustParse("300Mi")}
	})
	reconcileOnce(t, s.r, pod)
	b := s.berth(t, pod)
	if b == nil || b.Spec.Size.CPU.String() != "333m" || b.Spec.Size.Memory.String() != "300Mi" {
		t.Errorf("berth %+v, want 333m and 300Mi", b)
	}
	if got := get(t, s.c, pod).Annotations[eks.AnnotationCapacityProvisioned]; got != "0.333vCPU 0.29296875GB" {
		t.Errorf("CapacityProvisioned is %q", got)
	}
}
