package localcluster

import (
	"bufio"
	"fmt"
	"os/exec"
	"testing"

	"github.com/berth-run/berth/internal/layout"
)

// TestLeftoversAreTheClustersOwn: a process that names the cluster's directories is not this cluster's if it has others of these names, as in a container.
func TestLeftoversAreTheClustersOwn(t *testing.T) {
	dirs := layout.Dirs{State: t.TempDir(), Run: t.TempDir()}
	for script, want := range map[string]bool{
		"echo started; read -r end":                                       true,
		"mount -t tmpfs none " + dirs.Run + "; echo started; read -r end": false,
	} {
		cmd := exec.Command("unshare", "--mount", "bash", "-ec", script, dirs.Run+"/lb/haproxy.cfg")
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		if line, err := bufio.NewReader(out).ReadString('\n'); err != nil {
			t.Fatalf("%q, %v (this test needs root)", line, err)
		}
		if got := mentions(fmt.Sprint("/proc/", cmd.Process.Pid), dirs, true); got != want {
			t.Errorf("%s: it is taken for the cluster's: %t", script, got)
		}
		if err := in.Close(); err != nil {
			t.Error(err)
		}
		_ = cmd.Wait()
	}
}
