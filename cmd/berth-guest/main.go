// Command berth-guest is process 1 of a microVM: the machine's init and the agent that serves the host. It runs from the guest's initramfs and nowhere else.
package main

import (
	"context"
	"fmt"
	"os"

	"github.com/berth-run/berth/internal/microvm/guest"
)

func main() {
	if os.Getpid() != 1 {
		fmt.Fprintln(os.Stderr, "berth-guest: this is the first process of a microVM's guest; it cannot run elsewhere")
		os.Exit(2)
	}
	err := guest.Run(context.Background())
	// Process 1 must not end: the kernel panics, and the machine with it. That is what is wanted, with the reason on the console.
	fmt.Fprintln(os.Stderr, "berth-guest:", err)
	os.Exit(1)
}
