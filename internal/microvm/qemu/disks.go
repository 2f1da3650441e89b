package qemu

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/berth-run/berth/internal/microvm/guestapi"
	"github.com/berth-run/berth/internal/microvm/vmm"
)

const (
	// lastLUN that virtio-scsi has.
	lastLUN = 255
	// rollbackLimit bounds what is done to undo a call whose context has ended.
	rollbackLimit = 5 * time.Second
)

// Attach implements vmm.Machine.
func (m *machine) Attach(ctx context.Context, disk vmm.Disk) (int, error) {
	if disk.ReadOnly {
		file, err := forReading(disk.File)
		if err != nil {
			return 0, fmt.Errorf("attach %s to machine %s: %w", disk.File.Name(), m.name, err)
		}
		defer file.Close()
		disk.File = file
	}
	lun, err := m.reserve()
	if err != nil {
		return 0, err
	}
	set, err := m.plug(ctx, lun, disk)
	m.mu.Lock()
	defer m.mu.Unlock()
	if err != nil {
		delete(m.disks, lun)
		return 0, fmt.Errorf("attach %s to machine %s: %w", disk.File.Name(), m.name, err)
	}
	m.disks[lun] = set
	return lun, nil
}

// forReading opens a file anew, so that QEMU could not write to it if it wanted to.
func forReading(file *os.File) (*os.File, error) {
	anew, err := os.Open(byDescriptor(int(file.Fd())))
	if err != nil {
		return nil, fmt.Errorf("open %s for reading: %w", file.Name(), err)
	}
	return anew, nil
}

// reserved marks the LUN of a disk that is being attached or detached.
const reserved = -1

func (m *machine) reserve() (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for lun := guestapi.ToolsLUN + 1; lun <= lastLUN; lun++ {
		if _, taken := m.disks[lun]; !taken {
			m.disks[lun] = reserved
			return lun, nil
		}
	}
	return 0, fmt.Errorf("machine %s has %d disks, which is all it can have", m.name, lastLUN)
}

// plug gives QEMU the file, makes a disk of it and shows that to the guest; the file's descriptor set is returned.
func (m *machine) plug(ctx context.Context, lun int, disk vmm.Disk) (_ int, err error) {
	var added struct {
		Set int `json:"fdset-id"`
	}
	if err := m.monitor.execute(ctx, "add-fd", nil, &added, disk.File); err != nil {
		return 0, err
	}
	undo := func(command string, args arguments) {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), rollbackLimit)
		defer cancel()
		if undone := m.monitor.execute(ctx, command, args, nil); undone != nil && !errors.Is(undone, vmm.ErrGone) {
			err = errors.Join(err, undone)
		}
	}
	defer func() {
		if err != nil {
			undo("remove-fd", arguments{"fdset-id": added.Set})
		}
	}()
	if err := m.monitor.execute(ctx, "blockdev-add", blockNode(added.Set, lun, disk.ReadOnly), nil); err != nil {
		return 0, err
	}
	if err := m.monitor.execute(ctx, "device_add", diskDevice(lun), nil); err != nil {
		undo("blockdev-del", arguments{"node-name": nodeName(lun)})
		return 0, err
	}
	return added.Set, nil
}

// Detach implements vmm.Machine.
func (m *machine) Detach(ctx context.Context, lun int) error {
	m.mu.Lock()
	set, attached := m.disks[lun]
	if !attached || set == reserved {
		m.mu.Unlock()
		return fmt.Errorf("detach LUN %d of machine %s: %w", lun, m.name, vmm.ErrNotAttached)
	}
	m.disks[lun] = reserved
	gone := make(chan struct{})
	m.deleted[deviceName(lun)] = gone
	m.mu.Unlock()

	err := m.unplug(ctx, lun, set, gone)
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.deleted, deviceName(lun))
	if err != nil {
		m.disks[lun] = set
		return fmt.Errorf("detach LUN %d of machine %s: %w", lun, m.name, err)
	}
	delete(m.disks, lun)
	return nil
}

func (m *machine) unplug(ctx context.Context, lun, set int, gone chan struct{}) error {
	var refused *refusal
	err := m.monitor.execute(ctx, "device_del", arguments{"id": deviceName(lun)}, nil)
	switch {
	case errors.As(err, &refused) && refused.Class == "DeviceNotFound":
		// An earlier call got as far as that.
	case err != nil:
		return err
	default:
		select {
		case <-gone:
		case <-m.monitor.ended:
			return vmm.ErrGone
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := m.monitor.execute(ctx, "blockdev-del", arguments{"node-name": nodeName(lun)}, nil); err != nil {
		return err
	}
	return m.monitor.execute(ctx, "remove-fd", arguments{"fdset-id": set}, nil)
}
