package shim

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"google.golang.org/protobuf/proto"
)

// shimVariable makes the test's program a shim that never ends by itself.
const shimVariable = "BERTH_TEST_SHIM"

func TestMain(m *testing.M) {
	if os.Getenv(shimVariable) != "" {
		time.Sleep(time.Hour)
	}
	os.Exit(m.Run())
}

// TestDelete: what containerd has lost is gone afterwards, a shim that lives included, but no other program that has its number by now.
func TestDelete(t *testing.T) {
	shim := exec.Command(os.Args[0])
	shim.Env = append(os.Environ(), shimVariable+"=1")
	other := exec.Command("sleep", "60")
	for _, cmd := range []*exec.Cmd{shim, other} {
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = cmd.Process.Kill() })
	}
	for _, c := range []struct {
		name, pid string
		ends      *exec.Cmd
	}{
		{"a container's bundle", "", nil},
		{"a shim that is dead", strconv.Itoa(1 << 22), nil},
		{"another program", strconv.Itoa(other.Process.Pid), nil},
		{"a shim that lives", strconv.Itoa(shim.Process.Pid), shim},
	} {
		t.Run(c.name, func(t *testing.T) {
			bundle, runDir := t.TempDir(), filepath.Join(t.TempDir(), "run")
			t.Chdir(bundle)
			if err := os.MkdirAll(runDir, 0o700); err != nil {
				t.Fatal(err)
			}
			if c.pid != "" {
				if err := os.WriteFile(pidFile, []byte(c.pid), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var out bytes.Buffer
			if err := Delete(&out, runDir); err != nil {
				t.Fatal(err)
			}
			var answer taskapi.DeleteResponse
			if err := proto.Unmarshal(out.Bytes(), &answer); err != nil || answer.ExitStatus != killed {
				t.Errorf("the answer is %v, %v", &answer, err)
			}
			if _, err := os.Stat(runDir); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the machine's directory: %v", err)
			}
			if c.ends != nil {
				if err := c.ends.Wait(); err == nil || err.Error() != "signal: killed" {
					t.Errorf("the shim ended by itself: %v", err)
				}
			}
		})
	}
	if err := other.Process.Signal(syscall.Signal(0)); err != nil {
		t.Error("the other program was ended, too")
	}
}
