// Package explain says what Berth makes of a pod and why: the words of the webhook and the scheduler, from the same rules,
// without creating anything. Pure: lookups come in as functions.
package explain

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/placement"
	"github.com/berth-run/berth/internal/podcheck"
	"github.com/berth-run/berth/internal/profile"
	"github.com/berth-run/berth/internal/sizing"
)

// Cluster is what the answer depends on besides the pod.
type Cluster struct {
	Profiles []v1alpha1.FargateProfile
	Check    podcheck.Options
	// RuntimeClass looks one up; nil: they are not judged.
	RuntimeClass func(name string) (*nodev1.RuntimeClass, error)
	// Snapshot of the cluster for a profile (placement.Snapshot).
	Snapshot func(*v1alpha1.FargateProfile) placement.Input
	// Topology judges by the pods that exist; nil: there is nothing to judge.
	Topology func(*corev1.Pod) placement.Topology
	// Berths that exist; one of them may be the pod's.
	Berths []v1alpha1.Berth
	Region string
	// NamespaceLabels are the labels that the namespace has, or will have if it does not exist yet.
	NamespaceLabels func(name string) map[string]string
}

// Report is the answer. The fields are in the order in which things are decided; what is not reached is empty.
type Report struct {
	// Name as "namespace/name", or "Deployment namespace/name" for a template.
	Name string `json:"name"`
	// Runs says whether Berth would run the pod now, or runs it.
	Runs bool `json:"runs"`
	// Summary in one sentence.
	Summary string `json:"summary"`
	// Node that the pod is bound to already.
	Node string `json:"node,omitempty"`
	// Profile that takes the pod, and why the others do not.
	Profile  string      `json:"profile,omitempty"`
	Rejected []Rejection `json:"rejected,omitempty"`
	// Event is the sentence that the pod's event and condition have, if it is refused.
	Event      string             `json:"event,omitempty"`
	Violations []podcheck.Finding `json:"violations,omitempty"`
	Size       *Size              `json:"size,omitempty"`
	Placement  *Placement         `json:"placement,omitempty"`
}

// Rejection says why a profile does not take the pod.
type Rejection struct {
	Profile string `json:"profile"`
	Why     string `json:"why"`
}

// Size is the pod's size, how it came about, and its price.
type Size struct {
	CPU              string `json:"cpu"`
	Memory           string `json:"memory"`
	EphemeralStorage string `json:"ephemeralStorage"`
	Because          string `json:"because"`
	// PricePerHour in US dollars, at AWS's prices for us-east-1.
	PricePerHour float64 `json:"pricePerHour"`
}

// Placement is where the pod would go now.
type Placement struct {
	Subnet    string             `json:"subnet"`
	Zone      string             `json:"zone"`
	Host      string             `json:"host"`
	Isolation v1alpha1.Isolation `json:"isolation"`
	// IsolationBecause says why that one.
	IsolationBecause string `json:"isolationBecause,omitempty"`
}

// Pod explains one pod: one that exists, or one that has no UID and might be created.
func Pod(name string, pod *corev1.Pod, c Cluster) Report {
	switch {
	case pod.UID == "":
		return judge(name, pod, c)
	case pod.Spec.SchedulerName == eks.SchedulerName:
		return taken(name, pod, c)
	}
	return leftAlone(name, pod, c)
}

