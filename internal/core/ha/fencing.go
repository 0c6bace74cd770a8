package ha

import (
	"fmt"
	"time"
)

// coversRBD is model.Live.Covers of a cut made on a blocklist alone.
const coversRBD = "rbd"

// inquest is what the manager knows of a node's death beyond its lease.
type inquest struct {
	revision    int64         // of the live record that it is about
	renewed     bool          // lastRenewal is known
	lastRenewal time.Duration // when the last renewal arrived here
	heard       time.Duration // when the last sign of life came; it voids what is older
	methods     map[string]*testimony
}

// testimony is what one method said.
type testimony struct {
	asked   time.Duration // when the last question went out
	next    time.Duration // not asked again before
	off     bool          // it said off at
	offAt   time.Duration // and was asked at
	offFrom time.Duration
	shotAt  time.Duration // when it was last told to shoot
	shot    bool          // and it did
	proved  bool          // it is a proof, since
	since   time.Duration // then
}

func (q *inquest) of(method string) *testimony {
	t := q.methods[method]
	if t == nil {
		t = &testimony{}
		q.methods[method] = t
	}
	return t
}

// proven is a proof that holds; no method, no proof.
type proven struct {
	method    string
	blocklist bool
}

func (p proven) sentence(node string) string {
	if p.blocklist {
		return p.method + " keeps " + node + " from the storage"
	}
	return p.method + " says that " + node + " has no power"
}

// examine notes the signs of life in a view and forgets what they void.
func (s *State) examine(now time.Duration) {
	for name := range s.inquests {
		s.inquests[name].heard = -1
	}
	for _, m := range s.view.Members {
		if m.Name == s.self || len(m.Fencing) == 0 && len(m.Proofs) == 0 {
			continue
		}
		q := s.inquests[m.Name]
		if q == nil {
			q = &inquest{methods: make(map[string]*testimony)}
			s.inquests[m.Name] = q
		}
		q.heard = now - m.Heard
		if q.revision != m.LiveRevision && !m.Live.Fenced {
			q.methods = make(map[string]*testimony)
		}
		if !m.Live.Fenced {
			q.renewed, q.lastRenewal = true, now-m.Silence
		}
		q.revision = m.LiveRevision
		for _, t := range q.methods {
			t.void(q.heard)
		}
	}
	for name, q := range s.inquests {
		if q.heard == -1 {
			delete(s.inquests, name)
		}
	}
}

// void forgets what a sign of life at heard contradicts.
func (t *testimony) void(heard time.Duration) {
	if t.off && heard > t.offFrom {
		t.off = false
	}
	if t.proved && heard > t.since {
		t.proved = false
	}
	if t.shot && heard > t.shotAt {
		t.shot = false
	}
}

// answered takes an answer in: two of them, apart, are a proof. next is when to ask again.
func (s *State) answered(now time.Duration, ev FenceResult) (next time.Duration, proved bool) {
	q := s.inquests[ev.Action.Node]
	if q == nil {
		return 0, false
	}
	t := q.of(ev.Action.Method)
	t.next = now + s.p.AskEvery
	switch {
	case !ev.Off || q.heard > t.asked:
		t.off = false
	case !t.off:
		t.off, t.offAt, t.offFrom = true, now, t.asked
		t.next = now + max(s.p.AskEvery, s.p.Confirm)
	case t.asked-t.offAt >= s.p.Confirm && !t.proved:
		t.proved, t.since = true, t.offFrom
	}
	return t.next, t.proved
}

// unanswered: the method gave no answer, which is none.
func (s *State) unanswered(a AskFence) {
	if q := s.inquests[a.Node]; q != nil {
		q.of(a.Method).off = false
	}
}

// shot takes in that a shot was carried out. A sign of life since it was given out voids what comes of it: the node is back, and a
// blocklist entry that was confirmed meanwhile says nothing about its death.
func (s *State) shot(a Shoot) {
	q := s.inquests[a.Node]
	if q == nil {
		return
	}
	t, known := q.methods[a.Method]
	if !known || q.heard > t.shotAt {
		return
	}
	t.shot = true
	if a.Blocklist {
		t.proved, t.since = true, t.shotAt
	}
}

// proof is the best that holds for n now: one about the power before a blocklist.
func (d *decision) proof(n *node) (best proven) {
	q := d.inquests[n.Name]
	if q == nil {
		return proven{}
	}
	consider := func(p proven) {
		if p.blocklist && !d.coversKnown() {
			return
		}
		if best.method == "" || best.blocklist && !p.blocklist {
			best = p
		}
	}
	for _, p := range n.Proofs {
		if n.Heard >= p.Age && n.Heard > 0 {
			consider(proven{p.Method, p.Blocklist})
		}
	}
	for _, m := range n.Fencing {
		if t := q.methods[m.Name]; t != nil && t.proved && m.Rehearsed {
			consider(proven{m.Name, m.Blocklist})
		}
	}
	return best
}

// coversKnown: no member's agent would take a cut that is about some guests for one about all, if it became the manager.
func (d *decision) coversKnown() bool {
	for _, m := range d.view.Members {
		if m.LiveRevision != 0 && m.Level < Level {
			return false
		}
	}
	return true
}

// inquire asks about the nodes that are silent, and shoots those that keep guests from coming back.
func (d *decision) inquire(p plan) {
	for _, name := range d.names {
		n := d.nodes[name]
		q := d.inquests[name]
		if q == nil || n.disarm != Armed || n.frozen != "" || n.Live.Left || n.LiveRevision == 0 || p.held[name] == 0 {
			continue
		}
		if n.heard < d.p.Ask {
			if n.Heard > 0 && n.silence > 0 {
				d.wakeIn(d.p.Ask - n.heard)
			}
			continue
		}
		if n.powerOff || n.MayTake && !p.unguarded[name] && n.Live.Covers == "" {
			continue
		}
		d.interrogate(n, q, p.lost[name])
	}
}

func (d *decision) interrogate(n *node, q *inquest, lost []placed) {
	silent := fmt.Sprintf("it has not been heard of for %s", n.heard.Round(100*time.Millisecond))
	for _, m := range n.Fencing {
		if !m.Rehearsed {
			continue
		}
		t := q.of(m.Name)
		if d.shootable(n, m, t, lost) {
			if d.give(Shoot{n.Name, m.Name, m.Blocklist, silent + ", and its guests are waiting"}) {
				t.shotAt = d.now
			}
		}
		if m.Blocklist || t.proved {
			continue
		}
		if d.now < t.next {
			d.out.wake(t.next)
			continue
		}
		if d.give(AskFence{n.Name, m.Name, silent}) {
			t.asked = d.now
		}
	}
}

// give adds an action and reports whether it is given out now.
func (d *decision) give(a Action) bool {
	before := len(d.out.list)
	d.out.add(a)
	return len(d.out.list) > before
}

// shootable: only for guests that would come back by it, and only a node that is silent on all paths.
func (d *decision) shootable(n *node, m FenceMethod, t *testimony, lost []placed) bool {
	if t.shot || n.Live.Fenced || len(lost) == 0 {
		return false
	}
	if m.Blocklist {
		covered := false
		if !d.coversKnown() {
			return false
		}
		for _, g := range lost {
			covered = covered || g.guest.RBD
		}
		if !covered {
			return false
		}
	}
	if n.heard < d.p.FenceDelay {
		d.wakeIn(d.p.FenceDelay - n.heard)
		return false
	}
	return true
}
