// Package layout says where things are on a machine: directories, sockets, ports, names of links and cgroups. Everything
// of ours that touches the machine takes them from here, and `berth down` removes what is named here. Pure.
package layout

import "path/filepath"

// Addresses and names that are fixed on a machine.
const (
	// GatewayLink is a link (a bridge without ports) that holds GatewayIP, the pods' next hop and the address by which pods reach the API server.
	GatewayLink = "berth0"
	// GatewayIP is the address of the host as pods see it.
	GatewayIP = "10.90.255.1"
	// KubeletRange is local to the host (ip route add local ... dev lo): each pod's kubelet listens on an address of it.
	KubeletRange = "10.90.240.0/21"
	// VethPrefix begins the name of the host end of each pod's link.
	VethPrefix = "bth"
	// NFTTable is the one nftables table (family ip) that is ours.
	NFTTable = "berth"
	// PublishedSet, of PublishedType, is the set in NFTTable of the load balancers' addresses and ports.
	PublishedSet  = "published-ports"
	PublishedType = "ipv4_addr . inet_service"
	// ProxyNFTTable is that of kube-proxy (family ip).
	ProxyNFTTable = "kube-proxy"
	// PodCgroup is the parent of every pod's cgroup, in every hierarchy: /berth/<pod uid>.
	PodCgroup = "berth"

	// APIServerPort of the local cluster, on every address of the machine.
	APIServerPort = 6443
	// EtcdPort and EtcdPeerPort on loopback.
	EtcdPort, EtcdPeerPort = 23790, 23800
	// ControllerManagerPort, SchedulerPort on loopback (health and metrics, https).
	ControllerManagerPort, SchedulerPort = 10257, 10259
	// RegistryPort of the loopback registry (http).
	RegistryPort = 23500
	// ControllerHealthPort and AgentHealthPort serve /healthz and /readyz on loopback (http).
	ControllerHealthPort, AgentHealthPort = 23446, 23447

	// ProxyHealthPort serves the health of kube-proxy on loopback (http).
	ProxyHealthPort = 10256
	// ControllerMetricsPort serves berth-controller's /metrics on loopback (http).
	ControllerMetricsPort = 23448

	// LBHealthPort serves the health of the load balancer on loopback (http).
	LBHealthPort = 23449

	// VPCCIDR of the local cluster: its subnets, GatewayIP and KubeletRange lie in it.
	VPCCIDR = "10.90.0.0/16"
	// ServiceCIDR of the local cluster; APIServiceIP is its first address, the Service "kubernetes".
	ServiceCIDR  = "10.96.0.0/16"
	APIServiceIP = "10.96.0.1"
	// DNSServiceIP is the address of Service kube-system/kube-dns.
	DNSServiceIP = "10.96.0.10"
	// ClusterDomain of the local cluster.
	ClusterDomain = "cluster.local"
	// DefaultRegion of the local cluster; its zones are DefaultRegion + "a", "b", "c".
	DefaultRegion = "local-1"
	// DefaultCluster is the local cluster's name (the --cluster of eksctl-like commands).
	DefaultCluster = "berth"

	// TemplateUser is the user and group id of the virtual machine monitors that make templates; those of pods' machines have ids above it.
	TemplateUser = 0x6fffffff

	// RuntimeHandlerGVisor and RuntimeHandlerMicroVM are the containerd runtime handlers of the isolations.
	RuntimeHandlerGVisor  = "gvisor"
	RuntimeHandlerMicroVM = "microvm"
)

// Dirs are the three directories of an installation. The zero value is not usable; see Default.
type Dirs struct {
	// State survives `berth down`: etcd, certificates, images, pods' volumes.
	State string
	// Run does not: sockets, process ids.
	Run string
	// Log holds one file per part.
	Log string
	// CNI may hold an operator's own CNI chain (a .conflist), which is used instead of ours.
	CNI string
}

// Default directories.
var Default = Dirs{State: "/var/lib/berth", Run: "/run/berth", Log: "/var/log/berth", CNI: "/etc/berth/cni"}

