package node

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/runtime"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berth-run/berth/internal/layout"
	"github.com/berth-run/berth/internal/microvm/podsocket"
	"github.com/berth-run/berth/internal/nodeconfig"
)

// TestMachinesEnd: of a machine that ends, people hear why, unless that was wanted; and its sandbox is not ready from then on, whatever containerd says.
func TestMachinesEnd(t *testing.T) {
	const runs = `{"Reason":"","Message":""}`
	for name, test := range map[string]struct {
		shim []string // what it says, before it ends
		want string
	}{
		"its machine died":          {[]string{runs, `{"Reason":"MachineEnded","Message":"QEMU is gone","Ended":true}`}, "Warning MachineEnded QEMU is gone"},
		"as was wanted":             {[]string{runs, `{"Reason":"","Message":"","Ended":true}`}, ""},
		"it stood still, and ended": {[]string{runs, `{"Reason":"HostDiskFull","Message":"no room"}`, `{"Reason":"","Message":"","Ended":true}`}, "Warning HostDiskFull no room"},
		"the shim was killed":       {[]string{runs}, "Warning MachineEnded the pod's shim"},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := nodeconfig.Config{HostRunDir: t.TempDir(), RuntimeHandler: layout.RuntimeHandlerMicroVM}
			dir := layout.Dirs{Run: cfg.HostRunDir}.MicroVMRun("sandbox")
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			listener, err := net.Listen("unix", podsocket.Path(dir))
			if err != nil {
				t.Fatal(err)
			}
			defer listener.Close()
			go func() {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				if _, err := bufio.NewReader(conn).ReadString('\n'); err == nil {
					fmt.Fprint(conn, "\n"+strings.Join(test.shim, "\n")+"\n")
				}
			}()
			var said events
			changed := 0
			w := newMachineWatch(t.Context(), cfg, newReporter(cfg), &said, func() { changed++ })
			const ready, notReady = runtimeapi.PodSandboxState_SANDBOX_READY, runtimeapi.PodSandboxState_SANDBOX_NOTREADY
			if got := w.state("sandbox", ready); got != ready {
				t.Errorf("before, its sandbox is %v", got)
			}
			w.listen("sandbox")
			if got := w.state("sandbox", ready); got != notReady || changed != 1 {
				t.Errorf("afterwards, its sandbox is %v, and %d changes are told, want 1", got, changed)
			}
			if got := w.state("other", ready); got != ready {
				t.Errorf("afterwards, another sandbox is %v", got)
			}
			if got := strings.Join(said, " | "); !strings.HasPrefix(got, test.want) || test.want == "" && got != "" || strings.Contains(got, " | ") {
				t.Errorf("people hear %q, want %q", got, test.want)
			}
		})
	}
}

// events are what was told.
type events []string

func (e *events) Event(_ runtime.Object, kind, reason, message string) {
	*e = append(*e, kind+" "+reason+" "+message)
}
