// Package ledger is the probe guest's ledger: numbered, checksummed records of
// one sector each, appended to a region of the guest's own disk, and the check that tells
// from the bytes alone whether any of them was lost, altered or written over.
//
// It is the format, the writer and the check; the TCP service stands in package guest, the
// client that keeps a history of its own in package probe. The same check runs
// on both sides, so a client need not believe the guest.
//
// Invariant: record n stands in slot n-1 and carries the checksum of record
// n-1, so a missing record, a changed one and one written by a second writer each break
// the chain at a place that can be named. Start reading with [Record] and [Check].
package ledger

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
)

const (
	// SlotSize is the size of a record on the disk in bytes: one sector, which a disk writes whole or not at all.
	SlotSize = 512
	// MaxPayload is what a record can carry, in bytes.
	MaxPayload = crcOffset - payloadOffset

	payloadOffset = 48
	crcOffset     = SlotSize - 4
	// tailSlots is how far beyond the last valid record Open looks for another one: 1 MiB.
	tailSlots = 2048
)

var (
	// ErrEmpty: the slot was never written; it is all zero.
	ErrEmpty = errors.New("slot is empty")
	// ErrCorrupt: the slot holds bytes that are no record, or one whose checksum is wrong.
	ErrCorrupt = errors.New("slot is corrupt")
	// ErrFull: the region has no free slot.
	ErrFull = errors.New("ledger is full")
)

// magic begins each record.
const magic = "SAUHLEDG"

// checksum is CRC-32C, which processors compute in hardware.
func checksum(b []byte) uint32 { return crc32.Checksum(b, crc32.MakeTable(crc32.Castagnoli)) }

// BootID identifies one boot of one guest; two guests that write the same disk differ in it.
type BootID [16]byte

// String prints the id in hexadecimal.
func (b BootID) String() string { return hex.EncodeToString(b[:]) }

// ParseBootID is the inverse of String.
func ParseBootID(s string) (BootID, error) {
	var b BootID
	raw, err := hex.DecodeString(s)
	if err != nil || len(raw) != len(b) {
		return b, fmt.Errorf("boot id %q: want %d hexadecimal digits", s, 2*len(b))
	}
	copy(b[:], raw)
	return b, nil
}

// Record is one entry.
type Record struct {
	Number  uint64 // counted from 1
	Boot    BootID // who wrote it
	Time    int64  // the guest's clock, Unix nanoseconds
	Prev    uint32 // checksum of the record before, 0 for the first
	Payload []byte // at most MaxPayload bytes
}

// Encode fills slot, SlotSize bytes, and returns the record's checksum.
func (r Record) Encode(slot []byte) (uint32, error) {
	if len(slot) != SlotSize || len(r.Payload) > MaxPayload {
		return 0, fmt.Errorf("encode record %d: %d bytes of payload in a slot of %d", r.Number, len(r.Payload), len(slot))
	}
	clear(slot)
	copy(slot, magic)
	binary.LittleEndian.PutUint64(slot[8:], r.Number)
	copy(slot[16:], r.Boot[:])
	binary.LittleEndian.PutUint64(slot[32:], uint64(r.Time))
	binary.LittleEndian.PutUint32(slot[40:], r.Prev)
	binary.LittleEndian.PutUint16(slot[44:], uint16(len(r.Payload)))
	copy(slot[payloadOffset:], r.Payload)
	sum := checksum(slot[:crcOffset])
	binary.LittleEndian.PutUint32(slot[crcOffset:], sum)
	return sum, nil
}

// Decode reads a slot. Errors: ErrEmpty, ErrCorrupt. The payload is a copy.
func Decode(slot []byte) (Record, uint32, error) {
	if len(slot) != SlotSize {
		return Record{}, 0, ErrCorrupt
	}
	if string(slot[:8]) != magic {
		if allZero(slot) {
			return Record{}, 0, ErrEmpty
		}
		return Record{}, 0, ErrCorrupt
	}
	sum := binary.LittleEndian.Uint32(slot[crcOffset:])
	n := int(binary.LittleEndian.Uint16(slot[44:]))
	if n > MaxPayload || sum != checksum(slot[:crcOffset]) {
		return Record{}, 0, ErrCorrupt
	}
	r := Record{
		Number:  binary.LittleEndian.Uint64(slot[8:]),
		Time:    int64(binary.LittleEndian.Uint64(slot[32:])),
		Prev:    binary.LittleEndian.Uint32(slot[40:]),
		Payload: bytes.Clone(slot[payloadOffset : payloadOffset+n]),
	}
	copy(r.Boot[:], slot[16:32])
	return r, sum, nil
}

func allZero(b []byte) bool {
	for len(b) >= 8 {
		if binary.LittleEndian.Uint64(b) != 0 {
			return false
		}
		b = b[8:]
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}
