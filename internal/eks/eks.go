// Package eks is the contract with Amazon EKS on Fargate: every name that users' tools rely on, in one place, each with
// its source. Sources: UG = Amazon EKS user guide; OBS = read off real clusters; VALIDATOR = the pod validator that AWS
// published; docs/reference/eks-fargate.md lists where Berth departs. Pure.
package eks

import (
	"fmt"
	"net/netip"
	"strings"
	"time"
)

const (
	// SchedulerName that the webhook sets on matching pods (OBS).
	SchedulerName = "fargate-scheduler"

	// LabelProfile on a pod says which profile it runs on; set by a user, it forces that profile if it matches (UG fargate-profile).
	LabelProfile = "eks.amazonaws.com/fargate-profile"

	// ComputeTypeKey is a node's label and taint, and the annotation by which a pod opts out (UG fargate-getting-started, OBS).
	ComputeTypeKey = "eks.amazonaws.com/compute-type"
	// ComputeTypeFargate is the value of that label and taint on a Fargate node (OBS).
	ComputeTypeFargate = "fargate"
	// ComputeTypeEC2 is the annotation's value on a pod that is to be left alone (UG fargate-getting-started).
	ComputeTypeEC2 = "ec2"

	// AnnotationCapacityProvisioned tells the size that a pod was given, such as "0.25vCPU 0.5GB" (UG fargate-pod-configuration).
	AnnotationCapacityProvisioned = "CapacityProvisioned"
	// AnnotationLogging tells whether the log router is on (UG fargate-logging).
	AnnotationLogging = "Logging"

	// LoggingNamespace and LoggingConfigMap name the log router's configuration (UG fargate-logging).
	LoggingNamespace = "aws-observability"
	LoggingConfigMap = "aws-logging"
	// EventLoggingDisabled is the reason of the event that says that there is no log router (UG fargate-logging).
	EventLoggingDisabled = "LoggingDisabled"
	// LoggingNotFound is AnnotationLogging's value without a configuration; MessageLoggingNotFound the event's (UG fargate-logging).
	LoggingNotFound        = "LoggingDisabled: LOGGING_CONFIGMAP_NOT_FOUND"
	MessageLoggingNotFound = `Disabled logging because aws-logging configmap was not found. configmap "aws-logging" not found`
	// LoggingNamespaceLabel, with value "enabled", is on the namespace of a configuration that counts (UG fargate-logging).
	LoggingNamespaceLabel = "aws-observability"
	// LoggingInvalid is Berth's own, for a configuration that EKS refuses: the word that EKS has is not public.
	LoggingInvalid = "LoggingDisabled: LOGGING_CONFIGMAP_INVALID"
	// LoggingNoRouter and MessageLoggingNoRouter are Berth's own, for a configuration that is good: no log router is built in.
	LoggingNoRouter        = "LoggingDisabled: LOGGING_ROUTER_NOT_AVAILABLE"
	MessageLoggingNoRouter = "Disabled logging for pod because Berth has no log router. The aws-logging configmap is valid, but nothing routes by it; use kubectl logs, or a sidecar"

	// WebhookConfigurationName of the mutating webhook; the prefix orders it before users' webhooks (OBS).
	WebhookConfigurationName = "0500-amazon-eks-fargate-mutation.amazonaws.com"
	// WebhookPort on which the webhook listens, on loopback (OBS).
	WebhookPort = 23445
	// WebhookTimeoutSeconds of that webhook (OBS).
	WebhookTimeoutSeconds = 5

	// ReservedProfilePrefix may not begin a profile's name (UG fargate-profile).
	ReservedProfilePrefix = "eks-"

	// EventFailedScheduling and EventScheduled are the reasons of the scheduler's events (OBS).
	EventFailedScheduling = "FailedScheduling"
	EventScheduled        = "Scheduled"

	// ReasonUnsupported and ReasonTooLarge are reasons of the condition PodScheduled=False (OBS).
	ReasonUnsupported = "POD_UNSUPPORTED_ON_FARGATE"
	ReasonTooLarge    = "POD_CPU_MEM_EXCEEDS_MAX_FARGATE_SIZE"
	// ReasonUnsupportedSpec is the kubelet's, of a pod that it fails (VALIDATOR).
	ReasonUnsupportedSpec = "UnsupportedPodSpec"
	// MessageTooLarge goes with ReasonTooLarge (OBS).
	MessageTooLarge = "Your pod's cpu/memory requirements exceed the max Fargate configuration"
	// MessageNoCapacity is said when no host has room (OBS).
	MessageNoCapacity = "Fargate capacity is unavailable at this time. Please try again later or in a different availability zone."

	// DetailTypeTermination is of the event that announces when a pod is terminated that could not be evicted (facts 6).
	DetailTypeTermination = "EKS Fargate Pod Scheduled Termination"
	// MessageMultipleBudgets is why a pod with two PodDisruptionBudgets cannot be evicted (facts 6).
	MessageMultipleBudgets = "This pod has multiple PodDisruptionBudget, which the eviction subresource does not support"

	// KubeletPort answers on the pod's own address (UG metrics-server).
	KubeletPort = 10250
)

