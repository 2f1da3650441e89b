// Command berth-cni is the CNI plugin of Berth: it gives a pod the link that the host agent prepared for it.
package main

import (
	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/version"
)

func main() {
	ok := func(*skel.CmdArgs) error { return nil }
	skel.PluginMainFuncs(skel.CNIFuncs{Add: add, Del: del, Check: ok, Status: ok, GC: ok},
		version.PluginSupports("0.4.0", "1.0.0", "1.1.0"), "berth-cni: the link of a Berth pod")
}
