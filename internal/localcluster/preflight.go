package localcluster

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/berth-run/berth/internal/eks"
	"github.com/berth-run/berth/internal/layout"
)

// preflight checks what the cluster needs of the machine; each failure is one sentence with its remedy.
func preflight(ctx context.Context, dirs layout.Dirs, binDir string) error {
	var failed []error
	for command, pkg := range map[string]string{"nft": "nftables", "mount": "mount", "tar": "tar", "haproxy": "haproxy"} {
		if _, err := exec.LookPath(command); err != nil {
			failed = append(failed, fmt.Errorf("command %s is missing: install Debian package %s", command, pkg))
		}
	}
	for _, program := range []string{"etcd", "registry", "containerd", "runsc", "containerd-shim-runsc-v1", "containerd-shim-runsc-start", "kube-apiserver",
		"kube-controller-manager", "kube-scheduler", "berth-controller", "berth-host", "berth-proxy", "berth-lb", "berth-node", "berth-cni"} {
		if _, err := os.Stat(filepath.Join(binDir, program)); err != nil {
			failed = append(failed, fmt.Errorf("program %s is missing in %s: run make build", program, binDir))
		}
	}
	for _, port := range []int{layout.APIServerPort, layout.EtcdPort, layout.EtcdPeerPort, layout.ControllerManagerPort, layout.SchedulerPort,
		layout.RegistryPort, layout.ControllerHealthPort, layout.AgentHealthPort, layout.ProxyHealthPort, layout.LBHealthPort, eks.WebhookPort} {
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			failed = append(failed, fmt.Errorf("port %d is taken by another program (`ss -ltnp sport = :%d` shows which): stop it", port, port))
			continue
		}
		l.Close()
	}
	failed = append(failed, collision())
	if err := errors.Join(failed...); err != nil {
		return err // without nft, for one, the kernel cannot be tried
	}
	return checkKernel(ctx, dirs)
}

// needRoot is an error unless this process is root.
func needRoot() error {
	if os.Geteuid() != 0 {
		return errors.New("this needs root (for network links, mounts and cgroups): run it with sudo")
	}
	return nil
}

// collision says whether a route of the machine overlaps the pods' addresses.
func collision() error {
	_, vpc, err := net.ParseCIDR(layout.VPCCIDR)
	if err != nil {
		return err
	}
	routes, err := netlink.RouteList(nil, netlink.FAMILY_V4)
	if err != nil {
		return fmt.Errorf("read the machine's routes: %w", err)
	}
	for _, r := range routes {
		if r.Dst == nil || r.Dst.IP.IsUnspecified() {
			continue
		}
		link, err := netlink.LinkByIndex(r.LinkIndex)
		if err != nil || link.Attrs().Name == layout.GatewayLink || strings.HasPrefix(link.Attrs().Name, layout.VethPrefix) {
			continue
		}
		if vpc.Contains(r.Dst.IP) || r.Dst.Contains(vpc.IP) {
			return fmt.Errorf("the machine has a route to %s over %s, which overlaps the pods' addresses %s: remove it", r.Dst, link.Attrs().Name, layout.VPCCIDR)
		}
	}
	return nil
}
