package probe

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"sauh.dev/sauh/internal/lab/guest"
	"sauh.dev/sauh/internal/lab/guest/ledger"
)

// History is what ledger probes wrote down, of one run or of several.
type History struct {
	Acks    []LedgerLine // in the order of the file
	Unknown []LedgerLine
}

// ReadHistory adds the lines of a ledger probe's file to h. A file that is still
// written, or was cut off in the middle of its last line, is read as far as it goes.
func (h *History) ReadHistory(r io.Reader) error {
	in := bufio.NewReader(r)
	for {
		text, err := in.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read ledger history: %w", err)
		}
		var line LedgerLine
		if err := json.Unmarshal(text, &line); err != nil {
			return fmt.Errorf("read ledger history: %w", err)
		}
		switch line.Kind {
		case KindAck:
			h.Acks = append(h.Acks, line)
		case KindUnknown:
			h.Unknown = append(h.Unknown, line)
		}
	}
}

// Fault is an acknowledged record that is not what was acknowledged.
type Fault struct {
	Number uint64 `json:"number"`
	Run    uint64 `json:"run"`
	Seq    uint64 `json:"seq"`
	Text   string `json:"text"`
}

// maxFaults bounds how many are listed; all are counted.
const maxFaults = 100

// Verdict compares a ledger with a history.
type Verdict struct {
	Acknowledged int `json:"acknowledged"`
	// Lost were acknowledged and are nowhere: their slot is empty.
	Lost int `json:"lost"`
	// Wrong were acknowledged, and their slot holds something else.
	Wrong int `json:"wrong"`
	// Unacknowledged are on the disk though no answer had come: allowed, since a
	// record whose answer was lost may or may not exist.
	Unacknowledged int `json:"unacknowledged"`
	// Twice are records that stand in more than one slot: something sent them again.
	Twice int `json:"twice"`
	// Foreign belong to no run of the history.
	Foreign int           `json:"foreign"`
	Faults  []Fault       `json:"faults,omitempty"`
	Chain   ledger.Report `json:"chain"` // what the records say without the history
}

// OK says that nothing acknowledged is missing or wrong and the chain is whole.
func (v Verdict) OK() bool { return v.Lost == 0 && v.Wrong == 0 && v.Twice == 0 && v.Chain.OK() }

// verifier takes the slots in order and makes the verdict.
type verifier struct {
	v     Verdict
	chain ledger.Checker
	acks  map[uint64][]LedgerLine // by number; more than one is a fault of its own
	runs  map[uint64]bool
	acked map[[2]uint64]bool // run and seq
	seen  map[[2]uint64]bool
}

func newVerifier(h History) *verifier {
	c := &verifier{
		acks: map[uint64][]LedgerLine{}, runs: map[uint64]bool{},
		acked: map[[2]uint64]bool{}, seen: map[[2]uint64]bool{},
	}
	c.v.Acknowledged = len(h.Acks)
	for _, a := range h.Acks {
		c.acks[a.Number] = append(c.acks[a.Number], a)
		c.acked[[2]uint64{a.Run, a.Seq}] = true
		c.runs[a.Run] = true
	}
	for _, u := range h.Unknown {
		c.runs[u.Run] = true
	}
	return c
}

// last is the highest number that was acknowledged.
func (c *verifier) last() uint64 {
	var last uint64
	for n := range c.acks {
		last = max(last, n)
	}
	return last
}

func (c *verifier) slot(n uint64, slot []byte) {
	r, sum, ok := c.chain.Add(slot)
	for _, a := range c.acks[n] {
		c.compare(a, slot, r, sum, ok)
	}
	if !ok {
		return
	}
	run, seq, ours := identity(r.Payload)
	if !ours || !c.runs[run] {
		c.v.Foreign++
		return
	}
	id := [2]uint64{run, seq}
	switch {
	case c.seen[id]:
		c.v.Twice++
	case !c.acked[id]:
		c.v.Unacknowledged++
	}
	c.seen[id] = true
}

// compare judges what stands in the slot of an acknowledged record.
func (c *verifier) compare(a LedgerLine, slot []byte, r ledger.Record, sum uint32, ok bool) {
	if !ok {
		if _, _, err := ledger.Decode(slot); errors.Is(err, ledger.ErrEmpty) {
			c.v.Lost++
			c.fault(a, "acknowledged, but its slot is empty")
			return
		}
		c.v.Wrong++
		c.fault(a, "acknowledged, but its slot holds no valid record of that number")
		return
	}
	run, seq, ours := identity(r.Payload)
	switch {
	case !ours || run != a.Run || seq != a.Seq:
		c.v.Wrong++
		c.fault(a, fmt.Sprintf("acknowledged, but another record written by boot %s stands in its slot", r.Boot))
	case sum != a.Checksum || r.Boot.String() != a.Boot:
		c.v.Wrong++
		c.fault(a, fmt.Sprintf("acknowledged with checksum %08x by boot %s, but it now has %08x by %s", a.Checksum, a.Boot, sum, r.Boot))
	}
}

func (c *verifier) fault(a LedgerLine, text string) {
	if len(c.v.Faults) < maxFaults {
		c.v.Faults = append(c.v.Faults, Fault{Number: a.Number, Run: a.Run, Seq: a.Seq, Text: text})
	}
}

// verdict ends the check at slot end: what was acknowledged beyond it is lost.
func (c *verifier) verdict(end uint64) Verdict {
	for n, acks := range c.acks {
		for _, a := range acks {
			if n > end || n == 0 {
				c.v.Lost++
				c.fault(a, "acknowledged, but the ledger ends before it")
			}
		}
	}
	c.v.Chain = c.chain.Report()
	return c.v
}

// Verify reads the ledger of the guest at target back and compares it with what
// was acknowledged. It believes the bytes, not the guest's opinion of them. An error means that the
// ledger could not be read, which says nothing about what is in it.
func Verify(ctx context.Context, target string, h History) (Verdict, error) {
	conn, err := dialLedger(ctx, address(target, guest.LedgerPort), 10*time.Second)
	if err != nil {
		return Verdict{}, err
	}
	defer conn.close()
	st, err := conn.waitOpen(ctx)
	if err != nil {
		return Verdict{}, err
	}
	c := newVerifier(h)
	end := min(max(st.Last, c.last())+verifyTail, st.Slots)
	if err := conn.read(1, end, c.slot); err != nil {
		return Verdict{}, err
	}
	return c.verdict(end), nil
}

// verifyTail is how many slots beyond the last known record are looked at, in
// case that the guest itself overlooked some.
const verifyTail = 4096
