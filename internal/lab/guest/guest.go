// Package guest is the probe guest: what the laboratory's virtual machines
// run. It is the init of a guest that boots Debian's kernel from its own disk, and whatever a probe
// can measure from outside: ICMP and UDP echo, a constant-bit-rate stream, large files with known
// hashes, a given rate of dirtied memory, a ledger whose records are acknowledged only
// when they are on the disk, and a guest agent. It can be told to fall ill: to leave the agent's questions unanswered, to panic, to hang.
//
// It is no production guest and has no security: everything it serves, anyone may use.
//
// Invariant: the guest needs nothing but its own disk. Its address stands in a
// block of that disk ([Config]), so it comes back the same after a restart on another
// node. Start reading with [Run] (what a boot does) and [Config].
package guest

// Where things stand on the guest's disk, in bytes. The image builder and the guest agree here.
const (
	// ConfigOffset is the place of the block that EncodeConfig makes, before the first partition.
	ConfigOffset = 512 << 10
	// ConfigSize is its length.
	ConfigSize = 4 << 10
	// BootOffset and BootSize are the first partition: FAT with loader, kernel and initramfs.
	BootOffset = 1 << 20
	BootSize   = 31 << 20
	// LedgerOffset and LedgerSize are the second partition: 196,608 records, half an hour at 100 a second.
	LedgerOffset = 32 << 20
	LedgerSize   = 96 << 20
	// DiskSize is the whole disk.
	DiskSize = LedgerOffset + LedgerSize
)

// The guest's ports.
const (
	EchoPort   = 7    // UDP: every datagram comes back
	HTTPPort   = 80   // /stream, /file, /hash, /dirty, /stats, and the faults /agent, /panic, /hang
	LedgerPort = 7000 // TCP: see the ledger's protocol in DESIGN.md
)

// ReadyPrefix begins the line on the serial port that ends a boot; host name and address follow.
const ReadyPrefix = "sauh-guest ready"
