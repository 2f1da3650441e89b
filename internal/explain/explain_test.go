package explain_test

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/utils/ptr"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/explain"
	"github.com/berth-run/berth/internal/placement"
	"github.com/berth-run/berth/internal/podcheck"
)

var update = flag.Bool("update", false, "write the golden files")

func profile(name string, status v1alpha1.ProfileStatus, selectors ...v1alpha1.Selector) v1alpha1.FargateProfile {
	return v1alpha1.FargateProfile{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.FargateProfileSpec{Selectors: selectors, Isolation: v1alpha1.IsolationAuto},
		Status: v1alpha1.FargateProfileStatus{Status: status, Subnets: []string{"private-a"}}}
}

// cluster has one host of 16 CPUs and 64 GiB, and claim "bound-store-0", bound to a volume of NFS.
func cluster() explain.Cluster {
	return explain.Cluster{
		Region:          "local-1",
		NamespaceLabels: func(name string) map[string]string { return map[string]string{"kubernetes.io/metadata.name": name} },
		Profiles: []v1alpha1.FargateProfile{
			profile("data", v1alpha1.ProfileActive, v1alpha1.Selector{Namespace: "data"}),
			profile("default", v1alpha1.ProfileActive, v1alpha1.Selector{Namespace: "default"}),
			profile("late", v1alpha1.ProfileCreating, v1alpha1.Selector{Namespace: "*"}),
			profile("web", v1alpha1.ProfileActive, v1alpha1.Selector{Namespace: "default", Labels: map[string]string{"app": "web"}}),
		},
		Check: podcheck.Options{PVC: func(_, name string) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume, error) {
			if name != "bound-store-0" {
				return nil, nil, fmt.Errorf("persistentvolumeclaims %q not found", name)
			}
			claim := &corev1.PersistentVolumeClaim{Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound}}
			volume := &corev1.PersistentVolume{Spec: corev1.PersistentVolumeSpec{PersistentVolumeSource: corev1.PersistentVolumeSource{NFS: &corev1.NFSVolumeSource{}}}}
			return claim, volume, nil
		}},
		RuntimeClass: func(name string) (*nodev1.RuntimeClass, error) { return &nodev1.RuntimeClass{Handler: name}, nil },
		Snapshot: func(p *v1alpha1.FargateProfile) placement.Input {
			subnet := v1alpha1.Subnet{ObjectMeta: metav1.ObjectMeta{Name: "private-a"}, Spec: v1alpha1.SubnetSpec{Zone: "local-1a"}}
			host := v1alpha1.Host{ObjectMeta: metav1.ObjectMeta{Name: "host"}, Spec: v1alpha1.HostSpec{Zones: []string{"local-1a"}}, Status: v1alpha1.HostStatus{
				Capacity:   corev1.ResourceList{corev1.ResourceCPU: resource.MustParse("16"), corev1.ResourceMemory: resource.MustParse("64Gi")},
				Isolations: []v1alpha1.Isolation{v1alpha1.IsolationGVisor},
				Conditions: []metav1.Condition{{Type: v1alpha1.ConditionReady, Status: metav1.ConditionTrue}}}}
			return placement.Snapshot(p, []v1alpha1.Subnet{subnet}, []v1alpha1.Host{host}, nil, func(*v1alpha1.Subnet) int { return 100 })
		},
	}
}

// TestManifests explains manifests as people have them; what it says is in the golden file beside each.
func TestManifests(t *testing.T) {
	files, err := filepath.Glob("testdata/*.yaml")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d manifests, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			manifest, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			templates, err := explain.Templates(manifest, scheme.Codecs.UniversalDeserializer(), "default")
			if err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			c := cluster()
			for _, tmpl := range templates {
				report := explain.Pod(tmpl.Name, tmpl.Pod, c)
				report.Replicas = tmpl.Replicas
				// But for what depends on the profile.
				if violations := podcheck.Violations(tmpl.Pod, c.Check); len(violations) > 0 != (len(podcheck.Findings(tmpl.Pod, c.Check)) > 0) {
					t.Errorf("violations %q, but findings %+v", violations, report.Violations)
				}
				if err := report.Print(&out); err != nil {
					t.Fatal(err)
				}
			}
			golden := strings.TrimSuffix(file, ".yaml") + ".golden"
			if *update {
				if err := os.WriteFile(golden, out.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if out.String() != string(want) {
				t.Errorf("got\n%s\nwant\n%s\nif that is right: go test ./internal/explain -run TestManifests -update", &out, want)
			}
		})
	}
}

