package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/podnet"
)

// pluginName is the type by which configurations name this program.
const pluginName = "berth-cni"

type netConf struct {
	types.NetConf
	// RunDir is the host agent's run directory.
	RunDir string `json:"runDir"`
	IPAM   struct {
		Type   string `json:"type"`
		RunDir string `json:"runDir"`
		// Gateway of the pods; default is the first address of the pod's subnet.
		Gateway string `json:"gateway"`
	} `json:"ipam"`
}

// delegated says that another main plugin makes the link and asks for the address only.
func (c *netConf) delegated() bool { return c.Type != pluginName && c.IPAM.Type == pluginName }

func add(args *skel.CmdArgs) error {
	var conf netConf
	if err := json.Unmarshal(args.StdinData, &conf); err != nil {
		return fmt.Errorf("network configuration is not valid: %w", err)
	}
	uid := podUID(args.Args)
	if uid == "" {
		return fmt.Errorf("CNI_ARGS has no K8S_POD_UID: berth-cni serves pods only")
	}
	dir := conf.RunDir
	if conf.delegated() {
		dir = conf.IPAM.RunDir
	}
	if dir == "" {
		dir = layout.Default.Run
	}
	c, err := podnet.Read(filepath.Join(dir, "network", uid+".json"))
	if err != nil {
		return err
	}
	if conf.delegated() {
		return address(conf, c)
	}
	if err := podnet.Add(uid, args.Netns, c); err != nil {
		return err
	}
	index := 1
	result := &current.Result{
		CNIVersion: conf.CNIVersion,
		// Plugins further down the chain look for the host's end.
		Interfaces: []*current.Interface{{Name: podnet.HostLink(uid)}, {Name: args.IfName, Mac: podnet.MAC(uid).String(), Sandbox: args.Netns}},
		IPs: []*current.IPConfig{{Interface: &index, Gateway: net.ParseIP(c.Gateway),
			Address: net.IPNet{IP: net.ParseIP(c.IP), Mask: net.CIDRMask(32, 32)}}},
	}
	return types.PrintResult(result, conf.CNIVersion)
}

// address answers another main plugin: the address that the pod was given, as one of its subnet.
func address(conf netConf, c podnet.Config) error {
	subnet, err := netip.ParsePrefix(c.Subnet)
	if err != nil {
		return fmt.Errorf("the pod's network has no subnet (%q): the host agent is older than this plugin", c.Subnet)
	}
	gateway := subnet.Masked().Addr().Next().AsSlice()
	if conf.IPAM.Gateway != "" {
		if gateway = net.ParseIP(conf.IPAM.Gateway).To4(); gateway == nil {
			return fmt.Errorf("ipam.gateway %q is not an IPv4 address", conf.IPAM.Gateway)
		}
	}
	_, all, err := net.ParseCIDR("0.0.0.0/0")
	if err != nil {
		return err
	}
	result := &current.Result{
		CNIVersion: conf.CNIVersion,
		IPs:        []*current.IPConfig{{Gateway: gateway, Address: net.IPNet{IP: net.ParseIP(c.IP).To4(), Mask: net.CIDRMask(subnet.Bits(), 32)}}},
		Routes:     []*types.Route{{Dst: *all}},
	}
	return types.PrintResult(result, conf.CNIVersion)
}

func del(args *skel.CmdArgs) error {
	var conf netConf
	if err := json.Unmarshal(args.StdinData, &conf); err != nil {
		return fmt.Errorf("network configuration is not valid: %w", err)
	}
	if uid := podUID(args.Args); uid != "" && !conf.delegated() {
		return podnet.Del(uid)
	}
	return nil
}

func podUID(cniArgs string) string {
	for pair := range strings.SplitSeq(cniArgs, ";") {
		if uid, found := strings.CutPrefix(pair, "K8S_POD_UID="); found {
			return uid
		}
	}
	return ""
}
