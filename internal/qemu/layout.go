package qemu

import (
	"strconv"
	"strings"

	"sauh.dev/sauh/internal/core/model"
)

// The layouts: which devices Argv adds to a machine by itself. A running guest keeps the layout it was started with, through
// each migration, until it is switched off and on; so an old one stays here as long as guests may run with it.
const (
	layoutPlain   = iota // no mark: what the first version started
	layoutPanic          // the device through which a guest says that it panicked
	currentLayout = layoutPanic
)

// layoutMark stands between QEMU's machine type and the layout's number, "pc-i440fx-10.0+sauh1", as Proxmox VE has its "+pve1".
// The layout is part of the machine's name because every version of this program compares that before a migration: a device
// that only one side has would make QEMU's migration neither fail nor work.
const layoutMark = "+sauh"

// withLayout marks QEMU's machine type with the layout of guests that start now.
func withLayout(machine string) string { return machine + layoutMark + strconv.Itoa(currentLayout) }

// splitMachine takes a machine's name apart. ok is false if the mark is none that any version writes.
func splitMachine(name string) (machine string, layout int, ok bool) {
	machine, mark, marked := strings.Cut(name, layoutMark)
	if !marked {
		return name, layoutPlain, true
	}
	layout, err := strconv.Atoi(mark)
	return machine, layout, err == nil && layout > layoutPlain && mark == strconv.Itoa(layout)
}

// OnMachine returns s for receiving a guest that runs on machine, as its own Spec.Machine says: with the devices that it
// was started with, which may be others than a guest that starts here now would get. model.ErrInvalid: this program does not know
// its layout, or its type is another one; such a guest cannot move here while it runs.
func (s Spec) OnMachine(machine string) (Spec, error) {
	mine, _, _ := splitMachine(s.Machine)
	typ, layout, ok := splitMachine(machine)
	if !ok || layout > currentLayout {
		return Spec{}, model.Errorf(model.ErrInvalid, "guest %s runs on the machine type %s, which this node does not know: upgrade this node, or move the guest while it is off", s.VMID, machine)
	}
	if typ != mine {
		return Spec{}, model.Errorf(model.ErrInvalid, "guest %s runs on the machine type %s, and here it would have %s: move it while it is off", s.VMID, machine, s.Machine)
	}
	s.Machine = machine
	return s, nil
}

// hasPanicDevice reports whether s has the device through which a guest says that it panicked.
func (s Spec) hasPanicDevice() bool {
	_, layout, _ := splitMachine(s.Machine)
	return layout >= layoutPanic
}