// MessageLoggingInvalid is the event's for a configuration that EKS refuses (OBS), and Berth's own last sentence.
func MessageLoggingInvalid(why string) string {
	return "Disabled logging for pod due to invalid configmap. " + why + ". Please fix the logging configmap. (Berth has no log router; use kubectl logs, or a sidecar.)"
}

// Hostname is the node's kubernetes.io/hostname label: ip-a-b-c-d.<region>.compute.internal (OBS).
func Hostname(ip netip.Addr, region string) string {
	domain := region + ".compute.internal"
	if region == "us-east-1" {
		domain = "ec2.internal"
	}
	return "ip-" + strings.ReplaceAll(ip.String(), ".", "-") + "." + domain
}

// NodeName of the pod that has the address: fargate-ip-a-b-c-d.<region>.compute.internal (OBS).
func NodeName(ip netip.Addr, region string) string { return "fargate-" + Hostname(ip, region) }

// IsNodeName tells whether the node is a pod's own (OBS).
func IsNodeName(node string) bool { return strings.HasPrefix(node, "fargate-ip-") }

// ProviderID of a node: aws:///<zone>/<10 hex>-<32 hex>/<node name> (OBS). The hex digits are taken from id, which must
// be unique to the pod; hyphens in it are ignored.
func ProviderID(zone, id, nodeName string) string {
	hex := strings.ReplaceAll(id, "-", "")
	for len(hex) < 42 {
		hex += hex + "0"
	}
	return fmt.Sprintf("aws:///%s/%s-%s/%s", zone, hex[32:42], hex[:32], nodeName)
}

// MessageNodeSelector is the FailedScheduling message for a pod whose node selector or affinity the profile cannot meet (OBS).
func MessageNodeSelector(profile string) string {
	return fmt.Sprintf("MatchNodeSelector failed: Fargate profile %s cannot satisfy pod's node selector/affinity requirements", profile)
}

// TerminationTime is a time as EKS writes it in that event: 2021-06-30T12:52:44.832Z[UTC] (facts 6).
func TerminationTime(at time.Time) string {
	return at.UTC().Format("2006-01-02T15:04:05.000Z") + "[UTC]"
}

// MessageTopology begins the FailedScheduling message for a pod whose spread constraints or pod affinity leave it no place.
// Berth's own: EKS does not look at them (facts 1.4).
func MessageTopology(profile string) string {
	return "Fargate profile " + profile + " cannot satisfy pod's topology spread constraints or pod affinity requirements"
}

// MessageNotAuthorized is for a pod that asks for this scheduler though no profile takes it (facts 1.8, eksctl's documentation).
func MessageNotAuthorized(why string) string {
	return "Pod is not authorized to run on Fargate: " + why
}

// MessageNoRuntime is what containerd says of a RuntimeClass's handler that it does not have.
func MessageNoRuntime(handler string) string {
	return fmt.Sprintf("no runtime for %q is configured", handler)
}

// MessageUnsupported is the FailedScheduling message for a pod that Fargate refuses (VALIDATOR).
func MessageUnsupported(violations []string) string {
	return "Pod not supported on Fargate: " + strings.Join(violations, ", ")
}

// MessageUnsupportedSpec is the kubelet's message for a pod that does not belong on its node (VALIDATOR).
func MessageUnsupportedSpec(violations []string) string {
	return "Pod not supported: " + strings.Join(violations, ", ")
}

// MessageMisconfigured is for a pod whose profile cannot take it now; the beginning is that of EKS (facts 2.6).
func MessageMisconfigured(profile string) string {
	return "Misconfigured Fargate Profile: fargate profile " + profile + " does not exist or is not ACTIVE"
}

// MessageWaits adds to one of the messages above what the pod waits for, and since when if that is not zero. Berth's own: on
// EKS a pod that was refused is not judged again (facts 2.6).
func MessageWaits(message, what string, since time.Time) string {
	switch {
	case what == "":
		return message
	case since.IsZero():
		return fmt.Sprintf("%s (waits for %s)", message, what)
	}
	return fmt.Sprintf("%s (waits since %s for %s)", message, since.UTC().Format(time.RFC3339), what)
}

// MessageScheduled is the Scheduled event (OBS).
func MessageScheduled(namespace, pod, node string) string {
	return fmt.Sprintf("Successfully assigned %s/%s to %s", namespace, pod, node)
}
