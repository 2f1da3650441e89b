// Command berth-node is the kubelet of one pod. The host agent starts it and writes its configuration (see
// internal/nodeconfig) to its standard input; with an empty one it exits at once.
package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"runtime/debug"

	"github.com/berth-run/berth/internal/node"
	"github.com/berth-run/berth/internal/nodeconfig"
)

// gcPercent trades a little CPU for a smaller heap: there is one such process per pod.
const gcPercent = 40

func main() {
	debug.SetGCPercent(gcPercent)
	if err := run(os.Stdin); err != nil {
		fmt.Fprintln(os.Stderr, "berth-node:", err)
		os.Exit(1)
	}
}

func run(input io.Reader) error {
	data, err := io.ReadAll(input)
	if err != nil {
		return fmt.Errorf("read the configuration: %w", err)
	}
	if len(data) == 0 {
		return nil
	}
	var cfg nodeconfig.Config
	if err := json.Unmarshal(data, &cfg); err != nil {
		return fmt.Errorf("configuration on standard input is not valid: %w", err)
	}
	return node.Run(cfg)
}