// taken explains a pod that Berth took when it was created: what it runs on, or what it waits for.
func taken(name string, pod *corev1.Pod, c Cluster) Report {
	// The webhook wrote the profile's label. Without it the other profiles' reasons are the real ones, unless it was the
	// user's: then another profile would be first.
	asked := pod.DeepCopy()
	delete(asked.Labels, eks.LabelProfile)
	asked.Spec.NodeName, asked.Spec.SchedulerName = "", ""
	r := judge(name, asked, c)
	if chosen := pod.Labels[eks.LabelProfile]; r.Profile != chosen && pod.Spec.NodeName == "" {
		asked.Labels[eks.LabelProfile] = chosen
		r = judge(name, asked, c)
	}
	if pod.Spec.NodeName == "" {
		r.Summary = strings.Replace(r.Summary, wouldRun, "it is being given a node of its own", 1)
		return r
	}
	r.Node, r.Runs, r.Event, r.Violations, r.Placement = pod.Spec.NodeName, true, "", nil, nil
	r.Profile, r.Summary = pod.Labels[eks.LabelProfile], "it is bound to node "+pod.Spec.NodeName
	r.Rejected = slices.DeleteFunc(r.Rejected, func(o Rejection) bool { return o.Profile == r.Profile })
	for _, b := range c.Berths {
		if b.Spec.Pod.UID == pod.UID {
			r.Placement = &Placement{b.Spec.SubnetName, b.Spec.Zone, b.Spec.HostName, b.Spec.Isolation, b.Spec.IsolationReason}
		}
	}
	return r
}

// leftAlone explains a pod that exists and is not Berth's: pods are judged only when they are created.
func leftAlone(name string, pod *corev1.Pod, c Cluster) Report {
	asked := pod.DeepCopy()
	asked.Spec.NodeName = ""
	r := judge(name, asked, c)
	r.Node, r.Runs = pod.Spec.NodeName, false
	if r.Profile == "" {
		return r
	}
	r.Summary = fmt.Sprintf("Berth leaves it alone: no profile took it when it was created. Profile %s would take it now: delete the pod, so that it is made again", r.Profile)
	r.Profile, r.Event, r.Violations, r.Size, r.Placement = "", "", nil, nil, nil
	return r
}

const wouldRun = "it would run on a node of its own"

// judge says what becomes of a pod when it is created now.
func judge(name string, pod *corev1.Pod, c Cluster) Report {
	r := Report{Name: name, Node: pod.Spec.NodeName}
	d := profile.Select(c.Profiles, pod, profile.Namespace{Name: pod.Namespace, Labels: c.NamespaceLabels(pod.Namespace)})
	for _, other := range d.Rejected {
		r.Rejected = append(r.Rejected, Rejection(other))
	}
	check, isolation := c.Check, profile.IsolationRequest{}
	if d.Profile != nil {
		isolation, check.IsolationRefused = profile.IsolationFor(d.Profile, pod, c.RuntimeClass, d.Profile.Status.Isolation)
		check.AllowPrivileged = profile.AllowsPrivileged(d.Profile, isolation.Isolation)
	}
	violations := podcheck.Violations(pod, check)
	r.Violations = podcheck.Findings(pod, check)
	if d.Profile == nil {
		r.Summary = "Berth leaves it alone: " + d.Reason
		if !d.LeftAlone {
			r.Summary += ". " + remedy(pod, c)
		}
		return r
	}
	r.Profile = d.Profile.Name
	if d.Profile.Status.Status != v1alpha1.ProfileActive {
		r.Event = waits(pod, eks.MessageMisconfigured(r.Profile), "profile "+r.Profile+" to be ACTIVE")
		r.Summary = "it stays Pending until the profile is ACTIVE: " + r.Event
		return r
	}
	if len(violations) > 0 {
		r.Event = waits(pod, eks.MessageUnsupported(violations), podcheck.WaitsFor(pod, check))
		r.Summary = "it stays Pending: " + r.Event
		return r
	}
	need := sizing.Requests(&pod.Spec)
	size, err := sizing.ForPod(&pod.Spec, d.Profile.Spec.Sizing)
	if err != nil {
		r.Event = err.Error()
		r.Summary = fmt.Sprintf("it stays Pending: %s (requests: %s; the largest size is 16 vCPU, 120 GB, with 175 GiB of storage requested at most)", r.Event, requests(need))
		return r
	}
	r.Size = &Size{CPU: size.CPU.String(), Memory: size.Memory.String(), EphemeralStorage: size.EphemeralStorage.String(), PricePerHour: sizing.PricePerHour(size),
		Because: because(d.Profile, need, size)}
	in := c.Snapshot(d.Profile)
	in.Pod, in.Size, in.Isolation, in.IsolationBy = pod, size, isolation.Isolation, isolation.By
	if c.Topology != nil {
		in.Topology = c.Topology(pod)
	}
	choice, err := placement.Choose(in, c.Region)
	if err != nil {
		r.Event = err.Error()
		if reason, ok := err.(interface{ WaitsFor() string }); ok {
			r.Event = waits(pod, r.Event, reason.WaitsFor())
		}
		r.Summary = "it stays Pending until that changes: " + r.Event
		return r
	}
	r.Placement = &Placement{choice.Subnet, choice.Zone, choice.Host, choice.Isolation, placement.IsolationReason(in, choice)}
	r.Runs, r.Summary = true, wouldRun
	return r
}

