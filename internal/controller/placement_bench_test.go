package controller_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/record"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/controller"
	"github.com/berth-run/berth/internal/controller/scheduler"
)

// BenchmarkPlacement places pods one after another, from the pod in the cache to its binding, among the berths of others.
func BenchmarkPlacement(b *testing.B) {
	ctx := b.Context()
	direct, err := client.New(env.Config, client.Options{Scheme: controller.Scheme()})
	if err != nil {
		b.Fatal(err)
	}
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	must(direct.Create(ctx, &v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "bench"}, Spec: v1alpha1.SubnetSpec{CIDR: "10.92.0.0/16", Zone: region + "a"}}))
	host := &v1alpha1.Host{ObjectMeta: metav1.ObjectMeta{Name: "bench"}, Spec: v1alpha1.HostSpec{Zones: []string{region + "a"}}}
	must(direct.Create(ctx, host))
	host.Status = v1alpha1.HostStatus{Isolations: []v1alpha1.Isolation{v1alpha1.IsolationGVisor}, HeartbeatTime: metav1.Now(),
		Capacity:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("100k"), corev1.ResourceMemory: resource.MustParse("1Pi")},
		Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue, Reason: "Test", LastTransitionTime: metav1.Now()}}}
	must(direct.Status().Update(ctx, host))
	profile := &v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: "bench"}, Spec: profileSpec("default", "bench")}
	must(direct.Create(ctx, profile))
	profile.Status = v1alpha1.FargateProfileStatus{Status: v1alpha1.ProfileActive, Subnets: []string{"bench"}}
	must(direct.Status().Update(ctx, profile))

	watched, err := cache.New(env.Config, cache.Options{Scheme: controller.Scheme()})
	must(err)
	go watched.Start(ctx) //nolint:errcheck // it ends with the benchmark
	cached, err := client.New(env.Config, client.Options{Scheme: controller.Scheme(), Cache: &client.CacheOptions{Reader: watched}})
	must(err)
	made := 0
	for _, berths := range []int{0, 1000, 10_000} {
		fill(b, direct, made, berths)
		made = max(made, berths)
		for list := (v1alpha1.BerthList{}); len(list.Items) < made; time.Sleep(100 * time.Millisecond) {
			must(watched.List(ctx, &list))
		}
		b.Run(fmt.Sprintf("among %d", berths), func(b *testing.B) {
			r := scheduler.New(cached, record.NewFakeRecorder(1<<16), scheduler.NewAddresses(), region)
			r.Live = direct
			for b.Loop() {
				b.StopTimer()
				pod := markedPod("default", "bench-"+string(types.UID(fmt.Sprint(time.Now().UnixNano()))), "bench")
				must(direct.Create(ctx, pod))
				for cached.Get(ctx, client.ObjectKeyFromObject(pod), &corev1.Pod{}) != nil {
					time.Sleep(time.Millisecond)
				}
				b.StartTimer()
				if _, err := r.Reconcile(ctx, request(pod)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// fill makes berths of the numbers from and up to to, all on the bench's host.
func fill(b *testing.B, c client.Client, from, to int) {
	b.Helper()
	var g errgroup.Group
	g.SetLimit(32)
	for i := from; i < to; i++ {
		g.Go(func() error {
			ip := fmt.Sprintf("10.92.%d.%d", 100+i/250, i%250+4)
			return c.Create(context.Background(), &v1alpha1.Berth{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("bench-%d", i)}, Spec: v1alpha1.BerthSpec{
				Pod: v1alpha1.PodReference{Name: fmt.Sprintf("other-%d", i), UID: types.UID(fmt.Sprintf("other-%d", i))}, ProfileName: "bench", HostName: "bench", SubnetName: "bench",
				NodeName: "node-" + ip, Zone: region + "a", IP: ip, Isolation: v1alpha1.IsolationGVisor,
				Size: v1alpha1.Size{CPU: resource.MustParse("250m"), Memory: resource.MustParse("512Mi"), EphemeralStorage: resource.MustParse("20Gi")}}})
		})
	}
	if err := g.Wait(); err != nil {
		b.Fatal(err)
	}
}
