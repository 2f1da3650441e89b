package e2e

import (
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"golang.org/x/crypto/bcrypt"
)

const (
	privateRegistry = "127.0.0.1:23555"
	privateImage    = privateRegistry + "/team/busybox:1"
	registryConfig  = `version: 0.1
storage: {filesystem: {rootdirectory: %s}}
http: {addr: %s}
auth: {htpasswd: {realm: test, path: %s}}
`
)

// TestPrivateRegistry pulls from a registry that asks for a password, without and with imagePullSecrets.
func TestPrivateRegistry(t *testing.T) {
	dir := t.TempDir()
	hash, err := bcrypt.GenerateFromPassword([]byte("secret"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	config, passwords := filepath.Join(dir, "config.yaml"), filepath.Join(dir, "htpasswd")
	for path, text := range map[string]string{
		passwords: "alice:" + string(hash) + "\n",
		config:    fmt.Sprintf(registryConfig, filepath.Join(dir, "data"), privateRegistry, passwords),
	} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	registry := exec.Command(filepath.Join(top, "bin", "registry"), "serve", config)
	registry.Env = append(os.Environ(), "OTEL_TRACES_EXPORTER=none")
	if err := registry.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = registry.Process.Kill()
		_ = registry.Wait()
	})
	eventually(t, func() string {
		resp, err := http.Get("http://" + privateRegistry + "/v2/")
		if err != nil {
			return err.Error()
		}
		resp.Body.Close()
		return ""
	})
	apply(t, "private.yaml") // its pod "public" brings busybox
	kubectl(t, "wait", "--for=condition=Ready", "pod/public", "--timeout=60s")
	// Not tagged on the host first: pod anonymous would find it there, and nobody would have said that it is private.
	ctr(t, "push", "--plain-http", "--user", "alice:secret", privateImage, "docker.io/library/busybox:latest")

	kubectl(t, "create", "secret", "docker-registry", "alice", "--docker-server="+privateRegistry, "--docker-username=alice", "--docker-password=secret")
	t.Cleanup(func() { kubectl(t, "delete", "secret", "alice") })
	kubectl(t, "wait", "--for=condition=Ready", "pod/known", "--timeout=60s")
	// The image is on the host now. A pod that brings no password must not get it from there, whenever it asks.
	apply(t, "stranger.yaml")
	for _, pod := range []string{"anonymous", "stranger"} {
		shows(t, "ErrImagePull", "get", "events", "--field-selector", "involvedObject.name="+pod, "-o", "jsonpath={.items[*].message}")
		if id := kubectl(t, "get", "pod", pod, "-o", "jsonpath={.status.containerStatuses[0].containerID}"); id != "" {
			t.Errorf("pod %s runs a private image without the password", pod)
		}
	}
	kubectl(t, "wait", "--for=condition=Ready", "pod/friend", "--timeout=60s")
}

func ctr(t *testing.T, args ...string) {
	t.Helper()
	command := append([]string{"--address", "/run/berth/containerd.sock", "--namespace", "k8s.io", "images"}, args...)
	if out, err := exec.Command(filepath.Join(top, "bin", "ctr"), command...).CombinedOutput(); err != nil {
		t.Fatalf("ctr images %v: %v\n%s", args, err, out)
	}
}
