package e2e

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestPolicies checks network policies with real traffic between pods, each step from the policies of the one before.
// Pods policy-a/server (80, its named port web, 81 and an echo at 82), policy-a/client and policy-b/client (80).
func TestPolicies(t *testing.T) {
	file := filepath.Join("testdata", "policy.yaml")
	t.Cleanup(func() { kubectl(t, "delete", "-f", file, "--ignore-not-found", "--wait", "--timeout=90s") })
	kubectl(t, "apply", "-f", file)
	// Everything is denied already: that the server gets ready shows that probes pass.
	for _, ns := range []string{"policy-a", "policy-b"} {
		kubectl(t, "wait", "--for=condition=Ready", "pod", "--all", "-n", ns, "--timeout=90s")
	}
	p := &policyTest{T: t, file: filepath.Join(t.TempDir(), "policies.yaml"), addrs: map[string]string{}}
	for _, pod := range []string{"policy-a/server", "policy-a/client", "policy-b/client"} {
		ns, name, _ := strings.Cut(pod, "/")
		p.addrs[pod] = kubectl(t, "get", "pod", name, "-n", ns, "-o", "jsonpath={.status.podIP}")
	}

	p.expect("all denied", "!a/client a/server 80", "!b/client a/server 80", "!a/client b/client 80")
	p.explains("policy-b/client policy-a/server web", "denied: ingress of policy-a/server is isolated by policy-a/deny")
	p.explains("policy-a/client policy-b/client 80", "denied: egress of policy-a/client is isolated by policy-a/deny")

	p.set("web", `{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {app: client}}}], ports: [{port: web}]}]}`)
	p.set("out", `{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {matchLabels: {app: server}}}]}]}`)
	p.expect("a label and a named port", "a/client a/server 80", "!a/client a/server 81", "!b/client a/server 80", "!a/client b/client 80")
	p.explains("policy-a/client policy-a/server 80", "allowed: egress of policy-a/client is allowed by policy-a/out (egress rule 1); ingress of policy-a/server is allowed by policy-a/web (ingress rule 1)")

	p.set("web", `{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{namespaceSelector: {matchLabels: {kubernetes.io/metadata.name: policy-b}}}], ports: [{port: 81, endPort: 82}]}]}`)
	p.expect("a namespace and a range of ports", "b/client a/server 81", "!b/client a/server 80", "!a/client a/server 80")
	running := p.connect()

	p.set("web", fmt.Sprintf(`{podSelector: {matchLabels: {app: server}}, ingress: [{from: [{ipBlock: {cidr: 10.90.0.0/16, except: [%s/32]}}]}]}`, p.addrs["policy-b/client"]))
	p.expect("a block with an exception", "a/client a/server 81", "!b/client a/server 81")
	running.isCut()

	p.set("out", fmt.Sprintf(`{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{ipBlock: {cidr: %s/32}}], ports: [{port: 80}]}]}`, p.addrs["policy-b/client"]))
	p.expect("egress to a block", "a/client b/client 80", "!a/client a/server 81")

	t.Run("a new pod's first packet", func(t *testing.T) {
		kubectl(t, "run", "early", "-n", "policy-a", "--image=busybox", "--image-pull-policy=IfNotPresent", "--restart=Never", "--",
			"sh", "-c", fmt.Sprintf("for i in 1 2; do if %s | grep OK; then exit 1; fi; done", request(p.addrs["policy-b/client"], "80")))
		shows(t, "Succeeded", "get", "pod", "early", "-n", "policy-a", "-o", "jsonpath={.status.phase}") // Failed: it got through
	})

	t.Run("the agent is killed", func(t *testing.T) {
		kill(t, partPID("berth-host"))
		p.expect("what held before holds", "a/client b/client 80", "!a/client a/server 81")
		p.set("out", `{podSelector: {matchLabels: {app: client}}, policyTypes: [Egress], egress: [{to: [{podSelector: {}}]}]}`)
		p.expect("what changed meanwhile holds", "!a/client b/client 80", "a/client a/server 81")
	})

	kubectl(t, "delete", "networkpolicy", "--all", "-n", "policy-a")
	p.expect("no policies any more", "a/client a/server 81", "b/client a/server 80", "a/client b/client 80")
	if restarts := kubectl(t, "get", "pod", "server", "-n", "policy-a", "-o", "jsonpath={.status.containerStatuses[0].restartCount}"); restarts != "0" {
		t.Errorf("probes failed under policies: the server was restarted %s times", restarts)
	}
}

