package beacon

import (
	"fmt"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// Alarm says that a guest ran on two nodes at once. It stays until it is acknowledged.
type Alarm struct {
	ID   string     `json:"id"`
	VMID model.VMID `json:"vmid"`
	// Runs are the two, by the name of their nodes.
	Runs [2]Run `json:"runs"`
	// Overlap is the time that both ran, at least.
	Overlap time.Duration `json:"overlap"`
	// Raised is when the alarm was first raised, Last the latest instant at which both are known to have run, both on the clock of
	// the node that raises it.
	Raised time.Duration `json:"raised"`
	Last   time.Duration `json:"last"`
	// Evidence is all of it as a sentence, as of Last.
	Evidence string `json:"evidence"`
	// Found: the first of Runs was come upon and ended, and of the second nothing is known but that the guest is that node's. Overlap is 0.
	Found bool `json:"found,omitempty"`
}

// Run is one of the two runs of an Alarm.
type Run struct {
	Node     string `json:"node"`
	Boot     string `json:"boot"`
	Epoch    uint64 `json:"epoch"`
	Revision int64  `json:"revision"`
	// Since is the latest instant at which it can have begun, Until the earliest of the last look that found it running, both on
	// the clock of the node that raises the alarm. Clock is by how much they may be off. Since is no older than a minute.
	Since time.Duration `json:"since"`
	Until time.Duration `json:"until"`
	Clock time.Duration `json:"clock"`
	Ended bool          `json:"ended"`
}

// pair names the two nodes of an alarm, a before b.
type pair struct {
	vmid model.VMID
	a, b string
}

func pairOf(id model.VMID, a, b string) pair { return pair{vmid: id, a: min(a, b), b: max(a, b)} }

func (a *Alarm) pair() pair { return pairOf(a.VMID, a.Runs[0].Node, a.Runs[1].Node) }

// String says what happened and what to do.
func (a *Alarm) String() string {
	if a.Found {
		return fmt.Sprintf("guest %d ran on %s although it is %s's, so it may have run on both at the same time: check its disks, then acknowledge alarm %s (%s)",
			a.VMID, a.Runs[0].Node, a.Runs[1].Node, a.ID, a.Evidence)
	}
	return fmt.Sprintf("guest %d ran on %s and %s at the same time: stop it on one of them at once, check its disks, then acknowledge alarm %s (%s)",
		a.VMID, a.Runs[0].Node, a.Runs[1].Node, a.ID, a.Evidence)
}

func (a *Alarm) describe(now time.Duration) {
	a.Evidence = fmt.Sprintf("%s; %s; both for at least %v, last %v ago",
		a.Runs[0].describe(now), a.Runs[1].describe(now), round(a.Overlap), round(now-a.Last))
}

func (r Run) describe(now time.Duration) string {
	s := fmt.Sprintf("%s: epoch %d, revision %d, running from %v to %v ago", r.Node, r.Epoch, r.Revision, round(now-r.Since), round(now-r.Until))
	if r.Clock > 0 {
		s += fmt.Sprintf(" (clock ±%v)", round(r.Clock))
	}
	if r.Ended {
		s += ", then not any more"
	}
	return s
}

func round(d time.Duration) time.Duration { return d.Round(time.Millisecond) }
