package lease

import (
	"fmt"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// Observer is the taker's side: it notes when the renewals of all nodes arrived
// here. It is not safe for concurrent use.
type Observer struct {
	p     Params
	nodes map[string]observation
}

type observation struct {
	live     model.Live
	revision int64
	arrived  time.Duration
}

// Verdict says whether a node's guests may be taken over now.
type Verdict struct {
	// May: the guests may be taken over, after the cut (a transaction that compares
	// the record with Revision and writes Cut(Live, …)), or right away if Live.Fenced is already set.
	May bool
	// Wait is how long the silence must last yet, if May is false for that reason alone.
	Wait time.Duration
	// Reason is a sentence part for a person: "silent for 4.2s of 10.52s".
	Reason   string
	Live     model.Live
	Revision int64
}

// NewObserver knows no node yet.
func NewObserver(p Params) *Observer { return &Observer{p: p, nodes: map[string]observation{}} }

// Note takes in a node's record that arrived at now. The first sight of a node counts as an
// arrival, whenever the record was written; the same revision seen again does not.
func (o *Observer) Note(node string, live model.Live, revision int64, now time.Duration) {
	if old, ok := o.nodes[node]; ok && revision <= old.revision {
		return
	}
	o.nodes[node] = observation{live: live, revision: revision, arrived: now}
}

// Forget removes a node whose record was deleted.
func (o *Observer) Forget(node string) { delete(o.nodes, node) }

// Live returns a node's record as last noted.
func (o *Observer) Live(node string) (live model.Live, revision int64, ok bool) {
	n, ok := o.nodes[node]
	return n.live, n.revision, ok
}

// Silence is the time since the node's last renewal arrived here; ok is false for a node never seen.
func (o *Observer) Silence(node string, now time.Duration) (silence time.Duration, ok bool) {
	n, ok := o.nodes[node]
	if !ok {
		return 0, false
	}
	return now - n.arrived, true
}

// Suspect says whether the node has missed three renewals, or is unknown.
func (o *Observer) Suspect(node string, now time.Duration) bool {
	silence, ok := o.Silence(node, now)
	return !ok || silence >= o.p.SuspectAfter()
}

// Online says whether the node is a living member as far as this node heard: neither suspect, fenced nor left.
func (o *Observer) Online(node string, now time.Duration) bool {
	n, ok := o.nodes[node]
	return ok && !n.live.Fenced && !n.live.Left && !o.Suspect(node, now)
}

// MayTake says whether the node's guests may be taken over on its lease alone.
// A verdict for it is only as good as the cut that follows: a renewal that wins the race makes the cut fail.
func (o *Observer) MayTake(node string, now time.Duration) Verdict {
	n, ok := o.nodes[node]
	if !ok {
		return Verdict{Reason: "it has no liveness record that this node has seen"}
	}
	v := Verdict{Live: n.live, Revision: n.revision}
	silence, need := now-n.arrived, o.p.TakeAfter()
	switch {
	case n.live.Fenced:
		v.May, v.Reason = true, fmt.Sprintf("fenced by %s with epoch %d", n.live.By, n.live.Epoch)
	case n.live.Left:
		v.May, v.Reason = true, "it left in good order, with no guest running"
	case silence < need:
		v.Wait = need - silence
		v.Reason = fmt.Sprintf("silent for %v of %v", round(silence), round(need))
	default:
		v.May, v.Reason = true, fmt.Sprintf("silent for %v, longer than its lease can last (%v)", round(silence), round(need))
	}
	return v
}

// Cut is the record that fences a node: its epoch raised, by whom. It is to be
// written in a transaction that compares the revision of live.
func Cut(live model.Live, by string) model.Live {
	live.Epoch++
	live.Fenced, live.By, live.Left = true, by, false
	return live
}

func round(d time.Duration) time.Duration { return d.Round(10 * time.Millisecond) }
