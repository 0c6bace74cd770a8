// Package storage is the contract of storage drivers: where guests' disks live
// and what QEMU opens. Each driver stands in a package of its own (dir, …) and passes the
// suite in storagetest; no driver imports another.
//
// Invariant: a driver never decides who may write a volume. That is the lease's
// business; the driver declares in [Features] what it does about late writes. Start
// reading with [Driver].
package storage

import (
	"context"
	"errors"

	"sauh.dev/sauh/internal/core/model"
)

var (
	// ErrNotFound: no such volume.
	ErrNotFound = model.ErrNotFound
	// ErrExists: a volume of that name is there already.
	ErrExists = model.ErrExists
	// ErrNoSpace: the storage is full.
	ErrNoSpace = errors.New("no space left on storage")
	// ErrInUse: another process has the image open (QEMU's image lock).
	ErrInUse = model.ErrBusy
	// ErrUnavailable: the storage does not answer or is not mounted, or the volume cannot be used. See ErrAway.
	ErrUnavailable = model.ErrUnavailable
)

// Format of an image.
type Format string

// The formats that drivers know.
const (
	Raw   Format = "raw"
	QCOW2 Format = "qcow2"
)

// Volume is one disk image. Its ID is "<storage>:<name>" with name such as "100/vm-100-disk-0.qcow2".
type Volume struct {
	ID     string     `json:"volid"`
	VMID   model.VMID `json:"vmid"`
	Format Format     `json:"format"`
	Size   int64      `json:"size"` // bytes that a guest sees
	Used   int64      `json:"used"` // bytes allocated
}

// Capacity in bytes.
type Capacity struct {
	Total     int64 `json:"total"`
	Used      int64 `json:"used"`
	Available int64 `json:"avail"`
}

// Features declare what the fencing argument needs to know of a storage.
type Features struct {
	// Shared: every node sees the same volumes.
	Shared bool
	// LateWrites: writes that a node handed to the kernel may still arrive after
	// its processes are frozen or dead; such a node must be reset at its deadline.
	LateWrites bool
}

// Allocation asks for a new volume.
type Allocation struct {
	VMID   model.VMID
	Name   string // "" lets the driver choose vm-<vmid>-disk-<n>
	Format Format // "" is the driver's default
	Size   int64  // bytes; the driver rounds it up so that a guest can use the whole
}

// UseChecker is a Driver that can say whether a process has an image open.
type UseChecker interface {
	// CheckUnused returns ErrInUse, ErrNotFound, ErrUnavailable. Its answer may be over when it arrives.
	CheckUnused(ctx context.Context, volid string) error
}

// Driver is one configured storage. Calls return within their context's deadline.
type Driver interface {
	Features() Features
	// Allocate returns ErrExists, ErrNoSpace, ErrUnavailable, model.ErrInvalid; nothing is left behind on an error.
	Allocate(ctx context.Context, a Allocation) (Volume, error)
	// Import copies an image file of this node into a new volume. Errors as Allocate.
	Import(ctx context.Context, a Allocation, file string) (Volume, error)
	List(ctx context.Context) ([]Volume, error)
	// Delete returns ErrNotFound, ErrInUse.
	Delete(ctx context.Context, volid string) error
	Capacity(ctx context.Context) (Capacity, error)
	// File returns the path that QEMU opens and the image's format. ErrNotFound, ErrUnavailable, and ErrAway where it does not come by for the storage's sake.
	File(ctx context.Context, volid string) (path string, f Format, err error)
	// Pill returns the path of the file through which a node that was fenced learns it from the
	// storage itself: the one who takes over writes the new epoch there, the guard of a frozen node reads it. "" if not Shared.
	Pill(node string) string
}
