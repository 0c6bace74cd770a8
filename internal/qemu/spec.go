package qemu

import (
	"fmt"
	"path/filepath"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/storage"
)

// Binary is the program that is run, looked up in PATH.
const Binary = "qemu-system-x86_64"

// Names of the accelerators.
const (
	KVM = "kvm"
	TCG = "tcg"
)

// Spec is all that a QEMU process of a guest is made from. It is pure data:
// paths are absolute, names resolved, nothing is looked up any more.
type Spec struct {
	VMID model.VMID `json:"vmid"`
	Name string     `json:"name"`
	// RunDir is the directory of sockets, pidfile and logs, "/run/sauh/qemu".
	RunDir string `json:"run_dir"`
	// Accel is KVM or TCG.
	Accel string `json:"accel"`
	// Machine is a versioned machine type and the layout of devices, "pc-i440fx-10.0+sauh1"; see Relocate.
	Machine string `json:"machine"`
	NoACPI  bool   `json:"no_acpi,omitempty"`
	// CPU is QEMU's -cpu, flags included.
	CPU       string `json:"cpu"`
	Sockets   int    `json:"sockets"`
	Cores     int    `json:"cores"` // per socket
	MemoryMiB int64  `json:"memory_mib"`
	// UUID is the machine's identity in SMBIOS, "" for none.
	UUID string `json:"uuid,omitempty"`
	// SMBIOS are further fields of SMBIOS type 1, "manufacturer=…".
	SMBIOS  []string `json:"smbios,omitempty"`
	VMGenID string   `json:"vmgenid,omitempty"`
	Disks   []Disk   `json:"disks,omitempty"`
	// SCSIController is the device that carries scsi disks, "" without any.
	SCSIController string `json:"scsi_controller,omitempty"`
	NICs           []NIC  `json:"nics,omitempty"`
	// Serials are the serial ports by number: "socket", or a device of the host.
	Serials []string `json:"serials"`
	// GuestAgent adds the port of the QEMU guest agent.
	GuestAgent bool `json:"guest_agent,omitempty"`
	// Extra are further arguments, the key args, appended last.
	Extra []string `json:"extra,omitempty"`
	// Incoming waits for a live migration (-incoming defer).
	Incoming bool `json:"incoming,omitempty"`
	// Paused starts without running the guest (-S); QMP cont runs it.
	Paused bool `json:"paused,omitempty"`
}

// Disk is one disk.
type Disk struct {
	ID     string         `json:"id"` // "virtio0", "scsi1"
	Volume string         `json:"volume"`
	Path   string         `json:"path"`
	Format storage.Format `json:"format"`
	// Direct bypasses the page cache of this node (O_DIRECT). Where the file system cannot
	// do that it is false, and a flush by the guest still reaches the disk.
	Direct bool `json:"direct"`
	// WriteThrough tells the guest that there is no write cache and flushes after each write.
	WriteThrough bool `json:"write_through,omitempty"`
	// NoFlush ignores the guest's flushes: what was written is lost with the node's power.
	NoFlush  bool   `json:"no_flush,omitempty"`
	Discard  bool   `json:"discard,omitempty"`
	ReadOnly bool   `json:"read_only,omitempty"`
	CDROM    bool   `json:"cdrom,omitempty"`
	Serial   string `json:"serial,omitempty"`
	// WError and RError are what happens on an I/O error.
	WError string `json:"werror"`
	RError string `json:"rerror"`
	// BootIndex is the place in the boot order, 0 for none.
	BootIndex int `json:"boot_index,omitempty"`
}

// NIC is one network card.
type NIC struct {
	ID     string `json:"id"`     // "net0"
	Device string `json:"device"` // QEMU's device, "virtio-net-pci"
	MAC    string `json:"mac"`
	// Bridge is where the tap belongs; "" gives the guest QEMU's own user network.
	Bridge string `json:"bridge,omitempty"`
	// Tap is the interface, which exists and is a port of Bridge before Start.
	Tap       string `json:"tap,omitempty"`
	MTU       int    `json:"mtu,omitempty"`
	BootIndex int    `json:"boot_index,omitempty"`
}

// TapName names the tap of card net<n>, as Proxmox VE does: "tap100i0".
func TapName(id model.VMID, n int) string { return fmt.Sprintf("tap%di%d", id, n) }

// Files below the run directory, each "<vmid>.<suffix>".
const (
	suffixPID   = "pid"
	suffixQMP   = "qmp"  // the agent's monitor
	suffixSpare = "qmp2" // a monitor for people
	suffixAgent = "qga"
	suffixState = "json"
	suffixErr   = "stderr"
	suffixLock  = "lock"
)

func runFile(runDir string, id model.VMID, suffix string) string {
	return filepath.Join(runDir, id.String()+"."+suffix)
}

// QMPSocket is the path of the monitor that the agent uses.
func (s Spec) QMPSocket() string { return runFile(s.RunDir, s.VMID, suffixQMP) }

// SpareSocket is the path of a second monitor, for people and tests.
func (s Spec) SpareSocket() string { return runFile(s.RunDir, s.VMID, suffixSpare) }

// SerialSocket is the path of the socket of serial port n.
func (s Spec) SerialSocket(n int) string {
	return runFile(s.RunDir, s.VMID, fmt.Sprintf("serial%d", n))
}

// AgentSocket is the path of the guest agent's port, which is there with GuestAgent.
func (s Spec) AgentSocket() string { return runFile(s.RunDir, s.VMID, suffixAgent) }

// SerialLog is the file that keeps what serial port n printed since the start.
func (s Spec) SerialLog(n int) string { return s.SerialSocket(n) + ".log" }

// PIDFile is the file into which QEMU writes its process id.
func (s Spec) PIDFile() string { return runFile(s.RunDir, s.VMID, suffixPID) }
