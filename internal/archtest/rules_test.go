package archtest

import (
	"fmt"
	"strings"
)

const (
	module    = "github.com/berth-run/berth"
	apiModule = module + "/api"
)

// The layers, lowest first. A package imports from lower layers only, and inside its own component.
const (
	layerAPI = iota
	layerPure
	layerKit
	layerAdapter // node, podnet, images, runtimeconf, microvm, ...: these may also import each other
	layerService // controller, hostagent: never each other
	layerCluster // localcluster: supervises the services on one machine and cleans up after them
	layerCLI
	layerProgram // cmd, hack, test: nobody imports these
)

var layerNames = [...]string{"api", "pure", "kit", "adapter", "service", "cluster", "cli", "program"}

// purePackages import no client, ask for no time and do no I/O.
var purePackages = []string{"eks", "explain", "ipam", "layout", "logrouter", "nodeconfig", "patching", "placement", "podcheck", "policy", "profile", "sizing"}

// pureModules are the only ones outside the standard library that a pure package may import.
var pureModules = []string{"k8s.io/api", "k8s.io/apimachinery", "k8s.io/component-helpers"}

// apiModules are the only ones outside the standard library that the types may import.
var apiModules = []string{"k8s.io/api", "k8s.io/apimachinery"}

// impureStandard are packages of the standard library by which a package reaches the machine, the network or chance.
var impureStandard = []string{"os", "net", "syscall", "io/ioutil", "log", "database", "plugin", "embed",
	"math/rand", "crypto/rand", "runtime/debug", "testing"}

// pureExceptions lie below one of impureStandard and only compute.
var pureExceptions = []string{"net/netip", "net/url"}

// clients are what a pure package must not reach even through others.
var clients = []string{"k8s.io/client-go", "sigs.k8s.io/controller-runtime", "k8s.io/kubernetes", "k8s.io/kube-scheduler", "k8s.io/cri-client",
	"google.golang.org/grpc", "github.com/spf13/cobra", "os/exec"}

// kubeletCode is upstream's kubelet; kubeletImporter is the one component that may import it.
var kubeletCode = []string{"k8s.io/kubernetes/pkg/kubelet", "k8s.io/kubernetes/cmd/kubelet"}

const kubeletImporter = "internal/node"

// schedulerCode is upstream's scheduler; topologyImporter is the one component that may import it.
var schedulerCode = []string{"k8s.io/kubernetes/pkg/scheduler", "k8s.io/kube-scheduler"}

const topologyImporter = "internal/topology"

// temporary packages are outside every rule.
var temporary = []string{"internal/tmpdeps"}

// badNames say nothing about what a package is for.
var badNames = []string{"util", "utils", "common", "helper", "helpers", "misc"}

// under tells whether the import path is one of the roots or lies below one.
func under(path string, roots ...string) bool {
	for _, root := range roots {
		if path == root || strings.HasPrefix(path, root+"/") {
			return true
		}
	}
	return false
}

// local is a path inside the repository, such as internal/node, if the import path is one of ours.
func local(path string) (string, bool) {
	if !under(path, module) {
		return "", false
	}
	return strings.TrimPrefix(strings.TrimPrefix(path, module), "/"), true
}

// component is what belongs together: the first two elements of a local path, the first one for api.
func component(path string) string {
	parts := strings.SplitN(path, "/", 3)
	if parts[0] == "api" || len(parts) == 1 {
		return parts[0]
	}
	return parts[0] + "/" + parts[1]
}

func isPure(path string) bool {
	for _, name := range purePackages {
		if under(path, "internal/"+name) {
			return true
		}
	}
	return false
}

func layerOf(path string) int {
	switch {
	case under(path, "api"):
		return layerAPI
	case isPure(path):
		return layerPure
	case under(path, "internal/kit"):
		return layerKit
	case under(path, "internal/controller", "internal/hostagent"):
		return layerService
	case under(path, "internal/localcluster"):
		return layerCluster
	case under(path, "internal/cli"):
		return layerCLI
	case under(path, "cmd", "hack", "test"):
		return layerProgram
	}
	return layerAdapter
}

// standard tells whether the import path is of the standard library: its first element has no dot.
func standard(path string) bool {
	first, _, _ := strings.Cut(path, "/")
	return !strings.Contains(first, ".")
}

// refuse says why the local package may not import the path, or nothing if it may.
func refuse(pkg, path string) string {
	if under(path, kubeletCode...) && !under(pkg, kubeletImporter) {
		return "only " + kubeletImporter + " imports the kubelet; let it offer what is needed"
	}
	if under(path, schedulerCode...) && !under(pkg, topologyImporter) {
		return "only " + topologyImporter + " imports the scheduler; let it offer what is needed"
	}
	if imported, ours := local(path); ours {
		return refuseOurs(pkg, imported)
	}
	switch {
	case layerOf(pkg) == layerAPI && !standard(path) && !under(path, apiModules...):
		return "api imports apimachinery and k8s.io/api only, so that anyone can import it"
	case !isPure(pkg):
		return ""
	case standard(path) && under(path, impureStandard...) && !under(path, pureExceptions...):
		return "a pure package does no I/O; let its caller hand the value in"
	case !standard(path) && !under(path, pureModules...):
		return "a pure package imports no client and nothing but " + strings.Join(pureModules, ", ")
	}
	return ""
}

func refuseOurs(pkg, imported string) string {
	from, to := layerOf(pkg), layerOf(imported)
	switch {
	case to == layerProgram && component(pkg) != component(imported):
		return "nobody imports a program; move what is shared below internal/"
	case component(pkg) == component(imported), to < from, to == from && (to == layerPure || to == layerKit || to == layerAdapter):
		return ""
	}
	return fmt.Sprintf("arrows run downwards only: %s is %s, %s is %s", pkg, layerNames[from], imported, layerNames[to])
}