// TestProfilesBeyondEKS: selectors that exclude, and exact sizing.
func TestProfilesBeyondEKS(t *testing.T) {
	c := cluster()
	exact := profile("exact", v1alpha1.ProfileActive, v1alpha1.Selector{NamespaceSelector: &metav1.LabelSelector{
		MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "kubernetes.io/metadata.name", Operator: metav1.LabelSelectorOpNotIn, Values: []string{"kube-system"}}}}})
	exact.Spec.Sizing = v1alpha1.SizingExact
	c.Profiles = []v1alpha1.FargateProfile{exact}
	pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Resources: corev1.ResourceRequirements{Requests: corev1.ResourceList{
		corev1.ResourceCPU: resource.MustParse("333m"), corev1.ResourceMemory: resource.MustParse("100Mi")}}}}}}
	pod.Namespace = "shop"
	report := explain.Pod("shop/web", pod, c)
	if !report.Runs || report.Size.CPU != "333m" || report.Size.Memory != "100Mi" || !strings.Contains(report.Size.Because, "profile exact has sizing exact, which gives 0.333vCPU 0.09765625GB") {
		t.Errorf("got %+v, %+v", report, report.Size)
	}
	pod.Namespace = "kube-system"
	if report := explain.Pod("kube-system/web", pod, c); report.Runs || report.Profile != "" {
		t.Errorf("the excluded namespace's pod is taken: %+v", report)
	}
}

// TestRefusedByItsNode: a pod that the scheduler does not refuse, but whose node could not run it.
func TestRefusedByItsNode(t *testing.T) {
	pod := &corev1.Pod{Spec: corev1.PodSpec{RuntimeClassName: ptr.To("kata")}}
	pod.Namespace = "default"
	const why = `runtimeClassName kata: no runtime for "kata" is configured`
	report := explain.Pod("default/web", pod, cluster())
	if report.Runs || report.Placement == nil || report.Event != why || len(report.Violations) != 1 || report.Violations[0].Field != "spec.runtimeClassName" {
		t.Errorf("got %+v", report)
	}
}

// TestBadManifests: what cannot be read is named.
func TestBadManifests(t *testing.T) {
	for manifest, want := range map[string]string{
		"# nothing\n---\n\tx":  "document 2: it is not valid YAML",
		"a: b":                 "document 1: it is not a valid Kubernetes object",
		"kind: Pod\nspec: [1]": "document 1: it is not a valid Kubernetes object",
		"apiVersion: v1\nkind: Pod\nspec: {containers: 3}":               "document 1: it is not a valid Kubernetes object",
		"apiVersion: v1\nkind: List\nitems: [{apiVersion: v1, kind: 1}]": "document 1: items[0]: it is not a valid Kubernetes object",
	} {
		_, err := explain.Templates([]byte(manifest), scheme.Codecs.UniversalDeserializer(), "default")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", manifest, err, want)
		}
	}
}

// waiting is the pod with a container that is still to start and one whose image cannot be pulled.
func waiting(pod *corev1.Pod) *corev1.Pod {
	state := func(name, reason, message string) corev1.ContainerStatus {
		return corev1.ContainerStatus{Name: name, State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason, Message: message}}}
	}
	pod.Status.InitContainerStatuses = []corev1.ContainerStatus{state("init", "PodInitializing", "")}
	pod.Status.ContainerStatuses = []corev1.ContainerStatus{state("app", "ImagePullBackOff", "Back-off pulling image \"x\"")}
	return pod
}

