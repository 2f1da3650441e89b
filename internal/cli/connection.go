package cli

import (
	"context"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	corev1 "k8s.io/api/core/v1"
	networking "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/berth-run/berth/api/v1alpha1"
	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/policy"
)

func explainConnection(dirs layout.Dirs, cluster, namespace, output *string) *cobra.Command {
	return &cobra.Command{Use: "connection FROM TO PORT", Aliases: []string{"conn"}, Args: cobra.ExactArgs(3),
		Short: "Say whether NetworkPolicies let a connection pass, and which of them decides",
		Long: "Say whether NetworkPolicies let a connection pass, and which of them decides. FROM and TO are pods (NAMESPACE/NAME) or addresses; " +
			"PORT is the destination's, by number or name, with its protocol if that is not TCP.",
		Example: "  berth explain connection default/web-0 default/db-0 5432\n  berth explain connection web-0 kube-system/coredns-0 53/udp\n  berth explain connection 192.0.2.7 web-0 http -o json",
		RunE: func(c *cobra.Command, args []string) error {
			kube, err := connect(dirs, *cluster)
			if err != nil {
				return err
			}
			e, err := connection(c.Context(), kube, *namespace, args[0], args[1], args[2])
			if err != nil {
				return err
			}
			if *output != "text" {
				return encode(c.OutOrStdout(), *output, e)
			}
			return e.Print(c.OutOrStdout())
		}}
}

func connection(ctx context.Context, kube client.Client, namespace, from, to, port string) (policy.Explanation, error) {
	var none policy.Explanation
	cluster, pods, err := policyState(ctx, kube)
	if err != nil {
		return none, err
	}
	var ends [2]policy.Endpoint
	for i, text := range []string{from, to} {
		if ends[i], err = endpoint(pods, namespace, text); err != nil {
			return none, err
		}
		if ends[i].Pod == nil {
			if err := addressOfPolicies(ctx, kube, ends[i].Addr); err != nil {
				return none, err
			}
		}
	}
	p, err := portOf(ends[1], port)
	if err != nil {
		return none, err
	}
	return cluster.Explain(ends[0], ends[1], p), nil
}

// policyState reads all that policies depend on. Addresses are those that the agents enforce by: of a Berth, as soon as there is one.
func policyState(ctx context.Context, kube client.Client) (policy.Cluster, map[types.NamespacedName]policy.Pod, error) {
	var berths v1alpha1.BerthList
	var pods corev1.PodList
	var namespaces corev1.NamespaceList
	var policies networking.NetworkPolicyList
	for _, list := range []client.ObjectList{&berths, &pods, &namespaces, &policies} {
		if err := kube.List(ctx, list); err != nil {
			return policy.Cluster{}, nil, fmt.Errorf("read the cluster: %w", err)
		}
	}
	addrs := map[types.UID]string{}
	for _, b := range berths.Items {
		addrs[b.Spec.Pod.UID] = b.Spec.IP
	}
	known := map[types.NamespacedName]policy.Pod{}
	for i := range pods.Items {
		p := &pods.Items[i]
		text, local := addrs[p.UID]
		if !local {
			text = p.Status.PodIP
		}
		addr, _ := netip.ParseAddr(text) // not valid: the pod has none yet
		known[client.ObjectKeyFromObject(p)] = policy.PodOf(p, addr, local)
	}
	c := policy.Cluster{Policies: policies.Items, Namespaces: map[string]map[string]string{}}
	slices.SortFunc(c.Policies, policy.ComparePolicies)
	for _, n := range namespaces.Items {
		c.Namespaces[n.Name] = n.Labels
	}
	return c, known, nil
}

// endpoint is the pod of that name or address, or an address that no pod has.
func endpoint(pods map[types.NamespacedName]policy.Pod, namespace, text string) (policy.Endpoint, error) {
	if addr, err := netip.ParseAddr(text); err == nil {
		for _, p := range pods {
			if p.Addr == addr {
				return policy.Endpoint{Pod: &p}, nil
			}
		}
		return policy.Endpoint{Addr: addr}, nil
	}
	key := types.NamespacedName{Namespace: namespace, Name: text}
	if ns, name, found := strings.Cut(text, "/"); found {
		key = types.NamespacedName{Namespace: ns, Name: name}
	}
	p, ok := pods[key]
	if !ok {
		return policy.Endpoint{}, fmt.Errorf("there is no pod %s; give a pod as NAMESPACE/NAME, or an address", key)
	}
	return policy.Endpoint{Pod: &p}, nil
}

// addressOfPolicies refuses addresses for which an answer would mislead: policies never see them.
func addressOfPolicies(ctx context.Context, kube client.Client, addr netip.Addr) error {
	if addr.String() == layout.GatewayIP || addr.IsLoopback() {
		return fmt.Errorf("%s is the pods' host: no policy applies between a pod and its own host", addr)
	}
	var services corev1.ServiceList
	if err := kube.List(ctx, &services); err != nil {
		return fmt.Errorf("list services: %w", err)
	}
	for _, s := range services.Items {
		if slices.Contains(s.Spec.ClusterIPs, addr.String()) {
			return fmt.Errorf("%s is Service %s/%s: policies apply to the pods behind it; name one of them, with its own port", addr, s.Namespace, s.Name)
		}
	}
	return nil
}

// portOf reads "80", "53/udp" or the name of a port of the destination.
func portOf(to policy.Endpoint, text string) (policy.Port, error) {
	name, protocol, found := strings.Cut(text, "/")
	p := policy.Port{Protocol: corev1.ProtocolTCP}
	if found {
		p.Protocol = corev1.Protocol(strings.ToUpper(protocol))
	}
	if !slices.Contains([]corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP, corev1.ProtocolSCTP}, p.Protocol) {
		return p, fmt.Errorf("port %q: the protocol is tcp, udp or sctp", text)
	}
	if number, err := strconv.ParseUint(name, 10, 16); err == nil && number > 0 {
		p.Number = uint16(number)
		return p, nil
	}
	number, ok := to.Named(name, p.Protocol)
	if !ok {
		return p, fmt.Errorf("port %q: neither a number from 1 to 65535 nor the name of a %s port of %s", text, p.Protocol, to)
	}
	p.Number = number
	return p, nil
}
