package e2e

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/health/grpc_health_v1"
)

// TestProtocols sends, through an Ingress, HTTP/2, gRPC and WebSockets to a pod, and asks load balancers for the PROXY protocol and for source ranges.
func TestProtocols(t *testing.T) {
	outside(t)
	if out, err := exec.Command("ip", "-n", wayOut, "route", "add", "10.90.0.0/16", "via", near).CombinedOutput(); err != nil {
		t.Fatalf("%v, %s", err, out)
	}
	dir := t.TempDir()
	certificate(t, dir)
	kubectl(t, "create", "secret", "tls", "protocols", "--cert="+filepath.Join(dir, "tls.crt"), "--key="+filepath.Join(dir, "tls.key"))
	t.Cleanup(func() { kubectl(t, "delete", "secret", "protocols") })
	apply(t, "protocols.yaml")
	kubectl(t, "wait", "--for=condition=Ready", "pod/protocols", "--timeout=90s")
	copySelf(t, "protocols")
	address := func(object string) (ip string) {
		eventually(t, func() string {
			ip = kubectl(t, "get", object, "-o", "jsonpath={.status.loadBalancer.ingress[0].ip}")
			return missing(ip, "10.90.9")
		})
		return ip
	}
	web := address("ingress/protocols")
	abroad := func(args ...string) (string, error) {
		out, err := exec.Command("ip", append([]string{"netns", "exec", wayOut, "curl", "-sS", "--max-time", "5"}, args...)...).CombinedOutput()
		return string(out), err
	}
	t.Run("the client's address", func(t *testing.T) {
		eventually(t, func() string {
			out, err := abroad("-H", "Host: protocols.example", "http://"+web+"/x")
			return missing(out, "HTTP/1.1 /x from "+beyond+" by http\n", err)
		})
	})
	t.Run("HTTP/2", func(t *testing.T) {
		for path, want := range map[string]string{"/": "HTTP/1.1 / ", "/h2c": "HTTP/2.0 /h2c "} {
			eventually(t, func() string {
				protocol, said, err := asks2("https://" + web + path)
				return missing(protocol+" "+said, "HTTP/2.0 "+want, err)
			})
		}
	})
	t.Run("gRPC", func(t *testing.T) { speakGRPC(t, web) })
	t.Run("WebSocket, while what is published changes", func(t *testing.T) {
		var s socket
		eventually(t, func() (why string) { s, why = upgrade(web); return why })
		defer s.Close()
		s.echoes(t, "before")
		given(t, "{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: another}, spec: {ingressClassName: berth, rules: [{host: another.example, http: {paths: "+
			"[{path: /, pathType: Prefix, backend: {service: {name: protocols, port: {name: http}}}}]}}]}}\n")
		eventually(t, func() string {
			out, err := abroad("-H", "Host: another.example", "http://"+web+"/")
			return missing(out, "HTTP/1.1 / ", err)
		})
		s.echoes(t, "after")
	})
	t.Run("PROXY protocol", func(t *testing.T) {
		at := address("service/proxied")
		eventually(t, func() string {
			out, err := exec.Command("ip", "netns", "exec", wayOut, "timeout", "5", "bash", "-c", "cat </dev/tcp/"+at+"/9001").CombinedOutput()
			return missing(string(out), "client "+beyond+"\n", err)
		})
	})
	t.Run("source ranges", func(t *testing.T) {
		at := address("service/chosen")
		eventually(t, func() string {
			out, err := abroad("http://" + at + "/y")
			return missing(out, "HTTP/1.1 /y ", err)
		})
		if status, said, err := ask("http://"+at+"/y", "chosen"); err == nil {
			t.Errorf("who is not of the ranges is answered %d, %s", status, said)
		}
	})
}

// copySelf puts this program into a pod, which waits for it.
func copySelf(t *testing.T, pod string) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	program, err := os.Open(self)
	if err != nil {
		t.Fatal(err)
	}
	defer program.Close()
	cmd := exec.Command(filepath.Join(top, "bin", "berth"), "kubectl", "exec", "-i", pod, "--", "sh", "-c", "cat > /copy && chmod +x /copy && mv /copy /ready")
	cmd.Stdin = program
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("copy this program into pod %s: %v, %s", pod, err, out)
	}
}

// asks2 asks protocols.example by HTTP/2 and returns the protocol that was spoken, and what was said.
func asks2(url string) (protocol, said string, err error) {
	var protocols http.Protocols
	protocols.SetHTTP2(true)
	transport := &http.Transport{Protocols: &protocols, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "protocols.example"}}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return "", "", err
	}
	req.Host = "protocols.example"
	resp, err := (&http.Client{Timeout: 10 * time.Second, Transport: transport}).Do(req)
	if err != nil {
		return "", "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return resp.Proto, string(body), err
}

// speakGRPC makes a call and reads a stream, through TLS.
func speakGRPC(t *testing.T, web string) {
	t.Helper()
	conn, err := grpc.NewClient(web+":443", grpc.WithAuthority("grpc.example"),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{InsecureSkipVerify: true, ServerName: "grpc.example"})))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	client := grpc_health_v1.NewHealthClient(conn)
	eventually(t, func() string {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		answer, err := client.Check(ctx, &grpc_health_v1.HealthCheckRequest{})
		if err != nil {
			return err.Error()
		}
		return missing(answer.Status.String(), "SERVING")
	})
	stream, err := client.Watch(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if first, err := stream.Recv(); err != nil || first.Status != grpc_health_v1.HealthCheckResponse_SERVING {
		t.Errorf("a stream says %v, %v", first, err)
	}
}

// socket is a connection that was upgraded.
type socket struct {
	net.Conn
	lines *bufio.Reader
}

// upgrade asks protocols.example for a WebSocket; why not, if it has none.
func upgrade(web string) (s socket, why string) {
	conn, err := net.DialTimeout("tcp", web+":80", 5*time.Second)
	if err != nil {
		return socket{}, err.Error()
	}
	s = socket{conn, bufio.NewReader(conn)}
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return socket{}, err.Error()
	}
	fmt.Fprint(conn, "GET /ws HTTP/1.1\r\nHost: protocols.example\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
	resp, err := http.ReadResponse(s.lines, nil) //nolint:bodyclose // there is no body: the connection goes on
	if err != nil {
		return socket{}, err.Error()
	}
	if resp.StatusCode != http.StatusSwitchingProtocols || !strings.EqualFold(resp.Header.Get("Upgrade"), "websocket") {
		return socket{}, fmt.Sprintf("%s, %v", resp.Status, resp.Header)
	}
	return s, ""
}

func (s socket) echoes(t *testing.T, word string) {
	t.Helper()
	if _, err := fmt.Fprintln(s, word); err != nil {
		t.Fatal(err)
	}
	if got, err := s.lines.ReadString('\n'); err != nil || got != word+"\n" {
		t.Errorf("the connection echoes %q, %v, want %q", got, err, word)
	}
}