type policyTest struct {
	*testing.T
	file  string
	addrs map[string]string
}

// set applies a policy of namespace policy-a.
func (p *policyTest) set(name, spec string) {
	p.Helper()
	text := fmt.Sprintf("apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {name: %s, namespace: policy-a}\nspec: %s\n", name, spec)
	if err := os.WriteFile(p.file, []byte(text), 0o600); err != nil {
		p.Fatal(err)
	}
	kubectl(p.T, "apply", "-f", p.file)
}

// expect waits until all connections ("from to port" without "policy-"; "!" if denied) are as told at the same time.
func (p *policyTest) expect(what string, connections ...string) {
	p.Helper()
	eventually(p.T, func() string {
		wrong := make([]string, len(connections))
		var g sync.WaitGroup
		for i, c := range connections {
			g.Go(func() {
				if denied := c[0] == '!'; p.passes(strings.TrimPrefix(c, "!")) == denied {
					wrong[i] = what + ": not so: " + c + "\n"
				}
			})
		}
		g.Wait()
		return strings.Join(wrong, "")
	})
}

func (p *policyTest) passes(connection string) bool {
	f := strings.Fields(connection)
	ns, pod, _ := strings.Cut(f[0], "/")
	out, err := berth("kubectl", "exec", "-n", "policy-"+ns, pod, "--", "sh", "-c", request(p.addrs["policy-"+f[1]], f[2]))
	return err == nil && strings.Contains(out, "200 OK")
}

// request is a shell command that asks a web server for a page and waits a second for the connection.
func request(address, port string) string {
	return fmt.Sprintf(`printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 1 %s %s`, address, port)
}

func (p *policyTest) explains(connection, want string) {
	p.Helper()
	out, err := berth(append([]string{"explain", "connection"}, strings.Fields(connection)...)...)
	if err != nil || !strings.Contains(out, want) {
		p.Errorf("berth explain connection %s: %v, %q; want %q", connection, err, out, want)
	}
}

// openConnection is one from policy-b/client to the server's echo.
type openConnection struct {
	*testing.T
	in    io.WriteCloser
	lines *bufio.Reader
}

func (p *policyTest) connect() *openConnection {
	p.Helper()
	cmd := exec.CommandContext(p.Context(), filepath.Join(top, "bin", "berth"), "kubectl", "exec", "-i", "-n", "policy-b", "client", "--", "nc", p.addrs["policy-a/server"], "82")
	in, err := cmd.StdinPipe()
	if err != nil {
		p.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		p.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		p.Fatal(err)
	}
	c := &openConnection{p.T, in, bufio.NewReader(out)}
	if _, err := c.echo(); err != nil {
		p.Fatalf("the connection does not work while it is allowed: %v", err)
	}
	return c
}

func (c *openConnection) echo() (string, error) {
	if _, err := io.WriteString(c.in, "hello\n"); err != nil {
		return "", err
	}
	return c.lines.ReadString('\n')
}

// isCut checks that both ends are told. The client's program notices that when it has something to send, and not by waiting for it.
func (c *openConnection) isCut() {
	c.Helper()
	ended := make(chan struct{})
	go func() {
		for {
			_, _ = io.WriteString(c.in, "hello\n") // it may have ended
			select {
			case <-ended:
				return
			case <-time.After(look):
			}
		}
	}()
	if line, err := c.lines.ReadString('\n'); err == nil {
		c.Errorf("a connection that is no longer allowed goes on: %q", line)
	}
	close(ended)
}
