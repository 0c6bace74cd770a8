package ha

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/place"
	"sauh.dev/sauh/internal/core/pveconf"
)

// State is the manager's state machine of one agent; most of the time it only watches another node's manager. It
// remembers nothing that matters: a manager that takes over decides from its first view on. The zero value is not
// usable, see [New].
type State struct {
	self   string
	p      Params
	view   View
	seen   time.Duration // when view came
	ready  bool          // a view came at all
	ledger ledger
}

// New makes the manager of the node self.
func New(self string, p Params) State {
	return State{self: self, p: p, ledger: newLedger()}
}

// Active reports whether this node's manager is the one that decides, by the last view.
func (s State) Active() bool {
	return s.ready && s.view.ManagerRevision != 0 && s.view.Manager.Node == s.self
}

// Step feeds an event at now, on the clock of all other calls, and returns what is to be done. s itself stays as it is.
func (s State) Step(now time.Duration, ev Event) (State, []Action) {
	s.ledger = s.ledger.clone()
	switch ev := ev.(type) {
	case View:
		s.view, s.seen, s.ready = ev, now, true
		s.ledger.caughtUp(ev.Revision)
	case ActionDone:
		s.ledger.done(ev)
		if t, ok := ev.Action.(TakeManager); ok && ev.Revision > s.view.Revision {
			s.view.Manager, s.view.ManagerRevision = t.Manager, ev.Revision
		}
	case ActionFailed:
		s.ledger.failed(ev.Action, now+s.p.Retry)
	}
	return s, s.decide(now)
}

// decide looks at everything anew and returns what is not under way already.
func (s State) decide(now time.Duration) []Action {
	d := decision{State: s, now: now, out: outbox{ledger: s.ledger, now: now}}
	if !s.ready || !s.view.Quorate || !d.selfUsable() {
		return nil
	}
	if s.Active() {
		d.manage()
	} else {
		d.watchManager()
	}
	return d.out.actions()
}

// decision is one look at the view.
type decision struct {
	State
	now time.Duration
	out outbox
}

func (d *decision) member(name string) (Member, bool) {
	i := slices.IndexFunc(d.view.Members, func(m Member) bool { return m.Name == name })
	if i < 0 {
		return Member{}, false
	}
	return d.view.Members[i], true
}

// selfUsable: a node that is fenced or leaving has other worries than to manage.
func (d *decision) selfUsable() bool {
	m, ok := d.member(d.self)
	return ok && m.LiveRevision != 0 && !m.Live.Fenced && !m.Live.Left
}

// silence is how long m has been silent by now.
func (d *decision) silence(m Member) time.Duration {
	if m.Name == d.self {
		return 0
	}
	return m.Silence + d.now - d.seen
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
	m, member := d.member(name)
	switch silence := d.silence(m); {
	case d.view.ManagerRevision == 0:
		return "there is none", 0
	case !member || m.LiveRevision == 0:
		return name + ", the last one, is no member of the cluster", 0
	case m.Live.Fenced:
		return name + ", the last one, is fenced", 0
	case m.Live.Left:
		return name + ", the last one, has left", 0
	case silence >= d.p.Suspect:
		return fmt.Sprintf("%s, the last one, has been silent for %s", name, silence.Round(100*time.Millisecond)), 0
	default:
		return "", d.now + d.p.Suspect - silence
	}
}

// manage decides about everything that is wrong in the view.
func (d *decision) manage() {
	d.clearIntents()
	plan := d.plan()
	for _, m := range d.view.Members {
		if m.Name == d.self || m.LiveRevision == 0 || m.Live.Fenced {
			continue
		}
		if m.MayTake {
			d.cut(m, plan.lost[m.Name])
		}
	}
	for _, g := range plan.fenced {
		d.move(g)
	}
	for _, g := range plan.stuck {
		d.status(g.guest.VMID, Status{State: StatusRecovery, Node: g.guest.Node, Reason: g.reason})
	}
}

// clearIntents ends the migrations that lost their source or target: by a cut that holds, or by one that was
// made since the migration began. DESIGN.md says why deleting the intent decides.
func (d *decision) clearIntents() {
	for _, id := range slices.Sorted(maps.Keys(d.view.Intents)) {
		in := d.view.Intents[id]
		for _, end := range []struct {
			role, node string
			epoch      uint64
		}{{"source", in.Source, in.SourceEpoch}, {"target", in.Target, in.TargetEpoch}} {
			m, ok := d.member(end.node)
			if ok && m.LiveRevision != 0 && (m.Live.Fenced || m.Live.Epoch > end.epoch) {
				d.out.add(ClearIntent{id, in.Revision, fmt.Sprintf("its %s %s was fenced (epoch %d)", end.role, end.node, m.Live.Epoch)})
				break
			}
		}
	}
}

// placed is a guest of a lost node and where it would go.
type placed struct {
	guest  Guest
	to     string // "" with a reason
	reason string
}

// plan is where the guests of lost nodes go.
type plan struct {
	lost   map[string][]placed // by node that may be taken or soon may, not fenced: those that can move
	fenced []placed            // of fenced nodes: those that can move now
	stuck  []placed            // those that cannot, with the reason
}

