package shim

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berth-run/berth/internal/microvm/podsocket"
	"github.com/berth-run/berth/internal/microvm/vmm"
)

// TestHealth: the pod's kubelet hears what keeps the machine from running, the worst of it, and that it goes on.
func TestHealth(t *testing.T) {
	dir := t.TempDir()
	listener, err := net.Listen("unix", podsocket.Path(dir))
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	p := &pod{health: newHealth("/disks")}
	go p.servePod(listener)
	heard := make(chan string, 8)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() {
		ended <- podsocket.WatchTrouble(ctx, dir, func(t podsocket.Trouble) { heard <- fmt.Sprint(t.Reason, " ", t.Ended) })
	}()
	want := func(reason string) {
		t.Helper()
		if got := <-heard; got != reason {
			t.Errorf("heard of %q, want %q", got, reason)
		}
	}
	want(" false")
	p.health.asking()(false)
	want(reasonNotAnswering + " false")
	p.health.asking()(false) // still
	during := p.health.asking()
	p.health.stalled(true)
	want(reasonHostDiskFull + " false")
	if _, err := podsocket.AskUsage(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "the host's disk is full") {
		t.Errorf("a machine that stands still is asked: %v", err)
	}
	during(false)
	p.health.stalled(false)
	want(" false") // it could not answer, and has not been asked since
	p.health.end(vmm.Exit{Reason: vmm.ReasonKilled}, "by us")
	want(" true")
	if _, err := podsocket.AskUsage(t.Context(), dir); err == nil || !strings.Contains(err.Error(), "the pod's machine has ended") {
		t.Errorf("a machine that has ended is asked: %v", err)
	}
	p.health.end(vmm.Exit{Reason: vmm.ReasonReset}, "its kernel panicked")
	want(podsocket.ReasonMachineEnded + " true")
	cancel()
	if err := <-ended; err == nil {
		t.Error("who goes is told of no error")
	}
	if len(heard) > 0 {
		t.Errorf("heard of %q, too", <-heard)
	}
}

// TestOOMKills reads both versions' files.
func TestOOMKills(t *testing.T) {
	for version, content := range map[string]string{
		"1": "oom_kill_disable 0\nunder_oom 0\noom_kill %\n", "2": "low 0\nhigh 0\nmax 7\noom 3\noom_kill %\noom_group_kill 0\n",
	} {
		file := filepath.Join(t.TempDir(), "events")
		write := func(count string) {
			if err := os.WriteFile(file, []byte(strings.Replace(content, "%", count, 1)), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		write("2")
		k := oomKills{file: file}
		k.begin = k.count()
		failed := vmm.Exit{Reason: vmm.ReasonFailed}
		if k.begin != 2 || k.ended(failed) {
			t.Errorf("version %s: %d kills at the beginning, want 2", version, k.begin)
		}
		write("3")
		if !k.ended(failed) || k.ended(vmm.Exit{Reason: vmm.ReasonKilled}) {
			t.Errorf("version %s: the third kill is not seen, or blamed for an end by us", version)
		}
	}
}
