package hostagent

import (
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"fmt"
	"hash"
	"path/filepath"

	kubeversion "k8s.io/component-base/version"
)

// nodePrograms are what a pod's node is made of on a host: its kubelet, its sandbox and what starts that.
var nodePrograms = []string{"berth-node", "berth-cni", "containerd", "containerd-shim-runsc-start", "containerd-shim-runsc-v1", "runsc"}

// buildID is the section in which Go's linker says what a program was made from.
const buildID = ".note.go.buildid"

// nodeVersion names what nodes are made of: Kubernetes' version and a digest of the programs' build ids, in the form of EKS
// (v1.27.1-eks-a5565ad). It changes when one of the programs does. A pod keeps what it was started with until it is recycled.
func nodeVersion(binDir string) (string, error) {
	sum := sha256.New()
	for _, name := range nodePrograms {
		if err := addBuildID(sum, filepath.Join(binDir, name)); err != nil {
			return "", err
		}
	}
	return kubeversion.Get().GitVersion + "-berth-" + hex.EncodeToString(sum.Sum(nil))[:7], nil
}

func addBuildID(sum hash.Hash, file string) error {
	program, err := elf.Open(file)
	if err != nil {
		return fmt.Errorf("tell the version of nodes: open %s: %w", file, err)
	}
	defer program.Close()
	section := program.Section(buildID)
	if section == nil {
		return fmt.Errorf("tell the version of nodes: %s has no Go build id; build it with `make build`", file)
	}
	id, err := section.Data()
	if err != nil {
		return fmt.Errorf("tell the version of nodes: read the build id of %s: %w", file, err)
	}
	_, err = sum.Write(id)
	return err
}
