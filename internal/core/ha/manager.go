package ha

import (
	"fmt"
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/place"
)

// State is the manager's state machine of one agent; most of the time it only watches another node's manager. It
// remembers nothing that matters: a manager that takes over decides from its first view on. The zero value is not
// usable, see [New].
type State struct {
	self     string
	p        Params
	view     View
	seen     time.Duration // when view came
	ready    bool          // a view came at all
	ledger   ledger
	next     time.Duration // the last wake, 0 for none
	manages  bool          // it is the active one,
	since    time.Duration // since then
	inquests map[string]*inquest
	waits    map[model.VMID]wait
	sent     map[model.VMID]sending
	balancer place.Balancer
	losses   map[loss]lost
}

// sending is how often a guest was to leave a node by this manager's word, and when the last time.
type sending struct {
	node  string
	times int
	at    time.Duration
}

// wait is since when this manager knows a record after which it waits.
type wait struct {
	revision int64
	since    time.Duration
}

// New makes the manager of the node self.
func New(self string, p Params) State {
	return State{
		self: self, p: p, ledger: newLedger(), inquests: make(map[string]*inquest),
		waits: make(map[model.VMID]wait), sent: make(map[model.VMID]sending),
	}
}

// Active reports whether this node's manager is the one that decides, by the last view.
func (s State) Active() bool {
	return s.ready && s.view.ManagerRevision != 0 && s.view.Manager.Node == s.self
}

// Step feeds an event at now, on the clock of all other calls, and returns what is to be done. It consumes s: only the state returned
// may be used again. The maps of a View must not change after it was fed.
func (s State) Step(now time.Duration, ev Event) (State, []Action) {
	switch ev := ev.(type) {
	case View:
		s.view, s.seen, s.ready = ev, now, true
		s.ledger.caughtUp(ev.Revision)
		s.examine(now)
	case ActionDone:
		s.ledger.done(ev)
		switch a := ev.Action.(type) {
		case TakeManager:
			if ev.Revision > s.view.Revision {
				s.view.Manager, s.view.ManagerRevision = a.Manager, ev.Revision
			}
			return s, s.lookNow(now)
		case Shoot:
			s.shot(a)
		}
		return s, s.wakeAgain(0) // what it has changed comes with a view
	case FenceResult:
		s.ledger.done(ActionDone{Action: ev.Action})
		next, proved := s.answered(now, ev)
		if proved {
			return s, s.lookNow(now)
		}
		return s, s.wakeAgain(next)
	case ActionFailed:
		retry := now + s.retry(ev.Action)
		s.ledger.failed(ev.Action, retry)
		s.fenceFailed(now, ev)
		return s, s.wakeAgain(retry)
	}
	actions := s.decide(now)
	s.next = 0
	if n := len(actions); n > 0 {
		if w, ok := actions[n-1].(Wake); ok {
			s.next = w.At
		}
	}
	return s, actions
}

// retry is the wait after a failed action.
func (s *State) retry(a Action) time.Duration {
	if _, ok := a.(Shoot); ok {
		return 4 * s.p.Retry // a BMC is slow
	}
	return s.p.Retry
}

// lookNow asks for a view at once. Nothing is decided on the one before: it tells how silent the nodes were when it was made, and an agent
// that stood still since then would take all of them for dead.
func (s *State) lookNow(now time.Duration) []Action {
	s.next = max(now, 1)
	return s.wakeAgain(0)
}

// wakeAgain repeats the last wake, or asks for an earlier one.
func (s *State) wakeAgain(at time.Duration) []Action {
	if at > 0 && (s.next == 0 || at < s.next) {
		s.next = at
	}
	if s.next == 0 || !s.ready {
		return nil
	}
	return []Action{Wake{s.next}}
}

