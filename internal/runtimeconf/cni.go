package runtimeconf

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berth-run/berth/internal/layout"
)

const ourPlugin = "berth-cni"

const cniConfig = `{
  "cniVersion": "1.0.0",
  "name": "berth",
  "plugins": [{"type": "berth-cni", "runDir": %q}]
}
`

// pluginDirs are where CNI plugins are looked for: ours, then where operators and Debian put others.
func pluginDirs(binDir string) []string { return []string{binDir, "/opt/cni/bin", "/usr/lib/cni"} }

func quoted(list []string) string {
	var out []string
	for _, s := range list {
		out = append(out, fmt.Sprintf("%q", s))
	}
	return strings.Join(out, ", ")
}

// cniChain is the chain that makes pods' links: the operator's own, if there is one in dirs.CNI (the first by name), else
// ours. Addresses come from Berth in any case, so another main plugin must ask for them: its ipam.type is berth-cni.
func cniChain(dirs layout.Dirs, binDir string) (string, error) {
	files := chains(dirs)
	if len(files) == 0 {
		return fmt.Sprintf(cniConfig, dirs.Run), nil
	}
	text, err := os.ReadFile(files[0])
	if err != nil {
		return "", fmt.Errorf("read the CNI chain: %w", err)
	}
	if err := checkChain(text, pluginDirs(binDir)); err != nil {
		return "", fmt.Errorf("CNI chain %s: %w", files[0], err)
	}
	return string(text), nil
}

// OwnChain says that the operator has a CNI chain of his own.
func OwnChain(dirs layout.Dirs) bool { return len(chains(dirs)) > 0 }

func chains(dirs layout.Dirs) []string {
	if dirs.CNI == "" {
		return nil
	}
	files, err := filepath.Glob(filepath.Join(dirs.CNI, "*.conflist"))
	if err != nil { // a mistake in the pattern, which is ours
		return nil
	}
	slices.Sort(files)
	return files
}

// checkChain finds what would otherwise be said at each pod's start.
func checkChain(text []byte, dirs []string) error {
	var list struct {
		Name    string `json:"name"`
		Plugins []struct {
			Type string `json:"type"`
			IPAM struct {
				Type string `json:"type"`
			} `json:"ipam"`
		} `json:"plugins"`
	}
	if err := json.Unmarshal(text, &list); err != nil {
		return fmt.Errorf("it is not JSON: %w", err)
	}
	switch {
	case list.Name == "":
		return fmt.Errorf("name is missing: give the network one")
	case len(list.Plugins) == 0:
		return fmt.Errorf("plugins is empty: name at least a main plugin, such as ptp or bridge")
	}
	if main := list.Plugins[0]; main.Type != ourPlugin && main.IPAM.Type != ourPlugin {
		return fmt.Errorf(`plugins[0].ipam.type is %q: pods have the addresses that Berth gave them, so write "ipam": {"type": %q}`, main.IPAM.Type, ourPlugin)
	}
	for i, p := range list.Plugins {
		if filepath.Base(p.Type) != p.Type || p.Type == "." {
			return fmt.Errorf("plugins[%d].type %q is not the name of a plugin", i, p.Type)
		}
		if !slices.ContainsFunc(dirs, func(dir string) bool { _, err := os.Stat(filepath.Join(dir, p.Type)); return err == nil }) {
			return fmt.Errorf("plugins[%d].type: there is no plugin %s in %s (the usual ones: Debian package containernetworking-plugins)", i, p.Type, strings.Join(dirs, ", "))
		}
	}
	return nil
}
