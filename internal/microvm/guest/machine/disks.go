package machine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// imagesDir has a mount for every read-only disk that is in use, named by its LUN.
	imagesDir = "/run/berth/images"
	// diskTimeout is how long a disk that the host has attached may take to appear.
	diskTimeout = 10 * time.Second
)

// Disks are the machine's SCSI disks, named by their LUN. Image disks are mounted once, however many use them.
type Disks struct {
	mu      sync.Mutex
	images  map[int]int // users by LUN
	arrived chan struct{}
	arrival sync.Mutex
}

// NewDisks knows of none yet.
func NewDisks() *Disks {
	return &Disks{images: map[int]int{}, arrived: make(chan struct{})}
}

// Watch begins to listen to the kernel's announcements of devices.
func (d *Disks) Watch() error {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_KOBJECT_UEVENT)
	if err != nil {
		return fmt.Errorf("listen to the kernel's device events: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1}); err != nil {
		_ = unix.Close(fd)
		return fmt.Errorf("listen to the kernel's device events: %w", err)
	}
	events := os.NewFile(uintptr(fd), "uevents")
	go func() {
		message := make([]byte, 8192)
		for {
			n, err := events.Read(message)
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			// After lost events (ENOBUFS) anything may have arrived.
			if err != nil || bytes.HasPrefix(message[:n], []byte("add@")) && bytes.Contains(message[:n], []byte("/block/")) {
				d.announce()
			}
		}
	}()
	return nil
}

// announce wakes all who wait for a disk; they look again.
func (d *Disks) announce() {
	d.arrival.Lock()
	defer d.arrival.Unlock()
	close(d.arrived)
	d.arrived = make(chan struct{})
}

func (d *Disks) nextArrival() <-chan struct{} {
	d.arrival.Lock()
	defer d.arrival.Unlock()
	return d.arrived
}

// device waits for the disk and returns its file in /dev.
func (d *Disks) device(ctx context.Context, lun int) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, diskTimeout)
	defer cancel()
	for {
		arrival := d.nextArrival()
		found, err := filepath.Glob(filepath.Join(scsiDevice(lun), "block", "*"))
		if err != nil {
			return "", err
		}
		if len(found) > 0 {
			return "/dev/" + filepath.Base(found[0]), nil
		}
		select {
		case <-arrival:
		case <-ctx.Done():
			return "", fmt.Errorf("disk with LUN %d has not appeared: %w; is it attached to SCSI target 0?", lun, ctx.Err())
		}
	}
}

func scsiDevice(lun int) string {
	return "/sys/bus/scsi/devices/0:0:0:" + strconv.Itoa(lun)
}

// UseImage mounts the disk (erofs, read-only) if nobody has yet, and returns where. Every use ends with DropImage.
func (d *Disks) UseImage(ctx context.Context, lun int) (string, error) {
	device, err := d.device(ctx, lun)
	if err != nil {
		return "", err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	target := filepath.Join(imagesDir, strconv.Itoa(lun))
	if d.images[lun] == 0 && !isMountPoint(target) {
		if err := (mount{device, target, "erofs", unix.MS_RDONLY | unix.MS_NODEV, ""}).do(); err != nil {
			return "", fmt.Errorf("disk with LUN %d: %w", lun, err)
		}
	}
	d.images[lun]++
	return target, nil
}

// DropImage ends one use. The disk stays mounted until it is released: the next container has often the same image.
func (d *Disks) DropImage(lun int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.images[lun]--
}

// Release lets go of a disk that the host wants to take away. It fails while a container uses it; a disk that is not there is no error.
func (d *Disks) Release(lun int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if users := d.images[lun]; users > 0 {
		return fmt.Errorf("disk with LUN %d is in use by %d containers; delete their tasks first", lun, users)
	}
	target := filepath.Join(imagesDir, strconv.Itoa(lun))
	if isMountPoint(target) {
		if err := unix.Unmount(target, 0); err != nil {
			return fmt.Errorf("unmount disk with LUN %d: %w", lun, err)
		}
	}
	delete(d.images, lun)
	err := os.WriteFile(scsiDevice(lun)+"/delete", []byte("1"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove disk with LUN %d: %w", lun, err)
	}
	return nil
}

// isMountPoint compares devices: every file system that is asked about has one of its own.
func isMountPoint(path string) bool {
	var own, parent unix.Stat_t
	return unix.Stat(path, &own) == nil && unix.Stat(filepath.Dir(path), &parent) == nil && own.Dev != parent.Dev
}
