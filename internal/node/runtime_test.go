package node

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
	fake "k8s.io/cri-api/pkg/apis/testing"

	"github.com/berth-run/berth/internal/nodeconfig"
)

// counting is containerd's place: it counts the questions that reach it.
type counting struct {
	*fake.FakeRuntimeService
	lists, runs, removals int
}

func (c *counting) ListPodSandbox(ctx context.Context, f *cri.PodSandboxFilter) ([]*cri.PodSandbox, error) {
	c.lists++
	return c.FakeRuntimeService.ListPodSandbox(ctx, f)
}

func (c *counting) RunPodSandbox(ctx context.Context, config *cri.PodSandboxConfig, handler string) (string, error) {
	c.runs++
	return c.FakeRuntimeService.RunPodSandbox(ctx, config, handler)
}

func (c *counting) RemovePodSandbox(ctx context.Context, id string) error {
	c.removals++
	return c.FakeRuntimeService.RemovePodSandbox(ctx, id)
}

func newTestRuntime(t *testing.T) (*runtimeService, *counting) {
	t.Helper()
	c := &counting{FakeRuntimeService: fake.NewFakeRuntimeService()}
	cfg := nodeconfig.Config{NodeName: "node", PodUID: "uid", RuntimeHandler: "gvisor", CgroupParent: "/berth/uid",
		Capacity: v1.ResourceList{v1.ResourceCPU: resource.MustParse("250m")}}
	return newRuntimeService(c, cfg, newReporter(cfg)), c
}

func sandbox(t *testing.T, labels map[string]string) *cri.PodSandboxConfig {
	t.Helper()
	return &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "uid"}, LogDirectory: t.TempDir(),
		Labels: labels, Annotations: map[string]string{}, Linux: &cri.LinuxPodSandboxConfig{}}
}

// TestEarlySandbox: the kubelet gets the sandbox that was started early only if it asks for exactly that.
func TestEarlySandbox(t *testing.T) {
	for name, tc := range map[string]struct {
		asked                    func(*cri.PodSandboxConfig)
		handler                  string
		wantRuns, wantRemovals   int
		existing, kubeletIsFirst bool
	}{
		"the same":                             {wantRuns: 1},
		"the same, seen by the kubelet":        {asked: func(c *cri.PodSandboxConfig) { c.Annotations["kubernetes.io/config.seen"] = "now" }, wantRuns: 1},
		"another host name":                    {asked: func(c *cri.PodSandboxConfig) { c.Hostname = "x" }, wantRuns: 2, wantRemovals: 1},
		"a second attempt":                     {asked: func(c *cri.PodSandboxConfig) { c.Metadata.Attempt = 1 }, wantRuns: 2, wantRemovals: 1},
		"a RuntimeClass's handler":             {handler: "runc", wantRuns: 1},
		"a sandbox from before a restart":      {existing: true, wantRuns: 2},
		"the kubelet asks before it was begun": {kubeletIsFirst: true, wantRuns: 1},
	} {
		t.Run(name, func(t *testing.T) {
			ctx := t.Context()
			s, c := newTestRuntime(t)
			early := sandbox(t, map[string]string{"a": "b"})
			asked := &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "uid"}, LogDirectory: early.LogDirectory,
				Labels: map[string]string{"a": "b"}, Annotations: map[string]string{}, Linux: &cri.LinuxPodSandboxConfig{}}
			if tc.asked != nil {
				tc.asked(asked)
			}
			if tc.existing {
				before := sandbox(t, nil)
				s.prepare(before)
				before.Metadata.Attempt = 7
				if _, err := c.RunPodSandbox(ctx, before, "gvisor"); err != nil {
					t.Fatal(err)
				}
			}
			if !tc.kubeletIsFirst {
				s.startEarly(ctx, early)
				if seen, err := s.ListPodSandbox(ctx, nil); err != nil || len(seen) > 0 != tc.existing {
					t.Errorf("before the kubelet asked it sees %v, %v", seen, err)
				}
			}
			if _, err := s.RunPodSandbox(ctx, asked, tc.handler); err != nil {
				t.Fatal(err)
			}
			if tc.kubeletIsFirst {
				s.startEarly(ctx, early)
			}
			if c.runs != tc.wantRuns || c.removals != tc.wantRemovals {
				t.Errorf("%d sandboxes started and %d removed, want %d and %d", c.runs, c.removals, tc.wantRuns, tc.wantRemovals)
			}
			seen, err := s.ListPodSandbox(ctx, nil)
			if err != nil || !slices.ContainsFunc(seen, func(p *cri.PodSandbox) bool { return p.Metadata.Attempt == asked.Metadata.Attempt }) {
				t.Errorf("the kubelet's sandbox is not listed: %v, %v", seen, err)
			}
		})
	}
}

