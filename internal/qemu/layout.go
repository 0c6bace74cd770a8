package qemu

import (
	"strconv"
	"strings"
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

// hasPanicDevice reports whether s has the device through which a guest says that it panicked.
func (s Spec) hasPanicDevice() bool {
	_, layout, _ := splitMachine(s.Machine)
	return layout >= layoutPanic
}
