package ledger

import (
	"fmt"
	"io"
	"time"
)

// Device is the region that holds the ledger. WriteAt returns only when the
// bytes are on stable storage: the guest opens its partition with O_DIRECT and O_DSYNC.
type Device interface {
	io.ReaderAt
	io.WriterAt
}

// Receipt is what an append returns, and what the guest acknowledges.
type Receipt struct {
	Number   uint64 `json:"number"`
	Checksum uint32 `json:"checksum"`
	Boot     BootID `json:"-"`
}

// Log appends to a region. It is not safe for concurrent use; the service serializes.
type Log struct {
	dev   Device
	slots uint64
	boot  BootID
	now   func() time.Time
	next  uint64 // number of the next record
	prev  uint32
	buf   []byte // one slot, aligned by the caller for O_DIRECT
}

// Open scans the region of size bytes for its last valid record and continues
// after it. It does not repair anything and does not refuse a broken chain: what is wrong
// stays there for [Check]. buf is the scratch memory of all I/O, a multiple
// of SlotSize, aligned as the device wants it.
func Open(dev Device, size int64, boot BootID, now func() time.Time, buf []byte) (*Log, error) {
	l := &Log{dev: dev, slots: uint64(size / SlotSize), boot: boot, now: now, next: 1, buf: buf[:SlotSize]}
	misses := 0
	err := ReadSlots(dev, 1, l.slots, buf, func(n uint64, slot []byte) bool {
		r, sum, err := Decode(slot)
		if err != nil || r.Number != n {
			misses++
			return misses < tailSlots
		}
		misses, l.next, l.prev = 0, n+1, sum
		return true
	})
	if err != nil {
		return nil, fmt.Errorf("scan ledger: %w", err)
	}
	return l, nil
}

// Last is the number of the last record, 0 for an empty ledger.
func (l *Log) Last() uint64 { return l.next - 1 }

// Slots is how many records fit.
func (l *Log) Slots() uint64 { return l.slots }

// Append writes one record and returns when it is on stable storage. After an
// error nothing is acknowledged and the same number is used again. Errors: ErrFull.
func (l *Log) Append(payload []byte) (Receipt, error) {
	if l.next > l.slots {
		return Receipt{}, ErrFull
	}
	r := Record{Number: l.next, Boot: l.boot, Time: l.now().UnixNano(), Prev: l.prev, Payload: payload}
	sum, err := r.Encode(l.buf)
	if err != nil {
		return Receipt{}, err
	}
	if _, err := l.dev.WriteAt(l.buf, int64(l.next-1)*SlotSize); err != nil {
		return Receipt{}, fmt.Errorf("write record %d: %w", l.next, err)
	}
	l.next, l.prev = l.next+1, sum
	return Receipt{Number: r.Number, Checksum: sum, Boot: l.boot}, nil
}

// ReadSlots calls visit for the slots of records first to last, in order, until
// visit returns false. The slot is valid only during the call. buf as for Open.
func ReadSlots(dev io.ReaderAt, first, last uint64, buf []byte, visit func(n uint64, slot []byte) bool) error {
	per := uint64(len(buf) / SlotSize)
	for n := first; n <= last; {
		count := min(per, last-n+1)
		part := buf[:count*SlotSize]
		if _, err := dev.ReadAt(part, int64(n-1)*SlotSize); err != nil {
			return fmt.Errorf("read records %d to %d: %w", n, n+count-1, err)
		}
		for ; len(part) > 0; part, n = part[SlotSize:], n+1 {
			if !visit(n, part[:SlotSize]) {
				return nil
			}
		}
	}
	return nil
}