// waits adds what the pod waits for and, if it was refused already, since when.
func waits(pod *corev1.Pod, message, what string) string {
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
			return eks.MessageWaits(message, what, c.LastTransitionTime.Time)
		}
	}
	return eks.MessageWaits(message, what, time.Time{})
}

// because says how the size came about.
func because(p *v1alpha1.FargateProfile, need corev1.ResourceList, size v1alpha1.Size) string {
	provisioned := sizing.CapacityProvisioned(size)
	if p.Spec.Sizing == v1alpha1.SizingExact {
		return fmt.Sprintf("requests %s: profile %s has sizing exact, which gives %s (in steps of 1m and 1Mi; at least 10m and 64Mi, and 250m or 512Mi where nothing is requested)", requests(need), p.Name, provisioned)
	}
	return fmt.Sprintf("requests %s, and 256Mi for the Kubernetes components: the smallest size that holds them is %s", requests(need), provisioned)
}

// remedy says how a pod that no profile takes could be taken.
func remedy(pod *corev1.Pod, c Cluster) string {
	if len(c.Profiles) == 0 {
		return fmt.Sprintf("There is no profile yet: berth create fargateprofile --name %s --namespace %s", suggestion(pod.Namespace), pod.Namespace)
	}
	return "Another scheduler may place it; Berth takes it if a profile matches when it is created."
}

func suggestion(namespace string) string { return "fp-" + namespace }

func requests(list corev1.ResourceList) string {
	return fmt.Sprintf("%s of CPU and %s of memory", list.Cpu().String(), list.Memory().String()) + storage(list)
}

func storage(list corev1.ResourceList) string {
	if s := list.StorageEphemeral(); !s.IsZero() {
		return " and " + s.String() + " of storage"
	}
	return ""
}

// Print writes the report for people.
func (r Report) Print(out io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s\n", r.Name, r.Summary)
	line := func(head, text string) { fmt.Fprintf(&b, "  %-10s  %s\n", head, text) }
	if r.Profile != "" {
		line("profile", r.Profile)
	}
	for _, o := range r.Rejected {
		line("", "not "+o.Profile+": "+o.Why)
	}
	for i, v := range r.Violations {
		head := ""
		if i == 0 {
			head = "violations"
		}
		line(head, v.Field+": "+v.Problem)
		line("", "  "+v.Remedy)
	}
	if r.Size != nil {
		line("size", fmt.Sprintf("%s CPU, %s memory, %s storage", r.Size.CPU, r.Size.Memory, r.Size.EphemeralStorage))
		line("", r.Size.Because)
		line("price", fmt.Sprintf("$%.6f an hour (AWS's prices for us-east-1)", r.Size.PricePerHour))
	}
	if r.Placement != nil {
		line("placement", fmt.Sprintf("subnet %s, zone %s, host %s, isolation %s", r.Placement.Subnet, r.Placement.Zone, r.Placement.Host, r.Placement.Isolation))
		if r.Placement.IsolationBecause != "" {
			line("", r.Placement.IsolationBecause)
		}
	}
	_, err := io.WriteString(out, b.String())
	return err
}
