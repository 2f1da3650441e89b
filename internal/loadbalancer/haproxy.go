package loadbalancer

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/util/wait"

	"github.com/berth-run/berth/internal/layout"
)

// reloadLimit is how long HAProxy may take to read its configuration.
const reloadLimit = 10 * time.Second

// errNotRunning: HAProxy reads the latest configuration when it starts, but it is not known when.
var errNotRunning = errors.New("HAProxy does not run")

// proxy feeds a HAProxy (a master and its worker) that somebody else runs, so that connections outlive this process.
type proxy struct {
	dir string
	// shape is the latest configuration without targets, and servers are those, as HAProxy has them. Empty: not known.
	shape   string
	servers map[string]string
	// resting servers take no connections and are deleted when they have none.
	resting map[string]bool
	// judged are certificates, by their hash, and what HAProxy says of them.
	judged map[[sha256.Size]byte]error
}

// newProxy writes a configuration without anything in it, unless there is one from before.
func newProxy(dir string) (*proxy, error) {
	for _, d := range []string{dir, filepath.Join(dir, "certs")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, fmt.Errorf("make HAProxy's directory: %w", err)
		}
	}
	p := &proxy{dir: dir, judged: map[[sha256.Size]byte]error{}}
	if _, err := os.Stat(p.path(layout.HAProxyConfig)); err == nil {
		return p, nil
	}
	_, text, err := p.render(Config{}, nil)
	if err != nil {
		return nil, err
	}
	return p, writeFile(p.path(layout.HAProxyConfig), []byte(text))
}

func (p *proxy) path(name string) string { return filepath.Join(p.dir, name) }

// apply lets HAProxy go over to the configuration. It is told of targets that come and go while it runs, within
// milliseconds: a pod that ends may not wait. For all else it reads its configuration anew: a new worker takes the listening
// sockets over, and the old one ends when its connections have.
func (p *proxy) apply(ctx context.Context, c Config, certs []Cert) error {
	shape, text, err := p.render(c, certs)
	if err != nil {
		return err
	}
	servers := c.servers()
	if shape == p.shape {
		// What HAProxy starts with if it ends by itself.
		if err := writeFile(p.path(layout.HAProxyConfig), []byte(text)); err != nil {
			return err
		}
		if p.tell(servers) == nil {
			p.servers = servers
			return nil
		}
	}
	p.shape = "" // if this fails, all of it is tried again
	if err := writeFile(p.path("new.cfg"), []byte(text)); err != nil {
		return err
	}
	if err := p.reload(ctx); err != nil {
		return err
	}
	p.shape, p.servers, p.resting = shape, servers, map[string]bool{}
	return nil
}

// tell takes servers out and brings others in.
func (p *proxy) tell(servers map[string]string) error {
	for name := range p.resting {
		if _, back := servers[name]; !back && p.command("del server "+name) == nil {
			delete(p.resting, name) // it had no connection any more
		}
	}
	for name := range p.servers {
		if _, stays := servers[name]; stays {
			continue
		}
		if err := p.command("set server " + name + " state maint"); err != nil {
			return err
		}
		p.resting[name] = true
		delete(p.servers, name)
	}
	for name, options := range servers {
		if p.servers[name] == options {
			continue
		}
		command := "set server " + name + " state ready"
		if !p.resting[name] {
			command = "add server " + name + " " + options + ";enable server " + name
			if !strings.HasSuffix(name, anyway) {
				command += ";enable health " + name
			}
		}
		if err := p.command(command); err != nil {
			return err
		}
		delete(p.resting, name)
	}
	return nil
}

// command changes something by HAProxy's runtime API. What it answers is an error, but for news of a server.
func (p *proxy) command(text string) error {
	said, err := p.ask(layout.HAProxySocket, text)
	if err != nil {
		return err
	}
	if said != "" && said != "New server registered." && said != "Server deleted." {
		return fmt.Errorf("HAProxy answers %q to %q", said, text)
	}
	return nil
}

// ask gives a command to HAProxy's worker or master and returns the answer.
func (p *proxy) ask(socket, text string) (string, error) {
	conn, err := net.DialTimeout("unix", p.path(socket), time.Second)
	if err != nil {
		return "", errors.Join(errNotRunning, err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Second)); err != nil {
		return "", err
	}
	if _, err := conn.Write([]byte(text + "\n")); err != nil {
		return "", err
	}
	answer, err := io.ReadAll(conn)
	return strings.TrimSpace(string(answer)), err
}

