package hostagent

import (
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"os"
	"path/filepath"

	kubeversion "k8s.io/component-base/version"
)

// nodePrograms are what a pod's node is made of on a host: its kubelet, its network, its sandbox and what starts that. A host
// may lack those of an isolation that it cannot run.
var nodePrograms = []string{"berth-node", "berth-cni", "containerd", "containerd-shim-start", "containerd-shim-runsc-v1", "runsc",
	"containerd-shim-berth-v1", "berth-jail"}

const (
	// guestManifest has the digests of the kernel and the other files of a virtual machine.
	guestManifest = "guest/manifest.json"
	// buildID is the section in which Go's linker says what a program was made from.
	buildID = ".note.go.buildid"
)

// nodeVersion names what nodes are made of: Kubernetes' version and a digest of the programs' build ids, in the form of EKS
// (v1.27.1-eks-a5565ad). It changes when one of the programs does. A pod keeps what it was started with until it is recycled.
func nodeVersion(binDir string) (string, error) {
	sum := sha256.New()
	for _, name := range nodePrograms {
		if err := addBuildID(sum, filepath.Join(binDir, name)); err != nil {
			return "", fmt.Errorf("tell the version of nodes: %w", err)
		}
	}
	guest, err := os.ReadFile(filepath.Join(binDir, guestManifest))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("tell the version of nodes: %w", err)
	}
	sum.Write(guest)
	return kubeversion.Get().GitVersion + "-berth-" + hex.EncodeToString(sum.Sum(nil))[:7], nil
}

func addBuildID(sum hash.Hash, file string) error {
	program, err := elf.Open(file)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", file, err)
	}
	defer program.Close()
	section := program.Section(buildID)
	if section == nil {
		return fmt.Errorf("%s has no Go build id; build it with `make build`", file)
	}
	id, err := section.Data()
	if err != nil {
		return fmt.Errorf("read the build id of %s: %w", file, err)
	}
	sum.Write(id)
	return nil
}
