package controller_test

import (
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/rest"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/go-logr/logr"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/controller"
	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/kit/testkit"
)

// env is the API server that all tests of this package share; each test has names of its own.
var env *testkit.Env

func TestMain(m *testing.M) {
	ctrl.SetLogger(logr.Discard())
	os.Exit(testkit.Main(m, &env))
}

const region = "local-1"

// admin is a client without a cache: what a reconciler reads through it is what is there.
func admin(t *testing.T) client.Client { return clientFor(t, env.Config) }

func clientFor(t *testing.T, config *rest.Config) client.Client {
	t.Helper()
	c, err := client.NewWithWatch(config, client.Options{Scheme: controller.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// create creates an object, and at the end of the test takes it away whatever holds it.
func create[T client.Object](t *testing.T, c client.Client, o T) T {
	t.Helper()
	if err := c.Create(t.Context(), o); err != nil {
		t.Fatalf("create %T %s: %v", o, o.GetName(), err)
	}
	t.Cleanup(func() { remove(t, o) })
	return o
}

func remove(t *testing.T, o client.Object) {
	t.Helper()
	c, ctx := admin(t), context.Background()
	key := client.ObjectKeyFromObject(o)
	now := int64(0)
	if err := c.Delete(ctx, o, &client.DeleteOptions{GracePeriodSeconds: &now}); client.IgnoreNotFound(err) != nil {
		t.Errorf("clean up %T %s: %v", o, key, err)
	}
	if _, ok := o.(*corev1.Namespace); ok {
		return // nobody here empties namespaces
	}
	none := client.RawPatch(types.MergePatchType, []byte(`{"metadata":{"finalizers":null}}`))
	if err := c.Patch(ctx, o, none); client.IgnoreNotFound(err) != nil {
		t.Errorf("clean up %T %s: %v", o, key, err)
	}
}

func namespace(t *testing.T, c client.Client) string {
	t.Helper()
	return create(t, c, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{GenerateName: "test-"}}).Name
}

// newSubnet makes a private subnet in zone local-1<suffix>.
func newSubnet(t *testing.T, c client.Client, name, cidr, zone string) *v1alpha1.Subnet {
	t.Helper()
	return create(t, c, &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.SubnetSpec{CIDR: cidr, Zone: zone}})
}

// newHost makes a ready host with room for many pods.
func newHost(t *testing.T, c client.Client, name string, zones ...string) *v1alpha1.Host {
	t.Helper()
	h := create(t, c, &v1alpha1.Host{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.HostSpec{Zones: zones}})
	h.Status = v1alpha1.HostStatus{
		Capacity: corev1.ResourceList{
			corev1.ResourceCPU: resource.MustParse("64"), corev1.ResourceMemory: resource.MustParse("256Gi"), corev1.ResourceEphemeralStorage: resource.MustParse("10Ti"),
		},
		Isolations: []v1alpha1.Isolation{v1alpha1.IsolationGVisor}, HeartbeatTime: metav1.Now(),
		Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Reported", LastTransitionTime: metav1.Now()}},
	}
	if err := c.Status().Update(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	return h
}

func profileSpec(namespace string, subnets ...string) v1alpha1.FargateProfileSpec {
	return v1alpha1.FargateProfileSpec{Subnets: subnets, Selectors: []v1alpha1.Selector{{Namespace: namespace}}}
}

// newProfile makes a profile as the profile controller would leave it.
func newProfile(t *testing.T, c client.Client, name, namespace string, subnets ...string) *v1alpha1.FargateProfile {
	t.Helper()
	p := create(t, c, &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: profileSpec(namespace, subnets...)})
	p.Status = v1alpha1.FargateProfileStatus{Status: v1alpha1.ProfileActive, Subnets: subnets, ObservedGeneration: p.Generation}
	if err := c.Status().Update(t.Context(), p); err != nil {
		t.Fatal(err)
	}
	return p
}

// plainPod is a pod as a user writes it.
func plainPod(namespace, name string) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app", Image: "nginx"}}},
	}
}

// markedPod is a pod as the webhook leaves it.
func markedPod(namespace, name, profile string) *corev1.Pod {
	p := plainPod(namespace, name)
	p.Labels = map[string]string{eks.LabelProfile: profile}
	p.Spec.SchedulerName = eks.SchedulerName
	return p
}

// newBerth makes a Berth as the scheduler would, with both finalizers.
func newBerth(t *testing.T, c client.Client, pod *corev1.Pod, name, host, node, ip string, change ...func(*v1alpha1.Berth)) *v1alpha1.Berth {
	t.Helper()
	b := &v1alpha1.Berth{
		ObjectMeta: metav1.ObjectMeta{Namespace: pod.Namespace, Name: name, Finalizers: []string{v1alpha1.FinalizerPod, v1alpha1.FinalizerHost, v1alpha1.FinalizerNode}},
		Spec: v1alpha1.BerthSpec{
			Pod: v1alpha1.PodReference{Name: pod.Name, UID: pod.UID}, ProfileName: "p", HostName: host, NodeName: node, SubnetName: "s", Zone: "z", IP: ip,
			Size:      v1alpha1.Size{CPU: resource.MustParse("250m"), Memory: resource.MustParse("512Mi"), EphemeralStorage: resource.MustParse("20Gi")},
			Isolation: v1alpha1.IsolationGVisor,
		},
	}
	for _, f := range change {
		f(b)
	}
	return create(t, c, b)
}

func request(o client.Object) reconcile.Request {
	return reconcile.Request{NamespacedName: client.ObjectKeyFromObject(o)}
}

func reconcileOnce(t *testing.T, r reconcile.Reconciler, o client.Object) reconcile.Result {
	t.Helper()
	result, err := r.Reconcile(t.Context(), request(o))
	if err != nil {
		t.Fatalf("reconcile %s: %v", client.ObjectKeyFromObject(o), err)
	}
	return result
}

func get[T client.Object](t *testing.T, c client.Client, o T) T {
	t.Helper()
	if err := c.Get(t.Context(), client.ObjectKeyFromObject(o), o); err != nil {
		t.Fatalf("get %T %s: %v", o, o.GetName(), err)
	}
	return o
}

func gone(t *testing.T, c client.Client, o client.Object) bool {
	t.Helper()
	err := c.Get(t.Context(), client.ObjectKeyFromObject(o), o)
	if client.IgnoreNotFound(err) != nil {
		t.Fatal(err)
	}
	return err != nil
}

// waitFor waits until the condition holds; the time only bounds a failure.
func waitFor(t *testing.T, what string, holds func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if holds() {
			return
		}
	}
	t.Fatal("waited in vain for: " + what)
}

func at(clock *time.Time) func() time.Time { return func() time.Time { return *clock } }

func cidr(i int) string { return fmt.Sprintf("10.91.%d.0/24", i) }
