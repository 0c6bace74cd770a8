package ha

import (
	"slices"
	"strings"
	"time"

	"sauh.dev/sauh/internal/core/place"
)

// loss is a storage that a node says it has lost.
type loss struct{ node, storage string }

// lost is when this manager saw a loss for the first time, and, if it is over, when it saw that.
type lost struct {
	since, ended time.Duration
	over         bool
}

// noteLosses notes since when each loss has been on record. One that is over is remembered for FleeAfter.
func (s *State) noteLosses(now time.Duration) {
	said := make(map[loss]lost)
	for l, was := range s.losses {
		if !was.over {
			was.over, was.ended = true, now
		}
		if now < was.ended+s.p.FleeAfter {
			said[l] = was
		}
	}
	for _, m := range s.view.Members {
		for _, storage := range m.Health.Lost {
			l := loss{m.Name, storage}
			was, known := s.losses[l]
			if !known || was.over {
				was = lost{since: now}
			}
			said[l] = was
		}
	}
	s.losses = said
}

// settled is when a loss, of which nothing was told since, will be known to be the node's alone: those who share the fault have told it by then, and so have
// those for whom it is over.
func (d *decision) settled(n *node, storage string) time.Duration {
	at := d.losses[loss{n.Name, storage}].since
	for l, was := range d.losses {
		if l.storage == storage && was.over {
			at = max(at, was.ended)
		}
	}
	return at + d.p.FleeAfter
}

// lostOf are the storages of a guest that the node has lost.
func (n *node) lostOf(g *Guest) []string {
	var out []string
	for _, s := range n.Health.Lost {
		if slices.Contains(g.Storages, s) {
			out = append(out, s)
		}
	}
	return out
}

// doubts is why the guest must not come here, if the node does not know whether it has a storage of the guest; else "".
func (n *node) doubts(g *Guest) string {
	for _, s := range n.Health.Doubt {
		if slices.Contains(g.Storages, s) {
			return n.Name + " does not know whether it has the storage " + s
		}
	}
	return ""
}

// hasLost is the sentence about it.
func (n *node) hasLost(g *Guest) string {
	return n.Name + " has lost the storage " + strings.Join(n.lostOf(g), ", ")
}

// flee relocates a guest whose disks cannot be reached here to a node that is known to have them: one that has not lost them, although it has had
// the time to say so, and for which none has just ended, because then it ends here at any moment. Without one the guest stays as it is: files that it has open may still be written to, or will be
// when the storage is back, and a guest that is stopped and passed around is certainly down.
func (d *decision) flee(n *node, g *Guest, st StatusRecord) {
	if g.Local != "" || g.Lock != "" || d.patience(g, st) || d.full(n.Name) {
		return
	}
	var known time.Duration
	for _, s := range n.lostOf(g) {
		known = max(known, d.settled(n, s))
	}
	if d.now < known {
		d.out.wake(known)
		return
	}
	how := place.Request{Prefer: place.Best}
	to, verdicts := d.placing().find(*g, how)
	if to == "" || to == g.Node {
		d.stays(n, g, st, verdicts)
		return
	}
	if d.nodes[to].doubts(g) != "" || d.full(to) {
		return // it says more in a moment
	}
	d.placing().planner.Place(d.placing().request(*g, how), to)
	next := st.Status
	next.State, next.Node, next.Target, next.Reason = StatusRelocate, g.Node, to, n.hasLost(g)
	d.set(*g, next, 0)
	d.moves[n.Name]++
	d.moves[to]++
}

// stays says of a guest that runs why it does not leave. What keeps another from starting its worker says, and why the last move failed is not
// written over.
func (d *decision) stays(n *node, g *Guest, st StatusRecord, verdicts []place.Verdict) {
	if st.State != StatusStarted || st.Node != g.Node || st.MoveFailures > 0 {
		return
	}
	why := n.hasLost(g) + ", and " + place.Explain(verdicts)
	if !d.haven(g) {
		why = "every node that may run it has lost the storage " + strings.Join(n.lostOf(g), ", ")
	}
	d.rewrite(g, st, StatusStarted, why)
}

// haven: a node that is there has the guest's storages and has lost none of them.
func (d *decision) haven(g *Guest) bool {
	for _, n := range d.nodes {
		has := func(s string) bool { return slices.Contains(n.Storages, s) }
		if n.online(d.p) && n.shun == "" && len(n.lostOf(g)) == 0 && n.doubts(g) == "" && !slices.ContainsFunc(g.Storages, func(s string) bool { return !has(s) }) {
			return true
		}
	}
	return false
}

// keepsReason: the guest runs on although its node has lost a storage of it. What the manager says to that stays.
func (w *Worker) keepsReason(g Guest, st Status, old StatusRecord) bool {
	return st.State == StatusStarted && old.State == StatusStarted && old.Node == w.self && w.lostDisks(g)
}

// withoutDisks: a start failed, at whatever, on a node that has lost a storage of the guest, or because one is away, for less than AwayPatience. That is the
// node's failure and not the guest's. A node that finds the storage away for longer and does not say that it is lost is mistaken in one of the two: then
// the failure counts, so that another node is tried.
func (w *Worker) withoutDisks(now time.Duration, ev ActionFailed, aways int, t *tries) bool {
	start, ok := ev.Action.(Start)
	if !ok {
		return false
	}
	if slices.ContainsFunc(w.view.Guests, func(g Guest) bool { return g.VMID == start.VMID && w.lostDisks(g) }) {
		t.awaySince = now
		return true
	}
	if ev.Kind != FailAway {
		return false
	}
	if aways == 0 {
		t.awaySince = now
	}
	return now-t.awaySince < w.p.AwayPatience
}

// awayWait is the wait after one more start that failed for want of a storage: none after the first, then doubling.
func (w *Worker) awayWait(before int) time.Duration {
	if before == 0 {
		return 0
	}
	return backoff(w.p.BackoffFirst, w.p.BackoffMax, before)
}

// lostDisks: this node has lost a storage of the guest.
func (w *Worker) lostDisks(g Guest) bool {
	return slices.ContainsFunc(g.Storages, func(s string) bool { return slices.Contains(w.view.Health.Lost, s) })
}