// decide looks at everything anew and returns what is not under way already.
func (s *State) decide(now time.Duration) []Action {
	if !s.ready {
		return nil
	}
	if !s.view.Quorate || !s.view.LeaseValid {
		return []Action{Wake{now + s.p.Unable}}
	}
	d := decision{State: s, now: now, out: outbox{ledger: s.ledger, now: now}}
	d.survey()
	if !d.selfUsable() {
		return []Action{Wake{now + s.p.Unable}}
	}
	active := s.Active()
	if active && !s.manages {
		s.since = now
	}
	s.manages = active
	if active {
		d.manage()
	} else {
		d.watchManager()
	}
	return d.out.actions()
}

// decision is one look at the view.
type decision struct {
	*State
	now   time.Duration
	out   outbox
	nodes map[string]*node
	names []string // of nodes, in the view's order
	// moves counts the guests that move to or from each node, flying names those that did when this look began, shown counts the records
	// that are written for show.
	moves  map[string]int
	flying map[string]bool
	shown  int
	place  *placing // nil until it is needed
}

// selfUsable: a node that is fenced or leaving has other worries than to manage.
func (d *decision) selfUsable() bool {
	n := d.nodes[d.self]
	return n != nil && n.LiveRevision != 0 && !n.Live.Fenced && !n.Live.Left
}

// watchManager takes the manager's key if whoever holds it is gone.
func (d *decision) watchManager() {
	why, at := d.managerGone()
	if why == "" {
		d.out.wake(at)
		return
	}
	d.out.add(TakeManager{
		IfRevision: d.view.ManagerRevision,
		Manager:    model.Manager{Node: d.self, Term: d.view.Manager.Term + 1},
		Reason:     why,
	})
}

// managerGone says why the manager must be replaced, or when to look again.
func (d *decision) managerGone() (why string, at time.Duration) {
	name := d.view.Manager.Node
	m := d.nodes[name]
	switch {
	case d.view.ManagerRevision == 0:
		return "there is none", 0
	case m == nil || m.LiveRevision == 0:
		return name + ", the last one, is no member of the cluster", 0
	case m.Live.Fenced:
		return name + ", the last one, is fenced", 0
	case m.Live.Left:
		return name + ", the last one, has left", 0
	case m.silence >= d.p.Suspect:
		return fmt.Sprintf("%s, the last one, has been silent for %s", name, m.silence.Round(100*time.Millisecond)), 0
	default:
		return "", d.now + d.p.Suspect - m.silence
	}
}

// manage decides about everything that is wrong in the view.
func (d *decision) manage() {
	d.awaitArming()
	d.clearIntents()
	d.countMoves()
	plan := d.plan()
	d.inquire(plan)
	for _, name := range d.names {
		if n := d.nodes[name]; n.take && !n.Live.Fenced {
			d.cut(n, plan.lost[name], plan.holds[name])
		}
	}
	for _, g := range plan.fenced {
		d.move(g)
	}
	for _, g := range plan.stuck {
		d.recovery(g)
	}
	d.services()
	d.noteSilences()
}

// awaitArming asks to be called when what was disarmed for a time is armed again: nothing else tells of it.
func (d *decision) awaitArming() {
	d.awaitEnd(d.view.Mode.Disarm, d.view.Mode.Until)
	for _, n := range d.nodes {
		d.awaitEnd(n.Request.Disarm, n.Request.Until)
	}
}

func (d *decision) awaitEnd(how Disarm, until int64) {
	if left := endsIn(how, until, d.view.Unix); left > 0 {
		d.wakeIn(left)
	}
}

// set writes what becomes of a guest's service, unless the record says so already. A command of that revision is consumed.
func (d *decision) set(g Guest, st Status, command int64) {
	old := d.view.Statuses[g.VMID]
	if old.Says(st) && command == 0 {
		return
	}
	d.out.add(SetStatus{
		VMID: g.VMID, Kind: g.Kind, IfRevision: old.Revision, Command: command, Status: st.after(old.Status, d.self, d.view.Unix),
	})
}

// undecided: a change of the guest's record is under way, or made and not in the view.
func (d *decision) undecided(g Guest) bool {
	return d.ledger.pending(SetStatus{VMID: g.VMID, Kind: g.Kind}.Key()) != nil
}

// wakeIn asks to be called after wait.
func (d *decision) wakeIn(wait time.Duration) { d.out.wake(d.now + wait) }
