package health

import (
	"fmt"
	"time"
)

// IncidentKind says what happened to a guest.
type IncidentKind int

// What QEMU tells of a guest.
const (
	// StatusKnown: QEMU was asked, at the beginning and whenever an incident may have been missed. Status is set.
	StatusKnown IncidentKind = iota
	// Panicked: the guest's kernel said so (pvpanic).
	Panicked
	// PanickedBefore: who watched the guest before has seen that its kernel panicked, and not that it was reset.
	PanickedBefore
	// PanickedElsewhere: the node from which the guest has migrated has seen that its kernel panicked, and not that it was reset. It is told
	// after the guest has arrived, so it says nothing of one that was reset here, or answered.
	PanickedElsewhere
	// IOError: a disk's request failed. Disk, Volume, Write, NoSpace, Reason are set.
	IOError
	// Stopped and Resumed: the guest stands still, for whatever reason; it runs.
	Stopped
	Resumed
	// Reset: the guest begins anew.
	Reset
	// WatchdogFired: the guest did not feed its own watchdog.
	WatchdogFired
)

// Incident is something that QEMU told about a guest.
type Incident struct {
	Kind IncidentKind
	Time time.Time
	// Status is QEMU's word: "running", "paused", "io-error", "guest-panicked" …
	Status string
	// Disk is the configuration's key, "virtio0", Volume its volume or path; "" if QEMU named none that is known.
	Disk, Volume   string
	Write, NoSpace bool
	Reason         string
	// Action is what QEMU did by itself about Panicked, IOError and WatchdogFired: "run", "pause", "stop", "reset" …
	Action string
}

// Sickness is what is wrong with a guest that runs.
type Sickness string

// The sicknesses, by the words of ha/resources.cfg.
const (
	Well         Sickness = ""
	SickPanicked Sickness = "panicked"
	SickSilent   Sickness = "silent" // its agent answered once and does not any more
)

// Condition is what is thought of a guest.
type Condition struct {
	// Answers: the guest agent has answered since the guest started or was reset.
	Answers bool
	Sick    Sickness
	// Reason says why it is sick: a part of a sentence.
	Reason string
}

// Guest is one guest whose QEMU runs. It is not safe for concurrent use. Make it with [NewGuest].
type Guest struct {
	p        Params
	running  bool
	held     string // why its silence does not count, "" if it does
	panicked string // how, "" if it is not
	hearsay  bool   // panicked is what was seen before: the guest may have booted anew since
	answers  bool
	misses   int
	missed   string
	run      int // counts what makes the silence to a question that is under way void
	boot     int // counts what makes an answer void, too
}

// Question is one ping that is under way.
type Question struct{ run, boot int }

// NewGuest is a guest of which nothing is known: it is well, and does not count as running until QEMU says so.
func NewGuest(p Params) *Guest { return &Guest{p: p} }

// Observe takes in what QEMU told.
func (g *Guest) Observe(i Incident) {
	switch i.Kind {
	case StatusKnown:
		g.setRunning(i.Status == "running")
		if i.Status == "guest-panicked" && g.panicked == "" {
			g.panicked = "it stands still since its kernel panicked"
		}
	case Panicked:
		g.panicked, g.hearsay = "its kernel panicked", false
	case PanickedBefore:
		if g.panicked == "" {
			g.panicked, g.hearsay = "its kernel has panicked, as was seen before this agent was started", true
		}
	case PanickedElsewhere:
		if g.panicked == "" && g.boot == 0 && !g.answers {
			g.panicked, g.hearsay = "its kernel has panicked, as the node has seen from which it came", true
		}
	case Reset:
		g.panicked, g.answers, g.misses = "", false, 0
		g.run++
		g.boot++
	case Stopped:
		g.setRunning(false)
	case Resumed:
		g.setRunning(true)
	case IOError, WatchdogFired: // the storage's sickness, and what the guest's own watchdog has dealt with
	}
}

func (g *Guest) setRunning(running bool) {
	if g.running != running {
		g.running, g.misses = running, 0
		g.run++
	}
}

// Hold says why the guest's silence does not count at the moment: "frozen", "migrating", "shutting down". "" ends it.
func (g *Guest) Hold(why string) {
	if g.held != why {
		g.held, g.misses = why, 0
		g.run++
	}
}

// Ask begins a question to the guest agent. ok is false if it makes no sense now: the guest does not run.
func (g *Guest) Ask() (q Question, ok bool) {
	return Question{g.run, g.boot}, g.running && g.held == ""
}

// Answered ends a question: "" if the agent answered, or how it did not. Silence is void if the guest was stopped or held
// meanwhile; an answer is one all the same, unless the guest was reset.
func (g *Guest) Answered(q Question, miss string) {
	switch {
	case q.boot != g.boot:
	case miss == "":
		g.answers, g.misses = true, 0
		if g.hearsay {
			g.panicked, g.hearsay = "", false // what has panicked answers nobody
		}
	case q.run == g.run:
		g.misses, g.missed = g.misses+1, miss
	}
}

// Condition is what is thought now.
func (g *Guest) Condition() Condition {
	c := Condition{Answers: g.answers}
	switch {
	case g.panicked != "":
		c.Sick, c.Reason = SickPanicked, g.panicked
	case g.answers && g.misses >= g.p.Misses:
		c.Sick, c.Reason = SickSilent, fmt.Sprintf("its agent left %d questions in a row unanswered: %s", g.misses, g.missed)
	}
	return c
}