// worker is the process that serves.
func (p *proxy) worker() (string, error) {
	info, err := p.ask(layout.HAProxySocket, "show info")
	_, rest, _ := strings.Cut(info, "\nPid: ")
	pid, _, _ := strings.Cut(rest, "\n")
	return pid, err
}

// reload returns when a worker with the latest configuration serves. One that HAProxy refuses changes nothing.
func (p *proxy) reload(ctx context.Context) error {
	if err := check(ctx, p.path("new.cfg")); err != nil {
		return err
	}
	before, running := p.worker()
	if err := os.Rename(p.path("new.cfg"), p.path(layout.HAProxyConfig)); err != nil {
		return fmt.Errorf("write HAProxy's configuration: %w", err)
	}
	if running != nil {
		return running
	}
	if _, err := p.ask(layout.HAProxyMaster, "reload"); err != nil {
		return fmt.Errorf("let HAProxy read its configuration: %w", err)
	}
	err := wait.PollUntilContextTimeout(ctx, 10*time.Millisecond, reloadLimit, false, func(context.Context) (bool, error) {
		now, err := p.worker()
		return err == nil && now != "" && now != before, nil
	})
	if err != nil {
		return fmt.Errorf("HAProxy does not go over to its configuration; its log says why (another program on one of the ports, on all addresses?): %w", err)
	}
	return nil
}

// check has HAProxy judge a configuration.
func check(ctx context.Context, file string) error {
	out, err := exec.CommandContext(ctx, "haproxy", "-c", "-q", "-f", file).CombinedOutput()
	if errors.Is(err, exec.ErrNotFound) {
		return errors.New("command haproxy is missing: install Debian package haproxy")
	}
	if err != nil {
		return fmt.Errorf("HAProxy refuses %s: %w: %s", file, err, strings.TrimSpace(string(out)))
	}
	return nil
}

// accepts says whether HAProxy can serve with a certificate and its key. One that only HAProxy refuses (for a short key, for
// example) would make it refuse everything.
func (p *proxy) accepts(pem []byte) error {
	sum := sha256.Sum256(pem)
	if verdict, known := p.judged[sum]; known {
		return verdict
	}
	dir, err := os.MkdirTemp(p.dir, "judge-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	crt, cfg := filepath.Join(dir, "crt.pem"), filepath.Join(dir, "cfg")
	text := "defaults\n  timeout client 1s\nfrontend judge\n  mode http\n  bind 127.0.0.1:1 ssl crt " + crt + "\n"
	if err := errors.Join(os.WriteFile(crt, pem, 0o600), os.WriteFile(cfg, []byte(text), 0o600)); err != nil {
		return fmt.Errorf("have HAProxy judge a certificate: %w", err)
	}
	if check(context.Background(), cfg) != nil {
		p.judged[sum] = errors.New("HAProxy does not take it (is its key long enough?)")
	} else {
		p.judged[sum] = nil
	}
	return p.judged[sum]
}

// render writes the certificates and returns the configuration, and before it all that HAProxy cannot be told of while it
// runs.
func (p *proxy) render(c Config, certs []Cert) (shape, text string, err error) {
	c.Socket = p.path(layout.HAProxySocket)
	var all bytes.Buffer
	write := func(name string, data []byte) error {
		all.Write(data)
		if old, err := os.ReadFile(p.path(name)); err == nil && bytes.Equal(old, data) {
			return nil
		}
		return writeFile(p.path(name), data)
	}
	file := func(cert string) string { return filepath.Join("certs", cert+".pem") }
	for _, cert := range certs {
		if err := write(file(cert.Name), cert.PEM); err != nil {
			return "", "", err
		}
	}
	c.Frontends = slices.Clone(c.Frontends)
	for i := range c.Frontends {
		f := &c.Frontends[i]
		if len(f.Certs) == 0 {
			continue
		}
		var list bytes.Buffer
		for _, cert := range f.Certs {
			fmt.Fprintln(&list, p.path(file(cert)))
		}
		name := filepath.Join("certs", f.Name+".list")
		f.CertList = p.path(name)
		if err := write(name, list.Bytes()); err != nil {
			return "", "", err
		}
	}
	if text, err = c.Render(); err != nil {
		return "", "", err
	}
	if shape, err = c.shape().Render(); err != nil {
		return "", "", err
	}
	return shape + all.String(), text, nil
}

func writeFile(path string, data []byte) error {
	if err := os.WriteFile(path+".tmp", data, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return os.Rename(path+".tmp", path)
}
