package main

import (
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"strings"

	"github.com/containernetworking/cni/pkg/skel"
	"github.com/containernetworking/cni/pkg/types"
	current "github.com/containernetworking/cni/pkg/types/100"

	"github.com/berth-run/berth/internal/podnet"
)

type netConf struct {
	types.NetConf
	// RunDir is the host agent's run directory.
	RunDir string `json:"runDir"`
}

func add(args *skel.CmdArgs) error {
	var conf netConf
	if err := json.Unmarshal(args.StdinData, &conf); err != nil {
		return fmt.Errorf("network configuration is not valid: %w", err)
	}
	uid := podUID(args.Args)
	if uid == "" {
		return fmt.Errorf("CNI_ARGS has no K8S_POD_UID: berth-cni serves pods only")
	}
	c, err := podnet.Read(filepath.Join(conf.RunDir, "network", uid+".json"))
	if err != nil {
		return err
	}
	if err := podnet.Add(uid, args.Netns, c); err != nil {
		return err
	}
	index := 0
	result := &current.Result{
		CNIVersion: conf.CNIVersion,
		Interfaces: []*current.Interface{{Name: args.IfName, Mac: podnet.MAC(uid).String(), Sandbox: args.Netns}},
		IPs: []*current.IPConfig{{Interface: &index, Gateway: net.ParseIP(c.Gateway),
			Address: net.IPNet{IP: net.ParseIP(c.IP), Mask: net.CIDRMask(32, 32)}}},
	}
	return types.PrintResult(result, conf.CNIVersion)
}

func del(args *skel.CmdArgs) error {
	if uid := podUID(args.Args); uid != "" {
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
