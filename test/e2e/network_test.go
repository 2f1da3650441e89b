package e2e

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

const (
	// beyond is a machine outside, behind a link of this one (documentation addresses, RFC 5737).
	beyond, near = "203.0.113.9", "203.0.113.1"
	wayOut       = "berth-e2e"
)

// TestNetwork checks what subnets, bandwidths and the kinds of Services do to real traffic.
func TestNetwork(t *testing.T) {
	callers := outside(t)
	apply(t, "network.yaml")
	kubectl(t, "wait", "--for=condition=Ready", "pod/inside", "pod/open", "pod/slow", "pod/part-1", "--timeout=90s")
	ip := func(pod string) string { return kubectl(t, "get", "pod", pod, "-o", "jsonpath={.status.podIP}") }
	curl := func(pod string, args ...string) (string, error) {
		return berth(append([]string{"kubectl", "exec", pod, "--", "curl", "-sS", "--max-time", "5"}, args...)...)
	}
	slow := ip("slow")
	t.Run("private subnets with and without NAT", func(t *testing.T) {
		if out, err := curl("open", "http://"+beyond+"/"); err != nil || !strings.Contains(out, "outside") {
			t.Errorf("a pod of a subnet with NAT: %v, %s", err, out)
		} else if from := <-callers; from != near {
			t.Errorf("outside sees %s, want the host's address %s", from, near)
		}
		// Refused at once (curl's 7), not left to time out (28).
		if out, err := curl("inside", "http://"+beyond+"/"); err == nil || !strings.Contains(out, "exit code 7") {
			t.Errorf("a pod of a subnet without NAT gets out, or is not told at once that it does not: %v, %s", err, out)
		}
		for _, url := range []string{"http://" + slow + "/", "http://direct/", "https://kubernetes/healthz -k"} {
			if out, err := curl("inside", strings.Fields(url)...); err != nil {
				t.Errorf("%s: %v, %s", url, err, out)
			}
		}
		kubectl(t, "patch", "subnet", "closed", "--type=merge", "-p", `{"spec": {"natGateway": true}}`)
		eventually(t, func() string { out, _ := curl("inside", "http://"+beyond+"/"); return missing(out, "outside") })
	})
	t.Run("metadata and other addresses of the link are out of reach", func(t *testing.T) {
		for _, url := range []string{"http://169.254.169.254/", "http://" + near + ":10248/", "http://10.90.255.1:23446/readyz"} {
			if out, err := curl("open", "--max-time", "1", url); err == nil {
				t.Errorf("%s answers: %s", url, out)
			}
		}
	})
	t.Run("bandwidth", func(t *testing.T) {
		began := time.Now()
		resp, err := http.Get("http://" + slow + "/zeros")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		n, err := io.Copy(io.Discard, resp.Body)
		// 64 Mbit at 16 Mbit/s are 4 s, less what the bucket held: 0.15 s.
		if took := time.Since(began); err != nil || n != 8_000_000 || took < 3850*time.Millisecond {
			t.Errorf("%d bytes in %s, %v", n, took, err)
		}
		shows(t, `annotation kubernetes.io/ingress-bandwidth: "10Mbit" is not a number of bits per second from 1k to 1P, such as 10M`,
			"get", "events", "--field-selector", "involvedObject.name=toofast", "-o", "jsonpath={.items[*].message}")
	})
	t.Run("a node port that keeps the client's address", func(t *testing.T) {
		port := kubectl(t, "get", "service", "direct", "-o", "jsonpath={.spec.ports[0].nodePort}")
		if out, err := exec.Command("ip", "netns", "exec", wayOut, "curl", "-sS", "--max-time", "5", "http://"+near+":"+port+"/").CombinedOutput(); err != nil {
			t.Fatalf("%v, %s", err, out)
		}
		shows(t, beyond+" - - ", "logs", "slow")
	})
	t.Run("SCTP as far as this kernel and kube-proxy go", func(t *testing.T) {
		vip := kubectl(t, "get", "service", "streams", "-o", "jsonpath={.spec.clusterIP}")
		eventually(t, func() string {
			out, err := exec.Command("nft", "list", "map", "ip", "kube-proxy", "service-ips").CombinedOutput()
			return missing(strings.Join(strings.Fields(string(out)), " "), vip+" . sctp . 9999", err)
		})
	})
	t.Run("names", func(t *testing.T) { names(t, "10.96.0.10", ip("part-1")) })
	t.Run("names by a load balancer, UDP and TCP", func(t *testing.T) {
		var at string
		eventually(t, func() string {
			at = kubectl(t, "get", "service", "names", "-n", "kube-system", "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}")
			return missing(at, "10.90.9")
		})
		for _, network := range []string{"udp", "tcp"} {
			eventually(t, func() string {
				got, err := resolver(network, at).LookupHost(t.Context(), "kubernetes.default.svc.cluster.local.")
				return missing(strings.Join(got, " "), "10.96.0.1", err)
			})
		}
	})
	t.Run("subnets", func(t *testing.T) { subnets(t) })
}

// missing says that the text lacks what is wanted.
func missing(text, want string, errs ...error) string {
	if strings.Contains(text, want) {
		return ""
	}
	return fmt.Sprintf("%q is not in %q, %v", want, text, errs)
}

func resolver(network, server string) *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{Timeout: 5 * time.Second}).DialContext(ctx, network, server+":53")
	}}
}

