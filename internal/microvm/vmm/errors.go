package vmm

import "errors"

// What calls fail with, wrapped in an error that says the cause and the remedy.
var (
	// ErrUnavailable: the monitor is not installed, too old, or lacks what it needs on this machine.
	ErrUnavailable = errors.New("virtual machine monitor unavailable")
	// ErrTemplate: the template does not fit the monitor, or is not one.
	ErrTemplate = errors.New("unusable template")
	// ErrTouched: the guest has used memory that a template does not hold.
	ErrTouched = errors.New("memory beyond the template's is in use")
	// ErrGone: the machine has ended.
	ErrGone = errors.New("machine has ended")
	// ErrNotAttached: there is no disk with that LUN.
	ErrNotAttached = errors.New("no such disk")
)
