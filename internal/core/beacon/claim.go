package beacon

import (
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// The times of the protocol. All nodes must have the same.
const (
	// Beat is the time from one datagram to the next.
	Beat = 500 * time.Millisecond
	// SampleEvery is how often a node looks which guests run. The end of a run is known only so exactly.
	SampleEvery = 250 * time.Millisecond
	// Tolerance is the longest overlap that raises no alarm: an agent may notice so late that its QEMU stopped. It is
	// all that an overlap of 2 s leaves when networks need 1 s: 2 s - 1 s - SampleEvery - slack = 0.63 s.
	Tolerance = 500 * time.Millisecond
	// Confirm is how long an overlap must have been certain before it is an alarm. A node that wakes with a clock that stood still reads
	// what had queued up; the first of it looks as if the network had become faster, and only what follows shows the clock.
	Confirm = time.Second
	// Keep is how long a run that ended is still told: 40 beats, so that losing all of them takes a dead network.
	Keep = 20 * time.Second
	// Gap is how long a node may not have looked at its guests, or a receiver not at its clock, without taking it for a
	// sleep in which anything can have happened. It is far shorter than the fastest recovery elsewhere, and eight samples long.
	Gap = 2 * time.Second

	// remember is how long an observer keeps a run that ended: in that time a node with 2000 guests has told each of them twice.
	remember = 2 * Keep
	// horizon is how far back anything is compared: remember, and what the bounds on the clocks may be old.
	horizon = remember + 2*window
	// clockErrorPPM is how much faster or slower than true time a node's clock may run, as for the lease.
	clockErrorPPM = 1000
	// slack is the drift within horizon.
	slack = 2 * clockErrorPPM * (horizon / 1_000_000)
)

// drift is how far two clocks may drift apart in a time.
func drift(in time.Duration) time.Duration { return 2 * clockErrorPPM * (in / 1_000_000) }

// Network is one of a node's two networks.
type Network uint8

// The networks.
const (
	Management Network = iota
	Cluster
	networks
)

// String names the network.
func (n Network) String() string {
	if n == Management {
		return "management"
	}
	return "cluster"
}

// Guest is a guest that runs at the moment of the question.
type Guest struct {
	VMID model.VMID
	// Epoch is the node's at the guest's start, Revision the one that created the guest's file under the node's
	// path. They are evidence; an overlap is one whatever they are.
	Epoch    uint64
	Revision int64
	// Since is when it began to run, or went on after it stood still, on the node's clock; 0 if that is not known.
	Since time.Duration
}

// Claim says that a guest ran on a node without a break from Since to Until, at least.
type Claim struct {
	VMID     model.VMID
	Epoch    uint64
	Revision int64
	// Since and Until are on the clock of the node that claims, in whole milliseconds. Until is when the node last looked.
	Since, Until time.Duration
	// Ended: it was not running any more at the next look.
	Ended bool
}

// same reports whether two claims of one node are about one run.
func (c Claim) same(o Claim) bool {
	return c.VMID == o.VMID && c.Since == o.Since && c.Revision == o.Revision && c.Epoch == o.Epoch
}

// Echo tells the receiver of a message which of its own messages arrived last. It is what bounds the distance of two
// clocks from below, and proves that the message that carries it is not a recording.
type Echo struct {
	// Boot and Sent are those of the message that arrived; "" if none did.
	Boot string
	Sent time.Duration
	// Arrived is when it did, on the clock of the node that echoes.
	Arrived time.Duration
}

// Message is what one datagram says.
type Message struct {
	Network  Network
	From, To string
	// Boot is the sender's boot id, Epoch that of its lease.
	Boot  string
	Epoch uint64
	// Seq rises with each beat of a boot, over restarts of the agent too.
	Seq uint64
	// Sent and Sampled are when the message was made and when the guests were last looked at, on the sender's clock.
	Sent, Sampled time.Duration
	Echo          Echo
	// Claims are a part of the sender's: those that changed lately, and the others in turn.
	Claims []Claim
}
