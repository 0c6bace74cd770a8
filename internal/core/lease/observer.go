package lease

import (
	"fmt"
	"math"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// Observer is the taker's side: it notes when the renewals of all nodes arrived
// here. It is not safe for concurrent use.
type Observer struct {
	p     Params
	self  string
	nodes map[string]observation
	// back is when this node's own renewals arrived again after they had not for a while.
	back time.Duration
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
	// Present is Observer.Present, and Silent how long nothing came of the node while this one was present: to judge others by.
	Present, Silent time.Duration
}

// NewObserver knows no node yet. self is the node that observes.
func NewObserver(p Params, self string) *Observer {
	return &Observer{p: p, self: self, nodes: map[string]observation{}, back: math.MinInt64}
}

// Note takes in a node's record that arrived at now. The first sight of a node counts as an
// arrival, whenever the record was written; the same revision seen again does not.
func (o *Observer) Note(node string, live model.Live, revision int64, now time.Duration) {
	old, ok := o.nodes[node]
	if ok && revision <= old.revision {
		return
	}
	if ok && node == o.self && now-old.arrived >= o.p.AbsentAfter() {
		o.back = now
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

// Present is how long this node's own renewals have arrived without a gap of Params.AbsentAfter, 0 while they do not, and
// the longest duration if there was no such gap. For no
// longer than that can its hearing nothing of another node tell of that node.
func (o *Observer) Present(now time.Duration) time.Duration {
	if own, ok := o.nodes[o.self]; ok && now-own.arrived >= o.p.AbsentAfter() {
		return 0
	}
	if o.back == math.MinInt64 {
		return math.MaxInt64
	}
	return now - o.back
}

// Online says whether the node is a living member as far as this node heard: neither suspect, fenced nor left.
func (o *Observer) Online(node string, now time.Duration) bool {
	n, ok := o.nodes[node]
	return ok && !n.live.Fenced && !n.live.Left && !o.Suspect(node, now)
}

// absent says why this node cannot judge the others' silence: its own renewals do not arrive either, or do so again for less
// than Params.AbsentAfter; then wait is what is left of that. Where a whole cluster was without its network all nodes are
// silent, and the first to be back would cut off the others, who are back a moment later.
func (o *Observer) absent(now time.Duration) (why string, wait time.Duration) {
	grace := o.p.AbsentAfter()
	switch own, ok := o.nodes[o.self]; {
	case !ok:
		return "", 0
	case now-own.arrived >= grace:
		return fmt.Sprintf("this node has renewed nothing itself for %v", round(now-own.arrived)), 0
	case o.back != math.MinInt64 && now-o.back < grace:
		return fmt.Sprintf("this node is back for %v of %v itself", round(now-o.back), round(grace)), grace - (now - o.back)
	}
	return "", 0
}

// MayTake says whether the node's guests may be taken over on its lease alone.
// A verdict for it is only as good as the cut that follows: a renewal that wins the race makes the cut fail.
func (o *Observer) MayTake(node string, now time.Duration) Verdict {
	n, ok := o.nodes[node]
	if !ok {
		return Verdict{Reason: "it has no liveness record that this node has seen"}
	}
	v := Verdict{Live: n.live, Revision: n.revision, Present: o.Present(now)}
	v.Silent = min(now-n.arrived, v.Present)
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
		if why, wait := o.absent(now); why != "" {
			v.Wait, v.Reason = wait, fmt.Sprintf("silent for %v, but %s", round(silence), why)
			return v
		}
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
