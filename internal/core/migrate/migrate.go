// Package migrate decides how a running guest moves from one node to another:
// [Source] and [Target] are the two sides' state machines, [Resolve] says what to do
// with whatever a crash, a failure or a cancel left behind. It carries nothing out;
// internal/agent/move does.
//
// Invariants: a side lets its guest run only after the store said that the guest is
// its own (for the target: after the transaction that moves the guest's file; for
// the source: after the transaction that deletes the intent), and a migration is only
// cancelled in QEMU after the intent is gone. Why this is enough stands in
// DESIGN.md. Start reading with [Source.Step].
package migrate

import (
	"fmt"
	"time"
)

// Phase of a migration, as a person sees it.
type Phase string

// The phases in order. Settle replaces the rest when something went wrong or the user cancelled.
const (
	PhaseCheck      Phase = "check"
	PhaseIntent     Phase = "intent"
	PhasePrepare    Phase = "prepare"
	PhaseSetup      Phase = "setup"
	PhasePrecopy    Phase = "precopy"
	PhaseSwitchover Phase = "switchover"
	PhaseOwnership  Phase = "ownership"
	PhaseCleanup    Phase = "cleanup"
	PhaseSettle     Phase = "settle"
	PhaseDone       Phase = "done"
)

// Config holds the knobs. Use Defaults.
type Config struct {
	// Downtime is QEMU's first downtime-limit; after PatientRounds rounds it grows by
	// DowntimeStep each StepRounds rounds up to MaxDowntime.
	Downtime      time.Duration
	DowntimeStep  time.Duration
	MaxDowntime   time.Duration
	PatientRounds int
	StepRounds    int
	// Bandwidth limits the copy while the guest runs, in bytes a second; 0 does not. A limit
	// lengthens a migration and helps nobody who has a network for it, so the default is none.
	Bandwidth int64
	// MPTCP copies over multipath TCP where both sides have it. A migration then
	// outlives a cut network, but the last bytes, which the guest stands still for, arrive some
	// 200 ms late (measured: 4 to 20 ms from stop to resume over TCP, 200 to 260 ms over MPTCP). A
	// migration that breaks off leaves the guest where it was and can be repeated, so the default is without.
	MPTCP bool
	// Limit is how long the memory may be copied before the migration is given up.
	Limit time.Duration
	// StallLimit is how long nothing at all may be copied.
	StallLimit time.Duration
	// SwitchoverLimit is how long the guest may stand still while QEMU sends the
	// rest; OwnershipLimit is how long the target may then take to move the file.
	SwitchoverLimit time.Duration
	OwnershipLimit  time.Duration
}

// Defaults returns the knobs' usual values and their reasons.
func Defaults() Config {
	return Config{
		// Under TCG a guest needs about 100 ms to be translated anew on the target, and the
		// change of owner some 10 ms: 100 ms for the rest of the memory keeps the gap below 250 ms.
		Downtime:     100 * time.Millisecond,
		DowntimeStep: 100 * time.Millisecond,
		// Half a second is short enough for every TCP connection and for most people.
		MaxDowntime: 500 * time.Millisecond,
		// Usual migrations need 4 to 8 rounds; what has not converged after 10 will not by itself.
		PatientRounds: 10,
		StepRounds:    5,
		// 10 minutes move 64 GiB at 1 Gbit/s once.
		Limit: 10 * time.Minute,
		// The guest runs on meanwhile, so patience costs nothing; a switch that reboots takes longer anyway.
		StallLimit: 10 * time.Second,
		// Ten times the largest downtime: by then it is the network, not the memory.
		SwitchoverLimit: 5 * time.Second,
		// The store answers or says that it has no quorum within a second; this allows several attempts.
		OwnershipLimit: 5 * time.Second,
	}
}

// Event is something that happened; see the types below.
type Event interface{ event() }

// Action is something to do; see the types below. The shell reports the result of
// each as the event named at its type.
type Action interface{ action() }

