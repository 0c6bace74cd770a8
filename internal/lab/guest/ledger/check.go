package ledger

import (
	"errors"
	"fmt"
)

// Kind names what is wrong with a slot.
type Kind string

// What Check can find without knowing what was acknowledged.
const (
	Gap       Kind = "gap"       // an empty slot before a record
	Corrupt   Kind = "corrupt"   // bytes that are no record, or a wrong checksum, before the last record
	Misplaced Kind = "misplaced" // a record that belongs into another slot
	Broken    Kind = "broken"    // the record before is not the one that this one was written after
	Stale     Kind = "stale"     // a boot that had already been succeeded by another wrote again
)

// Problem is one thing that is wrong with one record.
type Problem struct {
	Number uint64 `json:"number"`
	Kind   Kind   `json:"kind"`
	Text   string `json:"text"`
}

// Report is the result of a check.
type Report struct {
	Records  uint64    `json:"records"` // valid ones
	Last     uint64    `json:"last"`    // number of the last valid one
	Boots    []string  `json:"boots"`   // in the order in which they first wrote
	Problems []Problem `json:"problems"`
}

// OK says that the ledger is one unbroken chain.
func (r Report) OK() bool { return len(r.Problems) == 0 }

// Checker takes the slots of a ledger from the first one on, in order. The zero value is ready.
//
// An empty or corrupt slot counts only when a valid record follows it: a
// torn write at the very end was never acknowledged.
type Checker struct {
	report  Report
	n       uint64
	prev    uint32
	prevOK  bool
	pending []Problem
	order   map[BootID]int
}

// Add takes the next slot and returns the record that stands in it; ok is false if none does.
func (c *Checker) Add(slot []byte) (r Record, sum uint32, ok bool) {
	c.n++
	r, sum, err := Decode(slot)
	switch {
	case errors.Is(err, ErrEmpty):
		c.hole(Gap, "the slot is empty")
	case err != nil:
		c.hole(Corrupt, "the slot is no record or its checksum is wrong")
	case r.Number != c.n:
		c.hole(Misplaced, fmt.Sprintf("the slot holds record %d", r.Number))
	default:
		c.accept(r, sum)
		return r, sum, true
	}
	return Record{}, 0, false
}

// hole remembers a slot without a record; it becomes a problem when a record follows.
func (c *Checker) hole(k Kind, text string) {
	c.prevOK = false
	p := Problem{Number: c.n, Kind: k, Text: text}
	if k == Misplaced {
		c.report.Problems = append(c.report.Problems, p)
		return
	}
	if len(c.pending) < maxPending {
		c.pending = append(c.pending, p)
	}
}

// maxPending bounds the memory that the empty end of a large region takes.
const maxPending = 10000

func (c *Checker) accept(r Record, sum uint32) {
	c.report.Problems = append(c.report.Problems, c.pending...)
	c.pending = nil
	known := c.n == 1 || c.prevOK
	if known && r.Prev != c.prev {
		c.problem(Broken, fmt.Sprintf("it was written after a record with checksum %08x, but %08x stands before it", r.Prev, c.prev))
	}
	c.boot(r.Boot)
	c.prev, c.prevOK = sum, true
	c.report.Records++
	c.report.Last = r.Number
}

func (c *Checker) boot(b BootID) {
	if c.order == nil {
		c.order = map[BootID]int{}
	}
	i, seen := c.order[b]
	if !seen {
		c.order[b] = len(c.report.Boots)
		c.report.Boots = append(c.report.Boots, b.String())
		return
	}
	if i != len(c.report.Boots)-1 {
		c.problem(Stale, fmt.Sprintf("boot %s wrote after boot %s had taken over", b, c.report.Boots[len(c.report.Boots)-1]))
	}
}

func (c *Checker) problem(k Kind, text string) {
	c.report.Problems = append(c.report.Problems, Problem{Number: c.n, Kind: k, Text: text})
}

// Report returns what was found so far.
func (c *Checker) Report() Report { return c.report }

// Check reads a whole region of size bytes.
func Check(dev Device, size int64, buf []byte) (Report, error) {
	var c Checker
	err := ReadSlots(dev, 1, uint64(size/SlotSize), buf, func(_ uint64, slot []byte) bool {
		c.Add(slot)
		return true
	})
	return c.Report(), err
}
