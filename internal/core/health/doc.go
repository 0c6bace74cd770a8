// Package health decides what is well and what is not: a storage and a network as one node sees them, and a guest whose QEMU
// runs. It takes in what was observed and when, and says lost or back, down or up, silent or panicked, with the reason.
//
// It is pure: it probes nothing, reads no clock and starts nothing (internal/health does), and decides nothing about what is
// done with a sick guest (that is internal/core/ha). Clocks are none of its business.
//
// Invariants: nothing is called lost or silent for time in which this program itself did not run, because then it was
// not the other side that was silent; nothing changes its state by one observation alone, except a guest that says
// that it panicked. Start reading with [Params], then [Storage], [Link] and [Guest].
package health

import "time"

// Params are the times and counts. Take [DefaultParams] and change what differs.
type Params struct {
	// Tick is how often Look is called, or more often. A longer time between two Looks counts as two Ticks: this program stood still.
	Tick time.Duration

	// ProbeEvery is the time from one probe of a storage to the next.
	ProbeEvery time.Duration
	// LostAfter: a storage none of whose probes went well for so long is lost, whether they hang or fail. One rule for both, so that nodes that share a
	// fault find it within Spread of one another.
	LostAfter time.Duration
	// Errors: so many failures make a storage lost whose probes go well now and then: those that failed one after the other, and guests that had an I/O error
	// within ErrorWindow, the first of them LostAfter ago.
	Errors      int
	ErrorWindow time.Duration
	// Good: so many probes in a row must succeed, and ErrorWindow go by without an error of a guest, until a storage is back.
	Good int

	// LinkDown and LinkUp: a link must be down, or up, for so long without a break to count as that.
	LinkDown, LinkUp time.Duration

	// PingEvery is the time from the end of one question to a guest agent to the next, PingFirst the same until the agent has
	// answered once since the guest started. PingWait is how long an answer may take.
	PingEvery, PingFirst, PingWait time.Duration
	// Misses: an agent that left so many questions in a row unanswered is silent.
	Misses int
}

// DefaultParams are those of production.
func DefaultParams() Params {
	return Params{
		Tick: time.Second,
		// Lost 12 to 15 s after the storage began to hang or to fail. Of the half minute in which its guests are to be elsewhere Spread passes
		// until the manager believes that others are well; the other 9 s are for the move and a busy machine.
		ProbeEvery: 3 * time.Second, LostAfter: 12 * time.Second, Errors: 3, ErrorWindow: 15 * time.Second,
		Good: 10, // half a minute: guests that come back too early move twice
		// A switch that converges anew, or a bond that changes its port, is through in less than 3 s.
		LinkDown: 3 * time.Second, LinkUp: 10 * time.Second,
		// Silent at most 3·(10 + 5) s after the last answer; a guest that merely pages is not. Others may wait for the first one.
		PingEvery: 10 * time.Second, PingFirst: 2 * time.Second, PingWait: 5 * time.Second, Misses: 3,
	}
}

// Spread is how much later than one node another may tell the same fault of a storage: their probes are up to ProbeEvery out of step, and
// a Tick each passes until it is looked at, until it is told, and until it is read.
func (p Params) Spread() time.Duration { return p.ProbeEvery + 3*p.Tick }

// passed adds up time between looks that are not too far apart.
type passed struct {
	begun bool
	last  time.Time
}

// step returns the time since the last call, at most twice the tick, 0 at the first.
func (p *passed) step(now time.Time, tick time.Duration) time.Duration {
	d := now.Sub(p.last)
	if !p.begun {
		d = 0
	}
	p.begun, p.last = true, now
	return min(max(d, 0), 2*tick)
}