// TestUnknownHandler: a sandbox under a handler that is none of ours is refused in containerd's words.
func TestUnknownHandler(t *testing.T) {
	s, c := newTestRuntime(t)
	_, err := s.RunPodSandbox(t.Context(), sandbox(t, nil), "kata")
	if err == nil || !strings.HasPrefix(err.Error(), `no runtime for "kata" is configured`) || c.runs > 0 {
		t.Errorf("%v, and %d sandboxes", err, c.runs)
	}
}

// TestAnnotations: the shim hears the pod's size from us, and nothing from the user; the pod's own annotations stay as they are.
func TestAnnotations(t *testing.T) {
	s, _ := newTestRuntime(t)
	own := map[string]string{"berth.run/size-cpu-milli": "16000", "berth.run/isolation": "gvisor", "example.com/a": "b"}
	config := sandbox(t, nil)
	config.Annotations = own
	s.prepare(config)
	want := map[string]string{"example.com/a": "b", "berth.run/size-cpu-milli": "250", "berth.run/size-memory": "0", "berth.run/size-ephemeral-storage": "0"}
	if !maps.Equal(config.Annotations, want) {
		t.Errorf("the sandbox has %v, want %v", config.Annotations, want)
	}
	if len(own) != 3 || own["berth.run/size-cpu-milli"] != "16000" {
		t.Errorf("the pod's annotations became %v", own)
	}
}

// TestLists: answers are given again only while a stream of events is open and nothing happened.
func TestLists(t *testing.T) {
	ctx := t.Context()
	s, c := newTestRuntime(t)
	list := func() int {
		t.Helper()
		before := c.lists
		if _, err := s.ListPodSandbox(ctx, &cri.PodSandboxFilter{}); err != nil {
			t.Fatal(err)
		}
		return c.lists - before
	}
	if first, second := list(), list(); first != 1 || second != 1 {
		t.Error("without events an answer was remembered")
	}
	s.lists.streaming(+1)
	if list() != 1 || list() != 0 {
		t.Error("with events the second question reached containerd")
	}
	id, err := s.RunPodSandbox(ctx, sandbox(t, map[string]string{"app": "web"}), "")
	if err != nil {
		t.Fatal(err)
	}
	if list() != 1 || list() != 0 {
		t.Error("a new sandbox did not change the answer once")
	}
	for _, tc := range []struct {
		filter *cri.PodSandboxFilter
		want   int
	}{
		{nil, 1},
		{&cri.PodSandboxFilter{State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_READY}}, 1},
		{&cri.PodSandboxFilter{State: &cri.PodSandboxStateValue{State: cri.PodSandboxState_SANDBOX_NOTREADY}}, 0},
		{&cri.PodSandboxFilter{LabelSelector: map[string]string{"app": "web"}}, 1},
		{&cri.PodSandboxFilter{LabelSelector: map[string]string{"app": "db"}}, 0},
		{&cri.PodSandboxFilter{Id: id}, 1},
	} {
		if got, err := s.ListPodSandbox(ctx, tc.filter); err != nil || len(got) != tc.want {
			t.Errorf("%v: %d sandboxes, %v; want %d", tc.filter, len(got), err, tc.want)
		}
	}
	s.lists.streaming(-1)
	if first, second := list(), list(); first != 1 || second != 1 {
		t.Error("after the stream ended an answer was remembered")
	}
}

// TestLimitIsLowered: a CPU limit above the pod's size would keep its container from starting (facts 3.4).
func TestLimitIsLowered(t *testing.T) {
	s, _ := newTestRuntime(t) // a pod of 250m
	for quota, want := range map[int64]int64{400_000: 25_000, 25_000: 25_000, 10_000: 10_000, -1: -1, 0: 0} {
		r := &cri.LinuxContainerResources{CpuQuota: quota, CpuPeriod: 100_000}
		if s.clamp(r); r.CpuQuota != want {
			t.Errorf("a quota of %d becomes %d, want %d", quota, r.CpuQuota, want)
		}
	}
	s.clamp(nil)
}