// Events of both sides.
type (
	// Begin starts the machine.
	Begin struct{}
	// Tick lets time pass.
	Tick struct{}
	// Done reports that the action of the phase went well.
	Done struct{}
	// Failed reports that the action of the phase did not, or that the other node was
	// lost; Reason is for a person. Uncertain: the intent may have been written.
	Failed struct {
		Reason    string
		Uncertain bool
	}
	// Migration is QEMU's status of the migration: "setup", "active", "device",
	// "completed", "failed", "cancelled"; Reason is QEMU's own word on a failure.
	Migration struct{ Status, Reason string }
	// Gone reports that the QEMU process of this side ended.
	Gone struct{}
	// Decided reports what the store says of the intent.
	Decided struct{ Fate Fate }
	// Settled reports the end of a Settle action.
	Settled struct{ Verdict Verdict }
)

// Events of the source.
type (
	// Cancel is the user's wish.
	Cancel struct{}
	// NoQuorum reports that the store could not be asked for a while.
	NoQuorum struct{}
	// Stopped reports that the guest stands still.
	Stopped struct{}
	// Progress is one look at QEMU's counters.
	Progress struct {
		Round           int
		Sent, Remaining int64 // bytes
	}
)

// Events of the target.
type (
	// Abort asks the target to give up; the source's agent sends it.
	Abort struct{ Reason string }
)

// Actions of the source.
type (
	// Check asks whether the guest can move at all. → Done, Failed.
	Check struct{}
	// WriteIntent announces the migration in the store. → Done, Failed (it was not
	// written), Failed with Uncertain.
	WriteIntent struct{}
	// Prepare has the target start its QEMU and listen. → Done, Failed.
	Prepare struct{}
	// Transfer sets QEMU up and starts to copy. → Done, Failed.
	Transfer struct {
		Downtime  time.Duration
		Bandwidth int64 // bytes a second, 0 is no limit
	}
	// SetDowntime changes QEMU's downtime-limit. Its result does not matter.
	SetDowntime struct{ Downtime time.Duration }
	// Brake makes the copy so slow that it cannot end. Its result does not matter.
	Brake struct{}
	// Remove ends the source's QEMU after the guest moved, and cleans up. → Done, Failed.
	Remove struct{}
)

// Actions of the target.
type (
	// Start starts QEMU, paused and waiting, and listens. → Done, Failed.
	Start struct{}
	// Commit moves the guest's file to this node in one transaction with the
	// deletion of the intent. → Decided, once the store has decided.
	Commit struct{}
	// Continue lets the guest run. → Done, Failed.
	Continue struct{}
	// Announce tells the switches where the guest is now. Its result does not matter.
	Announce struct{}
)

// Actions of both sides.
type (
	// Settle runs Resolve until nothing is left to do. → Settled.
	Settle struct{}
	// Report is a line for the log.
	Report struct{ Line string }
	// Finish ends the machine.
	Finish struct {
		OK     bool
		Reason string // what happened, for a person
	}
)

// Fate is what became of an intent, seen from one side.
type Fate string

// The fates. Pending: the intent is still there.
const (
	Pending Fate = "pending"
	// Mine: the guest is this side's own, and the memory of this side's QEMU is the guest's newest.
	Mine Fate = "mine"
	// Theirs: it is not; the QEMU here must never run again.
	Theirs Fate = "theirs"
)

func (Begin) event()     {}
func (Tick) event()      {}
func (Done) event()      {}
func (Failed) event()    {}
func (Migration) event() {}
func (Gone) event()      {}
func (Decided) event()   {}
func (Settled) event()   {}
func (Cancel) event()    {}
func (Stopped) event()   {}
func (Progress) event()  {}
func (NoQuorum) event()  {}
func (Abort) event()     {}

func (Check) action()       {}
func (WriteIntent) action() {}
func (Prepare) action()     {}
func (Transfer) action()    {}
func (SetDowntime) action() {}
func (Brake) action()       {}
func (Remove) action()      {}
func (Start) action()       {}
func (Commit) action()      {}
func (Continue) action()    {}
func (Announce) action()    {}
func (Settle) action()      {}
func (Report) action()      {}
func (Finish) action()      {}

func report(format string, args ...any) Action {
	return Report{Line: fmt.Sprintf(format, args...)}
}
