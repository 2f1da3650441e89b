package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestGateway publishes pods by the Gateway API: a Gateway with an address of its own, HTTP and HTTPS, and routes that match,
// rewrite, redirect and share requests out.
func TestGateway(t *testing.T) {
	dir := t.TempDir()
	certificate(t, dir)
	kubectl(t, "create", "secret", "tls", "shop", "--cert="+filepath.Join(dir, "tls.crt"), "--key="+filepath.Join(dir, "tls.key"))
	t.Cleanup(func() { kubectl(t, "delete", "secret", "shop") })
	apply(t, "gateway.yaml")
	kubectl(t, "rollout", "status", "deployment/wares", "--timeout=90s")
	kubectl(t, "wait", "--for=condition=Programmed", "gateway/market", "--timeout=60s")
	kubectl(t, "wait", "--for=condition=Accepted", "gatewayclass/berth", "--timeout=60s")
	address := kubectl(t, "get", "gateway", "market", "-o", "jsonpath={.status.addresses[0].value}")
	for _, tc := range []struct {
		url     string
		headers map[string]string
		status  int
		want    string
	}{
		{"http://" + address + "/cgi-bin/echo?x=1", nil, 200, "wares /cgi-bin/echo?x=1 (100 % 'added') market.example"},
		{"https://" + address + "/cgi-bin/echo", nil, 200, "wares /cgi-bin/echo (100 % 'added') market.example"},
		{"http://" + address + "/cgi-bin/echo", nil, 200, "X-Served-By: berth"},
		{"http://" + address + "/old/echo?x=1", nil, 200, "wares /cgi-bin/echo?x=1 () inner.example"},
		{"http://" + address + "/moved/on?x=1", nil, 301, "Location: https://market.example/there/on?x=1"},
		{"http://" + address + "/any?q=a%20b", map[string]string{"Version": "2"}, 200, "wares /cgi-bin/echo?q=a%20b"},
		{"http://" + address + "/any?q=c", map[string]string{"Version": "2"}, 404, "nothing is published"},
		{"http://" + address + "/cgi-bin/echo", map[string]string{"Host": "other.example"}, 404, "nothing is published"},
	} {
		eventually(t, func() string {
			status, said, err := asks(tc.url, tc.headers)
			if err != nil || status != tc.status || !strings.Contains(said, tc.want) {
				return fmt.Sprintf("%s with %v answers %d, %q, %v; want %d, %q", tc.url, tc.headers, status, said, err, tc.status, tc.want)
			}
			return ""
		})
	}
	t.Run("half of the requests", func(t *testing.T) {
		count := map[int]int{}
		for range 100 {
			status, _, err := asks("http://"+address+"/half", nil)
			if err != nil {
				t.Fatal(err)
			}
			count[status]++
		}
		if count[200]+count[500] != 100 || count[200] < 20 || count[500] < 20 {
			t.Errorf("answers by status: %v; want about half 200, and half 500 from a backend that does not exist", count)
		}
	})
	for query, want := range map[string]string{
		`{.status.parents[0].conditions[?(@.type=="ResolvedRefs")].message}`: "there is no Service nowhere",
		`{.status.parents[0].conditions[?(@.type=="Accepted")].status}`:      "True",
	} {
		shows(t, want, "get", "httproute", "market", "-o", "jsonpath="+query)
	}
	shows(t, "RegularExpression are not served", "get", "httproute", "regular", "-o", `jsonpath={.status.parents[0].conditions[?(@.type=="Accepted")].message}`)
	shows(t, "1", "get", "gateway", "market", "-o", `jsonpath={.status.listeners[0].attachedRoutes}`)
	t.Run("no request fails while routes change", func(t *testing.T) {
		stop, result := make(chan struct{}), make(chan error, 1)
		go func() {
			for {
				select {
				case <-stop:
					result <- nil
					return
				default:
				}
				if status, said, err := asks("http://"+address+"/cgi-bin/echo", nil); err != nil || status != 200 {
					result <- fmt.Errorf("%d, %s, %w", status, said, err)
					return
				}
				time.Sleep(5 * time.Millisecond)
			}
		}()
		kubectl(t, "patch", "httproute", "regular", "--type=json", "-p", `[{"op":"replace","path":"/spec/rules/0/matches/0/path","value":{"type":"PathPrefix","value":"/b"}}]`)
		kubectl(t, "wait", "--for=jsonpath={.status.listeners[0].attachedRoutes}=2", "gateway/market", "--timeout=30s")
		close(stop)
		if err := <-result; err != nil {
			t.Error(err)
		}
	})
}

// asks market.example, if no other host is among the headers, over a new connection; what it says begins with its headers.
func asks(url string, headers map[string]string) (int, string, error) {
	transport := &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "market.example"}}
	client := &http.Client{Timeout: 10 * time.Second, Transport: transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	req, err := http.NewRequest(http.MethodGet, url, nil)
	if err != nil {
		return 0, "", err
	}
	req.Host = "market.example"
	for name, value := range headers {
		if name == "Host" {
			req.Host = value
		}
		req.Header.Set(name, value)
	}
	resp, err := client.Do(req)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	var said strings.Builder
	_ = resp.Header.Write(&said)
	_, err = io.Copy(&said, resp.Body)
	return resp.StatusCode, said.String(), err
}
