package ha

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

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
	refused int           // how often in a row it gave no answer,
	refusal string        // all for this reason
	off     bool          // it said off at
	offAt   time.Duration // and was asked at
	offFrom time.Duration
	shotAt  time.Duration // when it was last told to shoot
	shot    bool          // and it did
	missed  bool          // or it failed
	proved  bool          // it is a proof, since
	since   time.Duration // then,
	guests  []model.VMID  // of a blocklist: about these
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
	s.noteLosses(now)
	for name := range s.inquests {
		s.inquests[name].heard = -1
	}
	for _, m := range s.view.Members {
		if m.Name == s.self || len(m.Fencing) == 0 {
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
	if heard > t.asked && t.refused > 0 {
		t.refused, t.next = 0, 0 // another silence
	}
	if heard > t.shotAt {
		t.shot, t.missed = false, false
	}
}

// answered takes an answer in. next is when to ask again. proved: it is a proof, unless a sign of life that no view has shown yet voids it.
func (s *State) answered(now time.Duration, ev FenceResult) (next time.Duration, proved bool) {
	switch a := ev.Action.(type) {
	case AskFence:
		if q := s.inquests[a.Node]; q != nil {
			return s.asked(now, q, q.of(a.Method), ev)
		}
	case Shoot:
		if t := s.shot(a); t != nil && a.Blocklist && len(ev.Guests) > 0 {
			t.proved, t.since, t.guests = true, t.shotAt, ev.Guests
			return 0, true
		}
	}
	return 0, false
}

// asked takes in what a method said of the power: off that lasted is a proof.
func (s *State) asked(now time.Duration, q *inquest, t *testimony, ev FenceResult) (next time.Duration, proved bool) {
	t.next, t.refused = now+s.p.AskEvery, 0
	switch {
	case !ev.Off || q.heard > t.asked:
		t.off = false
	case ev.Lasted >= s.p.Confirm, t.off && t.asked-t.offAt >= s.p.Confirm:
		if !t.off {
			t.off, t.offAt, t.offFrom = true, now, t.asked
		}
		t.proved, t.since = true, t.offFrom
	case !t.off:
		t.off, t.offAt, t.offFrom = true, now, t.asked
		t.next = now + max(s.p.AskEvery, s.p.Confirm)
	}
	return t.next, t.proved
}

// fenceFailed: the method gave no answer, which is none, or did not shoot. A shot that was not fired says nothing of its method.
func (s *State) fenceFailed(now time.Duration, ev ActionFailed) {
	switch a := ev.Action.(type) {
	case AskFence:
		if q := s.inquests[a.Node]; q != nil {
			q.of(a.Method).refuse(now, ev.Reason, s.p)
		}
	case Shoot:
		if q := s.inquests[a.Node]; q != nil && ev.Kind == FailOther {
			q.of(a.Method).missed = true
		}
	}
}

// refuse takes in that the method gave no answer. The second question comes at once, because the first may just have been early; from then on,
// as long as it fails alike, a question is a nuisance to the device and to the log, and comes ever later.
func (t *testimony) refuse(now time.Duration, reason string, p Params) {
	t.off = false
	if reason = RefusalKind(reason); reason != t.refusal {
		t.refused, t.refusal = 0, reason
	}
	t.refused++
	if t.refused < 2 {
		return
	}
	wait := p.RefusedFirst
	for range t.refused - 2 {
		if wait *= 2; wait >= p.RefusedMax {
			wait = p.RefusedMax
			break
		}
	}
	t.next = now + wait
}

// RefusalKind is what two errors of a kind have in common, which name ports and times.
func RefusalKind(s string) string {
	return strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' {
			return -1
		}
		return r
	}, s)
}

// shot takes in that a shot was carried out, and returns the method's testimony. A sign of life since it was given out voids what comes of it: the
// node is back, and a blocklist entry that was confirmed meanwhile says nothing about its death; then nil.
func (s *State) shot(a Shoot) *testimony {
	q := s.inquests[a.Node]
	if q == nil {
		return nil
	}
	t, known := q.methods[a.Method]
	if !known || q.heard > t.shotAt {
		return nil
	}
	t.shot, t.missed = true, false
	if t.refused > 0 {
		t.refused, t.next = 0, 0 // it does answer
	}
	return t
}

// proof is the best that holds for n now: one about the power before a blocklist. refused are the guests of the latter.
func (d *decision) proof(n *node) (best proven, refused []model.VMID) {
	q := d.inquests[n.Name]
	if q == nil {
		return proven{}, nil
	}
	for _, m := range n.Fencing {
		t := q.methods[m.Name]
		if t == nil || !t.proved || !m.Rehearsed || m.Blocklist && !d.coversKnown() {
			continue
		}
		if best.method == "" || best.blocklist && !m.Blocklist {
			best = proven{m.Name, m.Blocklist}
		}
		if m.Blocklist {
			refused = append(refused, t.guests...)
		}
	}
	return best, refused
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
	if n.heard < d.p.FenceDelay {
		d.wakeIn(d.p.FenceDelay - n.heard) // whatever comes of the questions, and however seldom they are
	}
	silent := fmt.Sprintf("it has not been heard of for %s", n.heard.Round(100*time.Millisecond))
	for _, m := range n.Fencing {
		if !m.Rehearsed {
			continue
		}
		t := q.of(m.Name)
		if d.shootable(n, m, t, lost) && d.inTurn(n, q, m, lost) {
			if d.give(Shoot{n.Name, m.Name, m.Blocklist, n.LiveRevision, silent + ", and its guests are waiting"}) {
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

// shootable: only for guests that would come back by it, and only a node that is silent on all paths, of which one tells silence from an agent
// that stood still.
func (d *decision) shootable(n *node, m FenceMethod, t *testimony, lost []placed) bool {
	if t.shot || !n.Beacons || n.Live.Fenced && n.Live.Covers == "" || len(lost) == 0 || !m.helps(lost) {
		return false
	}
	if m.Blocklist && !d.coversKnown() {
		return false
	}
	if n.heard < d.p.FenceDelay {
		d.wakeIn(d.p.FenceDelay - n.heard)
		return false
	}
	return true
}

// helps: a shot by the method would bring one of the guests back.
func (m FenceMethod) helps(lost []placed) bool {
	return !m.Blocklist || slices.ContainsFunc(lost, func(g placed) bool { return g.guest.RBD })
}

// inTurn: no method of a lower order is still to be tried, or has done all that is needed. One that cannot be used, or is of no use for these
// guests, keeps nobody waiting.
func (d *decision) inTurn(n *node, q *inquest, m FenceMethod, lost []placed) bool {
	for _, first := range n.Fencing {
		if first.Order >= m.Order || !first.Rehearsed || !first.helps(lost) {
			continue
		}
		t := q.of(first.Name)
		enough := !first.Blocklist || !t.proved || !slices.ContainsFunc(lost, func(g placed) bool { return !slices.Contains(t.guests, g.guest.VMID) })
		if !t.missed && enough {
			return false
		}
	}
	return true
}
