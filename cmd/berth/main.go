// Command berth is Berth's command line; called as kubectl, it is kubectl.
package main

import (
	"os"

	"github.com/berth-run/berth/internal/cli"
)

func main() { os.Exit(cli.Run()) }