// PKI holds certificates and keys; Kubeconfig(part) the kubeconfigs made from them.
func (d Dirs) PKI() string                   { return filepath.Join(d.State, "pki") }
func (d Dirs) Kubeconfig(part string) string { return filepath.Join(d.State, "kubeconfig", part) }

// AdminKubeconfig is the one users take.
func (d Dirs) AdminKubeconfig() string { return d.Kubeconfig("admin") }

// Etcd, Containerd and Registry are the data directories of those programs.
func (d Dirs) Etcd() string       { return filepath.Join(d.State, "etcd") }
func (d Dirs) Containerd() string { return filepath.Join(d.State, "containerd") }
func (d Dirs) Registry() string   { return filepath.Join(d.State, "registry") }

// Config holds generated configuration files (containerd, registry, CNI, ...).
func (d Dirs) Config() string { return filepath.Join(d.State, "config") }

// ContainerdSocket is containerd's (and the CRI's) socket; ContainerdState its runtime state.
func (d Dirs) ContainerdSocket() string { return filepath.Join(d.Run, "containerd.sock") }
func (d Dirs) ContainerdState() string  { return filepath.Join(d.Run, "containerd") }

// PrivateImages notes the repositories whose images were pulled with credentials.
func (d Dirs) PrivateImages() string { return filepath.Join(d.State, "private-images") }

// LoadBalancer has HAProxy's files: its configuration, and the sockets of its worker and its master.
func (d Dirs) LoadBalancer() string { return filepath.Join(d.Run, "lb") }

// Files in LoadBalancer.
const (
	HAProxyConfig = "haproxy.cfg"
	HAProxySocket = "haproxy.sock"
	HAProxyMaster = "master.sock"
)

// ShimDirs is a file with these directories, as JSON, for the microVMs' shims: containerd tells them only where its socket is.
func (d Dirs) ShimDirs() string { return filepath.Join(d.Run, "shim.json") }

// MicroVM holds what virtual machines need on the host: templates (Templates), images as disks (ImageDisks), the pods' disks (PodDisks), and what
// was found out about the machine (MicroVMProbe).
func (d Dirs) MicroVM() string      { return filepath.Join(d.State, "microvm") }
func (d Dirs) Templates() string    { return filepath.Join(d.MicroVM(), "templates") }
func (d Dirs) ImageDisks() string   { return filepath.Join(d.MicroVM(), "images") }
func (d Dirs) PodDisks() string     { return filepath.Join(d.MicroVM(), "disks") }
func (d Dirs) MicroVMProbe() string { return filepath.Join(d.MicroVM(), "probe.json") }

// MicroVMRun is a sandbox's directory. Its name is the beginning of the sandbox's id: the paths of the sockets in it are limited to 107 bytes.
func (d Dirs) MicroVMRun(sandboxID string) string {
	return filepath.Join(d.Run, "microvm", sandboxID[:min(len(sandboxID), 20)])
}

// TemplateSocket is where the host agent hands the templates' memory to shims.
func (d Dirs) TemplateSocket() string { return filepath.Join(d.Run, "template.sock") }

// AgentSocket is where the host agent hears from node processes (unix datagrams, see nodeconfig.Event).
func (d Dirs) AgentSocket() string { return filepath.Join(d.Run, "agent.sock") }

// Node is a pod's kubelet root directory; NodeRun has its process id and configuration.
func (d Dirs) Node(podUID string) string    { return filepath.Join(d.State, "nodes", podUID) }
func (d Dirs) NodeRun(podUID string) string { return filepath.Join(d.Run, "nodes", podUID) }

// Guest is where the files of the virtual machines' guest are, beside the programs.
func Guest(binDir string) string { return filepath.Join(binDir, "guest") }

// NodeLog is the log of a pod's kubelet.
func (d Dirs) NodeLog(podUID string) string { return filepath.Join(d.Log, "nodes", podUID+".log") }

// PodNetwork is the file by which the agent tells the CNI plugin a pod's network (see podnet.Config).
func (d Dirs) PodNetwork(podUID string) string {
	return filepath.Join(d.Run, "network", podUID+".json")
}

// PodCgroupPath is a pod's cgroup below each hierarchy's root.
func PodCgroupPath(podUID string) string { return "/" + PodCgroup + "/" + podUID }