// TestExistingPods: what exists is explained as it is, not as if it were created now.
func TestExistingPods(t *testing.T) {
	pod := func(scheduler, node string, labels map[string]string) *corev1.Pod {
		return &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "p", UID: "uid", Labels: labels},
			Spec: corev1.PodSpec{SchedulerName: scheduler, NodeName: node, Containers: []corev1.Container{{Name: "c"}}}}
	}
	const node = "fargate-ip-10-90-0-4.local-1.compute.internal"
	for name, tc := range map[string]struct {
		pod          *corev1.Pod
		want, reject string
		runs, placed bool
	}{
		"made before its profile": {pod: pod("default-scheduler", "", nil),
			want: "no profile took it when it was created. Profile default would take it now: delete the pod", reject: "web"},
		"waits": {pod: pod("fargate-scheduler", "", map[string]string{"eks.amazonaws.com/fargate-profile": "default"}),
			want: "it is being given a node of its own", runs: true, placed: true, reject: "web"},
		"runs": {pod: pod("fargate-scheduler", node, map[string]string{"eks.amazonaws.com/fargate-profile": "default"}),
			want: "it is bound to node " + node, runs: true, placed: true, reject: "web"},
		"runs, and its labels match no more": {pod: pod("fargate-scheduler", node, map[string]string{"app": "changed", "eks.amazonaws.com/fargate-profile": "web"}),
			want: "it is bound to node " + node, runs: true, placed: true, reject: "data"},
		"runs elsewhere": {pod: pod("default-scheduler", "other", nil), want: "Berth leaves it alone"},
		"runs, but for an image": {pod: waiting(pod("fargate-scheduler", node, map[string]string{"eks.amazonaws.com/fargate-profile": "default"})),
			want: "it is bound to node " + node + "; container app waits: ImagePullBackOff: Back-off pulling image \"x\"", runs: true, placed: true, reject: "web"},
	} {
		t.Run(name, func(t *testing.T) {
			c := cluster()
			c.Berths = []v1alpha1.Berth{{Spec: v1alpha1.BerthSpec{Pod: v1alpha1.PodReference{UID: "uid"}, SubnetName: "private-a", HostName: "host"}}}
			r := explain.Pod("default/p", tc.pod, c)
			if !strings.Contains(r.Summary, tc.want) || r.Runs != tc.runs || (r.Placement != nil) != tc.placed {
				t.Errorf("%+v", r)
			}
			rejected := ""
			for _, o := range r.Rejected {
				rejected += o.Profile + " "
			}
			if !strings.Contains(rejected, tc.reject) || strings.Contains(rejected, "names") {
				t.Errorf("rejected: %+v", r.Rejected)
			}
		})
	}
}

// TestRemedyWithoutAProfile: what to type, with a name that is free.
func TestRemedyWithoutAProfile(t *testing.T) {
	c := cluster()
	c.Profiles = []v1alpha1.FargateProfile{profile("shop", v1alpha1.ProfileActive, v1alpha1.Selector{Namespace: "kube-system"})}
	for namespace, want := range map[string]string{
		"shop":  "berth create fargateprofile --name NAME --namespace shop",
		"other": "berth create fargateprofile --name other --namespace other",
	} {
		r := explain.Pod(namespace+"/p", &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespace}}, c)
		if r.Runs || !strings.HasSuffix(r.Summary, want) || len(r.Rejected) != 1 || r.Rejected[0].Why != "it takes pods of namespace kube-system" {
			t.Errorf("%+v", r)
		}
	}
	forced := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "other", Labels: map[string]string{"eks.amazonaws.com/fargate-profile": "shop"}}}
	if r := explain.Pod("other/p", forced, c); !strings.Contains(r.Summary, "names profile shop, which does not match") || strings.Contains(r.Summary, "berth create") {
		t.Errorf("%+v", r)
	}
}
