package runtimeconf

import (
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"golang.org/x/crypto/bcrypt"

	"github.com/berth-run/berth/internal/layout"
)

// RegistryUser is who the loopback registry knows. Any process of the machine reaches its port, and what it holds is what pods run.
const RegistryUser = "berth"

func passwordFile(dirs layout.Dirs) string { return filepath.Join(dirs.Config(), "registry.password") }

// RegistryPassword is that of RegistryUser, which only root can read.
func RegistryPassword(dirs layout.Dirs) (string, error) {
	data, err := os.ReadFile(passwordFile(dirs))
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "", fmt.Errorf("only root may change the cluster's images: %w", err)
	case errors.Is(err, fs.ErrNotExist):
		return "", fmt.Errorf("the cluster was never started (berth up): %w", err)
	case err != nil:
		return "", fmt.Errorf("read the password of the cluster's image registry: %w", err)
	}
	return string(data), nil
}

// makePassword is RegistryPassword, made if there is none.
func makePassword(dirs layout.Dirs) (string, error) {
	password, err := RegistryPassword(dirs)
	if !errors.Is(err, fs.ErrNotExist) {
		return password, err
	}
	password = rand.Text()
	return password, writeAs(passwordFile(dirs), password, 0o600)
}

// Mirror lets containerd look into the loopback registry before it asks the registry (host[:port]) itself, at upstream.
func Mirror(dirs layout.Dirs, registry, upstream string) error {
	password, err := makePassword(dirs)
	if err != nil {
		return err
	}
	credential := base64.StdEncoding.EncodeToString([]byte(RegistryUser + ":" + password))
	file := filepath.Join(HostsDir(dirs), registry, "hosts.toml")
	return writeAs(file, fmt.Sprintf(hostsConfig, upstream, layout.RegistryPort, Repository(registry, ""), layout.RegistryPort, Repository(registry, ""), credential), 0o600)
}

// HostsDir holds, for each registry that has a mirror, a folder that tells containerd so.
func HostsDir(dirs layout.Dirs) string { return filepath.Join(dirs.Config(), "certs.d") }

// Repository is where the loopback registry keeps a repository of another registry (host[:port]).
func Repository(registry, repository string) string {
	return path.Join(strings.ReplaceAll(registry, ":", "_"), repository)
}

// WriteRegistry writes the loopback registry's configuration and returns its path.
func WriteRegistry(dirs layout.Dirs) (string, error) {
	password, err := makePassword(dirs)
	if err != nil {
		return "", err
	}
	// The cheapest hash: nobody guesses a random password, and each request is checked.
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		return "", fmt.Errorf("hash the registry's password: %w", err)
	}
	users := filepath.Join(dirs.Config(), "registry.htpasswd")
	if err := writeAs(users, RegistryUser+":"+string(hash)+"\n", 0o600); err != nil {
		return "", err
	}
	file := filepath.Join(dirs.Config(), "registry.yaml")
	return file, write(file, fmt.Sprintf(registryConfig, dirs.Registry(), users, layout.RegistryPort))
}

// hostsConfig gives up early on a registry that does not answer: most machines without internet drop packets silently.
const hostsConfig = `server = "%s"
dial_timeout = "5s"

[host."http://127.0.0.1:%d/v2/%s"]
  capabilities = ["pull", "resolve"]
  override_path = true
  [host."http://127.0.0.1:%d/v2/%s".header]
    authorization = "Basic %s"
`

const registryConfig = `version: 0.1
log: {level: warn, accesslog: {disabled: true}}
storage:
  filesystem: {rootdirectory: %s}
  delete: {enabled: true}
auth:
  htpasswd: {realm: berth, path: %s}
http: {addr: "127.0.0.1:%d"}
`