// plan places all guests that a fenced or silent node holds, in one go, so that each counts for the next.
func (d *decision) plan() plan {
	p := plan{lost: make(map[string][]placed)}
	requests, guests := d.requests(&p)
	if len(requests) == 0 {
		return p
	}
	for _, pl := range place.Plan(requests, d.cluster()) {
		g := placed{guests[pl.Request.VMID], pl.Node, place.Explain(pl.Verdicts)}
		m, _ := d.member(g.guest.Node)
		switch {
		case m.Live.Fenced && g.to != "":
			p.fenced = append(p.fenced, g)
		case g.to != "":
			p.lost[m.Name] = append(p.lost[m.Name], g)
		case m.Live.Fenced || m.MayTake:
			p.stuck = append(p.stuck, g)
		}
	}
	return p
}

// requests are the guests of lost nodes that may be taken; those that may not are stuck.
func (d *decision) requests(p *plan) ([]place.Request, map[model.VMID]Guest) {
	var requests []place.Request
	guests := make(map[model.VMID]Guest)
	for _, g := range d.view.Guests {
		state := d.view.Resources[g.VMID]
		if g.Node == d.self || state != pveconf.HAStarted && state != pveconf.HAStopped || d.moved(g) {
			continue
		}
		m, member := d.member(g.Node)
		taken := m.Live.Fenced || m.MayTake
		switch {
		case !member:
			p.stuck = append(p.stuck, placed{guest: g, reason: cannot(g, "%s is no member of the cluster, so its file must be moved by hand", g.Node)})
			continue
		case m.LiveRevision == 0:
			continue
		case !taken && d.silence(m) < d.p.Suspect:
			d.out.wake(d.now + d.p.Suspect - d.silence(m))
			continue
		case !taken:
			d.out.wake(d.now + d.p.Poll)
		}
		switch {
		case d.view.Protected[g.VMID].Node == g.Node:
			guests[g.VMID] = g
			requests = append(requests, place.Request{VMID: g.VMID, MemoryMiB: g.MemoryMiB, Storages: g.Storages})
		case taken:
			p.stuck = append(p.stuck, placed{guest: g, reason: cannot(g, "not under guard on %s", g.Node)})
		}
	}
	return requests, guests
}

func cannot(g Guest, format string, args ...any) string {
	return g.VMID.SID() + " cannot be taken over: " + fmt.Sprintf(format, args...)
}

// moved: a Move of this very file is under way, or was carried out and the view does not show it yet.
func (d *decision) moved(g Guest) bool {
	_, ok := d.movedTo(g)
	return ok
}

func (d *decision) movedTo(g Guest) (string, bool) {
	m, ok := d.ledger.pending(Move{VMID: g.VMID}.Key()).(Move)
	return m.To, ok && m.From == g.Node && m.ConfigRevision == g.Revision
}

// cluster is the view as the placement needs it.
func (d *decision) cluster() place.Cluster {
	c := place.Cluster{ReserveMiB: d.p.ReserveMiB}
	for _, m := range d.view.Members {
		c.Nodes = append(c.Nodes, place.Node{Name: m.Name, State: d.nodeState(m), MemoryMiB: m.MemoryMiB, Storages: m.Storages})
	}
	for _, g := range d.view.Guests {
		node := g.Node
		if to, ok := d.movedTo(g); ok {
			node = to
		}
		c.Guests = append(c.Guests, place.Guest{VMID: g.VMID, Node: node, MemoryMiB: g.MemoryMiB})
	}
	return c
}

func (d *decision) nodeState(m Member) place.NodeState {
	switch {
	case m.LiveRevision == 0 || m.Live.Left:
		return place.Offline
	case m.Live.Fenced:
		return place.Fenced
	case m.Name != d.self && (m.MayTake || d.silence(m) >= d.p.Suspect):
		return place.Suspect
	default:
		return place.Online
	}
}

// cut fences a node whose lease is over, if that brings back at least one guest. Else the node is
// better left alone: should it come back, its guests go on where they were.
func (d *decision) cut(m Member, guests []placed) {
	if len(guests) == 0 {
		return
	}
	d.out.add(Cut{m.Name, m.LiveRevision, lease.Cut(m.Live, d.self), m.Why})
	for _, g := range guests {
		d.status(g.guest.VMID, Status{State: StatusFence, Node: m.Name, Reason: m.Name + " is being cut off, then the guest moves"})
	}
}

// move takes a guest from its fenced node, unless a migration must be decided first.
func (d *decision) move(g placed) {
	id := g.guest.VMID
	if _, ok := d.view.Intents[id]; ok {
		return
	}
	from, _ := d.member(g.guest.Node)
	to, _ := d.member(g.to)
	d.out.add(Move{
		VMID: id, From: from.Name, To: to.Name,
		LiveRevision: from.LiveRevision, ConfigRevision: g.guest.Revision,
		ProtectedRevision: d.view.Protected[id].Revision, ToRevision: to.Revision,
		Reason: fmt.Sprintf("%s is fenced (epoch %d); %s", from.Name, from.Live.Epoch, g.reason),
	})
}

// status reports what the manager thinks of a guest, if the record says something else.
func (d *decision) status(id model.VMID, st Status) {
	old := d.view.Statuses[id]
	if !old.Says(st) {
		d.out.add(SetStatus{VMID: id, IfRevision: old.Revision, Status: st})
	}
}
