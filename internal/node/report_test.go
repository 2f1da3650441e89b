package node

import (
	"encoding/json"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/berth-run/berth/internal/microvm/podsocket"
	"github.com/berth-run/berth/internal/nodeconfig"
)

// TestTroubleIsToldUntilHeard: an agent that is down while a sandbox stands still, or goes on, hears of it when it is back: the last of it, once.
func TestTroubleIsToldUntilHeard(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "agent")
	r := newReporter(nodeconfig.Config{PodUID: "uid", EventSocket: socket})
	r.retell = time.Millisecond
	r.trouble(podsocket.Trouble{Reason: "HostDiskFull", Message: "free some space"})
	r.trouble(podsocket.Trouble{Reason: "MachineEnded", Message: "gone"})
	agent, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: socket, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer agent.Close()
	hears := func(reason string) {
		t.Helper()
		buffer := make([]byte, 4096)
		n, err := agent.Read(buffer)
		if err != nil {
			t.Fatal(err)
		}
		var e nodeconfig.Event
		if err := json.Unmarshal(buffer[:n], &e); err != nil || e.Stage != nodeconfig.StageTrouble || e.Reason != reason || e.PodUID != "uid" {
			t.Errorf("the agent hears %s (%v), want %q", buffer[:n], err, reason)
		}
	}
	hears("MachineEnded")
	r.trouble(podsocket.Trouble{Reason: "MachineEnded", Message: "gone"}) // is known
	r.trouble(podsocket.Trouble{})
	hears("")
}
