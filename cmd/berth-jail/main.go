// Command berth-jail confines itself and becomes the program it is told to: see package jail.
package main

import (
	"os"

	"github.com/berth-run/berth/internal/microvm/jail"
)

func main() {
	err := jail.Enter(os.Args[1:]) // does not return if all goes well
	os.Stderr.WriteString("berth-jail: " + err.Error() + "\n")
	os.Exit(126)
}
