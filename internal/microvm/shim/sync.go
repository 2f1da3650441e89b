package shim

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/berth-run/berth/internal/microvm/agent"
	"github.com/berth-run/berth/internal/microvm/guestapi"
)

const (
	// settleTime is how long a volume must be unchanged before it is copied: the kubelet writes one in several steps.
	settleTime = 50 * time.Millisecond
	// putLimit bounds one copy.
	putLimit = time.Minute
)

// syncer keeps directories of the guest like those of the host that the kubelet's AtomicWriter writes.
type syncer struct {
	guest   *agent.Client
	watcher *fsnotify.Watcher
	done    chan struct{}

	mu      sync.Mutex
	targets map[string]string // directory on the host -> in the guest
}

func newSyncer(guest *agent.Client) (*syncer, error) {
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, fmt.Errorf("watch volumes (fs.inotify.max_user_instances may be too low): %w", err)
	}
	s := &syncer{guest: guest, watcher: w, done: make(chan struct{}), targets: map[string]string{}}
	go s.run()
	return s, nil
}

func (s *syncer) close() error {
	err := s.watcher.Close()
	<-s.done
	return err
}

// add copies a directory into the guest and from then on whenever it changes.
func (s *syncer) add(ctx context.Context, dir, target string) error {
	if err := s.watcher.Add(dir); err != nil { // before the copy: no change is missed
		return fmt.Errorf("watch volume %s: %w", dir, err)
	}
	s.mu.Lock()
	s.targets[dir] = target
	s.mu.Unlock()
	return putDir(ctx, s.guest, target, dir)
}

// run copies what has changed, when it has settled.
func (s *syncer) run() {
	defer close(s.done)
	changed := map[string]bool{}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case e, open := <-s.watcher.Events:
			if !open {
				return
			}
			changed[filepath.Dir(e.Name)] = true
			timer.Reset(settleTime)
		case err, open := <-s.watcher.Errors:
			if !open {
				return
			}
			logger().Error("watch the pod's volumes", "error", err)
		case <-timer.C:
			for dir := range changed {
				s.copy(dir)
			}
			clear(changed)
		}
	}
}

func (s *syncer) copy(dir string) {
	s.mu.Lock()
	target, ok := s.targets[dir]
	s.mu.Unlock()
	if !ok {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), putLimit)
	defer cancel()
	err := putDir(ctx, s.guest, target, dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) { // gone: the pod ends
		logger().Error("update a volume in the guest", "volume", dir, "error", err)
	}
}

// putDir copies a directory that the AtomicWriter keeps.
func putDir(ctx context.Context, guest *agent.Client, target, dir string) error {
	return guest.Put(ctx, guestapi.Put{Target: target, Atomic: true}, func(archive *tar.Writer) error {
		return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			name, err := filepath.Rel(dir, path)
			if err != nil {
				return err
			}
			return addFile(archive, name, path)
		})
	})
}

// putFiles copies files into a directory of the guest, by their names there.
func putFiles(ctx context.Context, guest *agent.Client, target string, files map[string]string) error {
	return guest.Put(ctx, guestapi.Put{Target: target}, func(archive *tar.Writer) error {
		for name, path := range files {
			if err := addFile(archive, name, path); err != nil {
				return err
			}
		}
		return nil
	})
}

func addFile(archive *tar.Writer, name, path string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(path); err != nil {
			return err
		}
	}
	header, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	header.Name = name
	if stat, ok := info.Sys().(*syscall.Stat_t); ok {
		header.Uid, header.Gid = int(stat.Uid), int(stat.Gid)
	}
	header.Uname, header.Gname = "", ""
	if err := archive.WriteHeader(header); err != nil || !info.Mode().IsRegular() {
		return err
	}
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.CopyN(archive, file, info.Size())
	return err
}
