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
	// Replicas that a template asks for.
	Replicas int32 `json:"replicas,omitempty"`
	// Runs says whether Berth would run the pod now, or runs it.
	Runs bool `json:"runs"`
	// Summary in one sentence.
	Summary string `json:"summary"`
	// Node that the pod is bound to already.
	Node string `json:"node,omitempty"`
	// Profile that takes the pod, and why the others do not.
	Profile  string      `json:"profile,omitempty"`
	Rejected []Rejection `json:"rejected,omitempty"`
	// Event is the sentence that the pod's event and condition have, if it is refused; Next what it would be told after that.
	Event      string             `json:"event,omitempty"`
	Next       []string           `json:"next,omitempty"`
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
	r.Node, r.Runs, r.Event, r.Next, r.Violations, r.Placement = pod.Spec.NodeName, true, "", nil, nil, nil
	r.Profile, r.Summary = pod.Labels[eks.LabelProfile], "it is bound to node "+pod.Spec.NodeName+held(pod)
	r.Rejected = slices.DeleteFunc(r.Rejected, func(o Rejection) bool { return o.Profile == r.Profile })
	for _, b := range c.Berths {
		if b.Spec.Pod.UID == pod.UID {
			r.Placement = &Placement{b.Spec.SubnetName, b.Spec.Zone, b.Spec.HostName, b.Spec.Isolation, b.Spec.IsolationReason}
		}
	}
	return r
}

// held says which container of a pod on its node does not run, and why, in the kubelet's words; empty: none is held.
func held(pod *corev1.Pod) string {
	for _, c := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		w := c.State.Waiting
		if w == nil || w.Reason == "" || w.Reason == "PodInitializing" || w.Reason == "ContainerCreating" {
			continue
		}
		return fmt.Sprintf("; container %s waits: %s", c.Name, strings.TrimSuffix(w.Reason+": "+w.Message, ": "))
	}
	return ""
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
	r.Profile, r.Event, r.Next, r.Violations, r.Size, r.Placement = "", "", nil, nil, nil, nil
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
	// All that is in the way, in the order in which the scheduler comes to it.
	active := d.Profile.Status.Status == v1alpha1.ProfileActive
	if !active {
		r.pending("until its profile is ACTIVE", waits(pod, eks.MessageMisconfigured(r.Profile), "profile "+r.Profile+" to be ACTIVE"))
	}
	if len(violations) > 0 {
		r.pending("because Fargate does not support it", waits(pod, eks.MessageUnsupported(violations), podcheck.WaitsFor(pod, check)))
	}
	size, err := sizing.ForPod(&pod.Spec, d.Profile.Spec.Sizing)
	if err != nil {
		r.pending("because no size holds it", err.Error())
		r.Violations = append(r.Violations, tooLarge(&pod.Spec))
		return r
	}
	r.Size = &Size{CPU: size.CPU.String(), Memory: size.Memory.String(), EphemeralStorage: size.EphemeralStorage.String(), PricePerHour: sizing.PricePerHour(size),
		Because: because(d.Profile, sizing.Requests(&pod.Spec), size)}
	if !active {
		return r // its subnets are not known
	}
	in := c.Snapshot(d.Profile)
	in.Pod, in.Size, in.Isolation, in.IsolationBy = pod, size, isolation.Isolation, isolation.By
	if c.Topology != nil {
		in.Topology = c.Topology(pod)
	}
	choice, err := placement.Choose(in, c.Region)
	switch reason, waiting := err.(interface{ WaitsFor() string }); {
	case waiting:
		r.pending("until there is a place for it", waits(pod, err.Error(), reason.WaitsFor()))
	case err != nil:
		r.pending("because there is no place for it", err.Error())
	case r.Event == "":
		r.Placement = &Placement{choice.Subnet, choice.Zone, choice.Host, choice.Isolation, placement.IsolationReason(in, choice)}
		r.Runs, r.Summary = true, wouldRun
		if no := check.IsolationRefused; no != nil && no.AtNode {
			r.Runs, r.Summary, r.Event = false, "it would get a node of its own, which cannot run it", no.Problem
		}
	}
	return r
}

// pending notes something that is in the way of a pod; the first is what the pod is told.
func (r *Report) pending(why, event string) {
	if r.Event != "" {
		r.Next = append(r.Next, event)
		return
	}
	r.Event, r.Summary = event, "it stays Pending "+why
}

func tooLarge(spec *corev1.PodSpec) podcheck.Finding {
	return podcheck.Finding{Field: "spec.containers[*].resources.requests", Remedy: "ask for less, or divide the work among more pods",
		Problem: requests(sizing.Requests(spec)) + ", where the largest size has 16 vCPU and 120 GB, of which 256Mi are not the pod's own, and at most 175Gi of storage can be requested"}
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
	if pod.Labels[eks.LabelProfile] != "" {
		return "Another scheduler may place it; Berth takes it if that profile matches when it is created, or without the label any that does"
	}
	name := pod.Namespace
	if slices.ContainsFunc(c.Profiles, func(p v1alpha1.FargateProfile) bool { return p.Name == name }) {
		name = "NAME"
	}
	return fmt.Sprintf("Another scheduler may place it; Berth takes it if there is a profile when it is created: berth create fargateprofile --name %s --namespace %s", name, pod.Namespace)
}

func requests(list corev1.ResourceList) string {
	if list.Cpu().IsZero() && list.Memory().IsZero() && list.StorageEphemeral().IsZero() {
		return "nothing"
	}
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
	name := r.Name
	if r.Replicas > 1 {
		name += fmt.Sprintf(", each of %d pods", r.Replicas)
	}
	fmt.Fprintf(&b, "%s: %s\n", name, r.Summary)
	line := func(head, text string) { fmt.Fprintf(&b, "  %-10s  %s\n", head, text) }
	if r.Profile != "" {
		line("profile", r.Profile)
	}
	for _, o := range r.Rejected {
		line("", "not "+o.Profile+": "+o.Why)
	}
	if r.Event != "" {
		line("event", r.Event)
	}
	for _, next := range r.Next {
		line("then", next)
	}
	for i, v := range r.Violations {
		head := ""
		if i == 0 {
			head = "to mend"
			if r.Profile == "" {
				head = "otherwise" // nobody refuses what is left alone
			}
		}
		line(head, v.Field+": "+v.Problem)
		line("", "  "+v.Remedy)
	}
	if r.Size != nil {
		line("size", fmt.Sprintf("%s CPU, %s memory, %s storage", r.Size.CPU, r.Size.Memory, r.Size.EphemeralStorage))
		line("", r.Size.Because)
		price := fmt.Sprintf("$%.6f an hour", r.Size.PricePerHour)
		if r.Replicas > 1 {
			price += fmt.Sprintf(", $%.6f for all %d", r.Size.PricePerHour*float64(r.Replicas), r.Replicas)
		}
		line("price", price+" (AWS's prices for us-east-1)")
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
