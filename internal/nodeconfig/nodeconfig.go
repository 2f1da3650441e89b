// Package nodeconfig is what the host agent and a node process (cmd/berth-node, the kubelet of one pod) say to each
// other: the agent writes one Config as JSON to the process's standard input and closes it; the process sends Events as
// JSON datagrams to the agent's socket. A node process that gets an empty standard input exits at once without error, so
// that processes started ahead of need can be dismissed. Pure.
package nodeconfig

import (
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Config is everything that one node process needs to know.
type Config struct {
	// Pod that the node is for; the kubelet runs no other.
	PodNamespace string    `json:"podNamespace"`
	PodName      string    `json:"podName"`
	PodUID       types.UID `json:"podUID"`

	NodeName   string            `json:"nodeName"`
	Hostname   string            `json:"hostname"` // label kubernetes.io/hostname
	IP         string            `json:"ip"`       // of the pod and the node
	ProviderID string            `json:"providerID"`
	Labels     map[string]string `json:"labels"`
	Taints     []corev1.Taint    `json:"taints"`

	// Capacity that the Node reports: cpu, memory, ephemeral-storage (pods is always 1).
	Capacity corev1.ResourceList `json:"capacity"`

	// ListenAddress (an IP of the host) on which the kubelet's server listens, port 10250.
	ListenAddress string `json:"listenAddress"`

	// RootDir of the kubelet, PodLogsDir of its containers' logs.
	RootDir    string `json:"rootDir"`
	PodLogsDir string `json:"podLogsDir"`

	// Kubeconfig with the node's own credential (system:node:<name>).
	Kubeconfig string `json:"kubeconfig"`
	// ServingCert, ServingKey of the kubelet's server; ClientCA verifies its callers.
	ServingCert string `json:"servingCert"`
	ServingKey  string `json:"servingKey"`
	ClientCA    string `json:"clientCA"`

	// HostRunDir is the host's own run directory (layout.Dirs.Run).
	HostRunDir string `json:"hostRunDir"`
	// CRIEndpoint of containerd, such as unix:///run/berth/containerd.sock.
	CRIEndpoint string `json:"criEndpoint"`
	// PrivateImages is a directory that the host's nodes share: in it they note whose images ask for credentials.
	PrivateImages string `json:"privateImages"`
	// RuntimeHandler that every sandbox of this node gets.
	RuntimeHandler string `json:"runtimeHandler"`
	// PortForward is how `kubectl port-forward` reaches ports inside the sandbox; nil: as containerd does it.
	PortForward *PortForward `json:"portForward,omitempty"`
	// AllowPrivileged: the pod's containers may have all rights inside the pod's virtual machine.
	AllowPrivileged bool `json:"allowPrivileged,omitempty"`
	// CgroupParent of the sandbox, below each hierarchy's root.
	CgroupParent string `json:"cgroupParent"`

	ClusterDomain string   `json:"clusterDomain"`
	ClusterDNS    []string `json:"clusterDNS,omitempty"`
	ResolvConf    string   `json:"resolvConf"`

	// EventSocket of the host agent; empty: events are not sent.
	EventSocket string `json:"eventSocket,omitempty"`
}

// PortForward is a command that connects to a port of a sandbox. It gets the sandbox's id and the port as further arguments.
type PortForward struct {
	Command []string `json:"command"`
	// SocketFlag, if set, comes before those, with the path of a unix socket to which the command connects with the port's
	// bytes. Without it they are its standard input and output.
	SocketFlag string `json:"socketFlag,omitempty"`
}

// Stage of a pod's start that a node process tells the agent about.
type Stage string

// The stages, each sent once; StageTrouble whenever it is another.
const (
	StageConfigured       Stage = "Configured"       // configuration read
	StageNodeRegistered   Stage = "NodeRegistered"   // the Node object exists
	StagePullStarted      Stage = "PullStarted"      // first image pull asked for
	StageTrouble          Stage = "Trouble"          // sandbox cannot be started, or does not run: see Reason and Message; without them: no more
	StageSandboxStarted   Stage = "SandboxStarted"   // sandbox runs
	StageContainerStarted Stage = "ContainerStarted" // first container runs
	StageFailed           Stage = "Failed"           // the process gives up; see Message
)

// Event is one datagram from a node process.
type Event struct {
	PodUID types.UID `json:"podUID"`
	Stage  Stage     `json:"stage"`
	Time   time.Time `json:"time"`
	// Reason (a word, of StageTrouble) and Message (a sentence).
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message,omitempty"`
}
