package qemu

import (
	"fmt"
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

const tunDevice = "/dev/net/tun"

// placeholderTap is a tap device that leads nowhere, in a network namespace that lives as long as the device is open. A template needs one with all
// the offloads of the pods' own, because the guest's driver settles on them while it starts.
func placeholderTap() (*os.File, error) {
	type result struct {
		tap *os.File
		err error
	}
	made := make(chan result)
	go func() {
		runtime.LockOSThread() // and never unlocked: the thread ends, and with it its namespace
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			made <- result{err: fmt.Errorf("make a network namespace: %w", err)}
			return
		}
		tap, err := openTap("tap0")
		made <- result{tap, err}
	}()
	r := <-made
	return r.tap, r.err
}

func openTap(name string) (*os.File, error) {
	fd, err := unix.Open(tunDevice, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w; load the kernel module tun", tunDevice, err)
	}
	request, err := unix.NewIfreq(name)
	if err == nil {
		request.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("make a tap device: %w", err)
	}
	return os.NewFile(uintptr(fd), name), nil
}