// names asks the cluster's DNS for records of every kind.
func names(t *testing.T, server, part string) {
	t.Helper()
	r, ctx := resolver("udp", server), t.Context()
	dashed := strings.ReplaceAll(part, ".", "-")
	for name, want := range map[string]string{
		"kubernetes.default.svc.cluster.local.":            "10.96.0.1",
		"parts.default.svc.cluster.local.":                 part, // headless: the pods
		"one.parts.default.svc.cluster.local.":             part, // a pod's hostname and subdomain
		dashed + ".default.pod.cluster.local.":             part,
		"_web._tcp.parts.default.svc.cluster.local. (SRV)": "one.parts.default.svc.cluster.local.:80",
		part + " (PTR)":                     "one.parts.default.svc.cluster.local.",
		"10.96.0.1 (PTR)":                   "kubernetes.default.svc.cluster.local.",
		"elsewhere (CNAME)":                 "www.example.com.",
		"nobody.default.svc.cluster.local.": "no such host",
	} {
		eventually(t, func() string {
			var got []string
			var err error
			switch kind := name[strings.LastIndex(name, " ")+1:]; kind {
			case "(SRV)":
				var records []*net.SRV
				_, records, err = r.LookupSRV(ctx, "web", "tcp", "parts.default.svc.cluster.local.")
				for _, s := range records {
					got = append(got, fmt.Sprintf("%s:%d", s.Target, s.Port))
				}
			case "(PTR)":
				got, err = r.LookupAddr(ctx, strings.Fields(name)[0])
			case "(CNAME)":
				var alias string
				alias, err = r.LookupCNAME(ctx, "elsewhere.default.svc.cluster.local.")
				got = []string{alias}
			default:
				got, err = r.LookupHost(ctx, name)
			}
			return missing(fmt.Sprint(got, " ", err), want)
		})
	}
}

// subnets gives the cluster subnets that cannot be, and deletes one that is in use.
func subnets(t *testing.T) {
	t.Helper()
	create := func(name, cidr string) {
		t.Helper()
		manifest := fmt.Sprintf("{apiVersion: berth.run/v1alpha1, kind: Subnet, metadata: {name: %s}, spec: {cidr: %s, zone: local-1a}}", name, cidr)
		cmd := exec.Command("bash", "-c", "exec "+top+"/bin/berth kubectl apply -f - <<< \"$0\"", manifest)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("%v, %s", err, out)
		}
		t.Cleanup(func() { kubectl(t, "delete", "subnet", name, "--ignore-not-found", "--timeout=60s") })
	}
	create("twice", "10.90.0.0/24")
	shows(t, "spec.cidr 10.90.0.0/24 overlaps 10.90.0.0/19 of subnet private-local-1a", "get", "subnet", "twice", "-o", "jsonpath={.status.conditions[0].message}")
	create("lan", "203.0.0.0/16")
	shows(t, "overlaps 203.0.113.0/24, a network that host", "get", "subnet", "lan", "-o", "jsonpath={.status.conditions[0].message}")
	if out, err := berth("kubectl", "delete", "subnet", "closed"); err == nil || !strings.Contains(out, "subnet closed is in use: 1 of its addresses are held") {
		t.Errorf("a subnet with a pod in it: %v, %s", err, out)
	}
	if out, err := berth("kubectl", "patch", "subnet", "twice", "--type=merge", "-p", `{"spec": {"cidr": "10.91.0.0/24"}}`); err == nil || !strings.Contains(out, "cidr cannot be changed") {
		t.Errorf("a subnet that is to have another range: %v, %s", err, out)
	}
	kubectl(t, "delete", "pod", "inside")
	shows(t, "closed", "get", "subnets", "-o", "jsonpath={.items[?(@.status.usedIPs==0)].metadata.name}") // after the pause
}

// outside makes a machine beyond a link of this one, which serves a page and tells who asked for it.
func outside(t *testing.T) <-chan string {
	t.Helper()
	run := func(command string) {
		t.Helper()
		if out, err := exec.Command("bash", "-ec", command).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v, %s", command, err, out)
		}
	}
	t.Cleanup(func() {
		_ = exec.Command("ip", "link", "del", wayOut).Run() // with the namespace it would go some time later
		_ = exec.Command("ip", "netns", "del", wayOut).Run()
	})
	run(fmt.Sprintf("ip netns add %[1]s; ip link add %[1]s type veth peer name eth0 netns %[1]s; ip addr add %[2]s/24 dev %[1]s; ip link set %[1]s up; "+
		"ip -n %[1]s link set lo up; ip -n %[1]s link set eth0 up; ip -n %[1]s addr add %[3]s/24 dev eth0", wayOut, near, beyond))
	listener := make(chan net.Listener, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		ns, err := netns.GetFromName(wayOut)
		if err == nil {
			err = netns.Set(ns)
		}
		l, lerr := net.Listen("tcp", beyond+":80")
		if err != nil || lerr != nil {
			close(listener)
			return
		}
		listener <- l
	}()
	l, ok := <-listener
	if !ok {
		t.Fatal("cannot serve in the network namespace " + wayOut)
	}
	callers := make(chan string, 100)
	server := &http.Server{ReadHeaderTimeout: time.Second, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		from, _, _ := net.SplitHostPort(r.RemoteAddr)
		callers <- from
		fmt.Fprint(w, "outside")
	})}
	go func() { _ = server.Serve(l) }()
	t.Cleanup(func() { server.Close() })
	return callers
}

// links are those of pods on this machine.
func links(t *testing.T) []string {
	t.Helper()
	var list []netlink.Link
	eventually(t, func() string { // a list that changes while it is read is none
		var err error
		if list, err = netlink.LinkList(); err != nil {
			return err.Error()
		}
		return ""
	})
	var out []string
	for _, l := range list {
		if name := l.Attrs().Name; strings.HasPrefix(name, "bth") {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}
