// Package testkit runs a real etcd and a real kube-apiserver from bin/ for tests: on random loopback ports, with real
// certificates, RBAC and Berth's custom resources. Only tests import it. It needs no root.
//
// A test package starts one environment for all of its tests:
//
//	var env *testkit.Env
//
//	func TestMain(m *testing.M) { os.Exit(testkit.Main(m, &env)) }
package testkit

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"k8s.io/client-go/rest"
)

// EnvBin names the environment variable that holds the directory of etcd and kube-apiserver.
const EnvBin = "BERTH_BIN"

// startTimeout is how long the API server may take; two slow cores with a cold disk need most of it.
const startTimeout = 2 * time.Minute

// Env is a running API server. Stop ends it.
type Env struct {
	// Config is an administrator's (group system:masters).
	Config *rest.Config

	dir       string
	pki       *pki
	processes []*process
}

// Main starts an environment, puts it into env, runs the tests and stops it. It returns the exit code.
func Main(m *testing.M, env **Env) int {
	e, err := Start(context.Background())
	if err != nil {
		fmt.Fprintln(os.Stderr, "testkit:", err)
		return 1
	}
	*env = e
	code := m.Run()
	if err := e.Stop(); err != nil {
		fmt.Fprintln(os.Stderr, "testkit:", err)
		return 1
	}
	return code
}

// Start starts etcd and the API server and installs the custom resources of charts/berth/crds. On an error nothing is left running.
func Start(ctx context.Context) (*Env, error) {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	root, err := moduleRoot()
	if err != nil {
		return nil, err
	}
	bin, err := programs(root)
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "berth-testkit-")
	if err != nil {
		return nil, fmt.Errorf("make a directory for the test cluster: %w", err)
	}
	e := &Env{dir: dir}
	if err := e.start(ctx, bin); err != nil {
		return nil, errors.Join(err, e.Stop())
	}
	if err := InstallCRDs(ctx, e.Config, filepath.Join(root, "charts", "berth", "crds")); err != nil {
		return nil, errors.Join(err, e.Stop())
	}
	return e, nil
}

// Stop ends the processes and removes their files.
func (e *Env) Stop() error {
	var errs []error
	for i := len(e.processes) - 1; i >= 0; i-- {
		errs = append(errs, e.processes[i].stop())
	}
	e.processes = nil
	return errors.Join(append(errs, os.RemoveAll(e.dir))...)
}

// ConfigFor is a client configuration of another user, who may do what RBAC allows.
func (e *Env) ConfigFor(user string, groups ...string) (*rest.Config, error) {
	cert, key, err := e.pki.client(user, groups)
	if err != nil {
		return nil, err
	}
	config := rest.AnonymousClientConfig(e.Config)
	config.CertData, config.KeyData, config.QPS = cert, key, -1
	return config, nil
}

// WriteServingCert writes a certificate and key for 127.0.0.1 and the CA that signed it, all PEM, into dir.
func (e *Env) WriteServingCert(dir string) (cert, key, ca string, err error) {
	certPEM, keyPEM, err := e.pki.serving()
	if err != nil {
		return "", "", "", err
	}
	cert, key, ca = filepath.Join(dir, "tls.crt"), filepath.Join(dir, "tls.key"), filepath.Join(dir, "ca.crt")
	for file, data := range map[string][]byte{cert: certPEM, key: keyPEM, ca: e.pki.caPEM} {
		if err := os.WriteFile(file, data, 0o600); err != nil {
			return "", "", "", fmt.Errorf("write a test certificate: %w", err)
		}
	}
	return cert, key, ca, nil
}

// FreePort is a loopback TCP port that nobody listened on a moment ago.
func FreePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, fmt.Errorf("find a free port: %w", err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

func address(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// moduleRoot is the directory above the test's that holds charts/ and go.mod.
func moduleRoot() (string, error) {
	start, err := os.Getwd()
	if err != nil {
		return "", fmt.Errorf("find the module root: %w", err)
	}
	for dir := start; ; dir = filepath.Dir(dir) {
		if _, err := os.Stat(filepath.Join(dir, "charts", "berth", "crds")); err == nil {
			return dir, nil
		}
		if dir == filepath.Dir(dir) {
			return "", fmt.Errorf("no charts/berth/crds in or above %s; run the test inside the checkout", start)
		}
	}
}

// programs is the directory of etcd and kube-apiserver.
func programs(root string) (string, error) {
	bin := os.Getenv(EnvBin)
	if bin == "" {
		bin = filepath.Join(root, "bin")
	}
	for _, name := range []string{"etcd", "kube-apiserver"} {
		if _, err := os.Stat(filepath.Join(bin, name)); err != nil {
			return "", fmt.Errorf("these tests need %s: build it with `make build`, or set %s to the directory that has it: %w",
				filepath.Join(bin, name), EnvBin, err)
		}
	}
	return bin, nil
}
