package shim

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	taskapi "github.com/containerd/containerd/api/runtime/task/v3"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/timestamppb"
)

const (
	// pidFile is where containerd-shim-start notes the shim that it started for a sandbox, in the sandbox's bundle.
	pidFile = "shim.pid"
	// endLimit bounds the wait for the end of a shim that was killed, in milliseconds.
	endLimit = 5000
)

// Delete removes what is left of a pod whose shim containerd has lost, and answers containerd on out. As a rule the shim is dead, and its
// machine ended with it. One that lives, but did not answer in time, is ended: nobody would ever ask it to. The working directory is the bundle.
func Delete(out io.Writer, runDir string) error {
	if err := endShim(); err != nil {
		return err
	}
	if err := os.RemoveAll(runDir); err != nil {
		return fmt.Errorf("remove the machine's directory: %w", err)
	}
	data, err := proto.Marshal(&taskapi.DeleteResponse{ExitStatus: killed, ExitedAt: timestamppb.Now()})
	if err != nil {
		return err
	}
	_, err = out.Write(data)
	return err
}

// endShim kills the shim that the bundle names, if it lives, and waits for its end; a container's bundle names none.
func endShim() error {
	text, err := os.ReadFile(pidFile)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read which process the shim is: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		return fmt.Errorf("%s is not valid: %w", pidFile, err)
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find the shim, process %d: %w", pid, err)
	}
	defer unix.Close(fd)
	if program(pid) != program(os.Getpid()) {
		return nil // the number is another process's by now
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("end the shim, process %d: %w", pid, err)
	}
	return awaitEnd(fd, pid)
}

func awaitEnd(fd, pid int) error {
	began := time.Now()
	for {
		left := endLimit - int(time.Since(began).Milliseconds())
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, max(left, 0))
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil:
			return fmt.Errorf("wait for the shim's end: %w", err)
		case n == 0:
			return fmt.Errorf("the shim, process %d, does not end", pid)
		default:
			return nil
		}
	}
}

// program is the name of the program that a process runs, also after an upgrade has replaced it.
func program(pid int) string {
	path, err := os.Readlink(fmt.Sprintf("/proc/%d/exe", pid))
	if err != nil {
		return ""
	}
	return filepath.Base(strings.TrimSuffix(path, " (deleted)"))
}
