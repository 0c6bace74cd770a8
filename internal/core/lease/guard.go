package lease

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// OnDeadline says what the guard does with a group when the lease ends.
type OnDeadline string

const (
	// FreezeGroup freezes the group; it is thawed if the lease is renewed with the same epoch.
	FreezeGroup OnDeadline = "freeze"
	// ResetMachine kills the group and resets the machine: for storage on which
	// writes may still arrive after the process that made them is frozen or dead.
	ResetMachine OnDeadline = "reset"
)

// Group is a protected guest: a cgroup with its QEMU process.
type Group struct {
	Name string `json:"name"`
	// Cgroup is the directory of the group.
	Cgroup string `json:"cgroup"`
	// Epoch is the node's epoch under which the guest was started.
	Epoch      uint64     `json:"epoch"`
	OnDeadline OnDeadline `json:"on_deadline"`
	// Pills are the files that tell a frozen group's guard of a newer epoch.
	Pills []string `json:"pills,omitempty"`
}

// GroupState is where a group is between running and dead.
type GroupState string

// The states of a group. A dead one is no group any more.
const (
	Running  GroupState = "running"
	Freezing GroupState = "freezing" // ordered, not confirmed
	Frozen   GroupState = "frozen"   // confirmed
	Killing  GroupState = "killing"  // ordered, not confirmed; never undone
)

// GroupStatus is a group as the guard sees it.
type GroupStatus struct {
	Group
	State GroupState `json:"state"`
}

// GuardEvent is what a Guard is told.
type GuardEvent interface{ isGuardEvent() }

// GuardAction is what a Guard wants done, in the order given. Until Done
// reports success an action is asked for again, so each must be harmless when repeated.
type GuardAction interface{ isGuardAction() }

type (
	// Renewal says that protected guests of Epoch may run until Deadline. It is refused if
	// a newer epoch is known, or if the deadline is further away than a lease.
	Renewal struct {
		Epoch    uint64
		Deadline time.Duration
	}
	// ProtectGroup puts a group under the guard. It is refused without a valid lease of the
	// group's epoch. Repeating it changes policy and pills.
	ProtectGroup struct{ Group Group }
	// UnprotectGroup takes a group out again, living or not. It is refused unless the
	// lease is valid, because a frozen guest must not be let loose. A name that is not there is no error.
	UnprotectGroup struct{ Name string }
	// FenceOrder says that the node was fenced: everything before Epoch must die, and the lease is over.
	FenceOrder struct{ Epoch uint64 }
	// PillRead reports that a pill on a shared storage says Epoch.
	PillRead struct{ Epoch uint64 }
	// Done reports what came of the actions; groups are named.
	Done struct {
		Frozen     []string // the kernel confirms that they are frozen
		Dead       []string // no process is in them, and none can enter
		ThawFailed []string // they are still frozen
		Fed        bool     // the watchdog was fed just before this event's time
	}
)

type (
	// Freeze asks to freeze a group and report whether that is confirmed.
	Freeze struct{ Group Group }
	// Thaw asks to let a group run again.
	Thaw struct{ Group Group }
	// Kill asks to kill a group and report when it is dead.
	Kill struct{ Group Group }
	// Feed asks to feed the watchdog, which includes opening it, and to report Fed.
	Feed struct{}
	// Reset asks to reset the machine now.
	Reset struct{ Reason string }
)

func (Tick) isGuardEvent()           {}
func (Renewal) isGuardEvent()        {}
func (ProtectGroup) isGuardEvent()   {}
func (UnprotectGroup) isGuardEvent() {}
func (FenceOrder) isGuardEvent()     {}
func (PillRead) isGuardEvent()       {}
func (Done) isGuardEvent()           {}

func (Freeze) isGuardAction() {}
func (Thaw) isGuardAction()   {}
func (Kill) isGuardAction()   {}
func (Feed) isGuardAction()   {}
func (Reset) isGuardAction()  {}

// member is a group and since when it is in its state.
type member struct {
	Group
	state GroupState
	since time.Duration
}

// Guard is the state machine of the guard. It is a value; Step returns the next one.
type Guard struct {
	p        Params
	watchdog bool

	leased   bool
	epoch    uint64
	deadline time.Duration
	floor    uint64 // the newest epoch heard of from anybody

	members []member // sorted by name

	opened   bool          // the watchdog was fed at least once
	fedAt    time.Duration // no feeding happened after this
	resetFor string        // why the machine is being reset; once set it stays
	resetAt  time.Duration // when Reset was last asked for
}

// NewGuard starts a guard at now. With watchdog false it runs without one:
// then a guard that hangs protects nothing. Found are the groups that an earlier guard of this boot protected and that
// are still there; their deadline is not known, so they are frozen at once and count as unsafe until that is confirmed.
func NewGuard(p Params, watchdog bool, now time.Duration, found []Group) Guard {
	g := Guard{p: p, watchdog: watchdog, fedAt: now}
	for _, f := range found {
		g.put(member{Group: f, state: Freezing, since: now})
		g.floor = max(g.floor, f.Epoch)
	}
	return g
}

// Step tells the guard what happened at now and returns what is to be done. An
// error means that the event was refused and changed nothing; what time alone demands is done all the same.
func (g Guard) Step(now time.Duration, ev GuardEvent) (Guard, []GuardAction, error) {
	next := g.clone()
	err := next.apply(now, ev)
	if err != nil {
		next = g.clone()
	}
	actions := next.settle(now)
	return next, actions, err
}

// Next is when Step wants to be called again at the latest.
func (g Guard) Next(now time.Duration) time.Duration {
	const confirmPace = 10 * time.Millisecond // how often an unconfirmed freeze or kill is looked at
	at := now + g.p.feedEvery()
	for _, m := range g.members {
		switch m.state {
		case Freezing, Killing:
			return now + min(confirmPace, g.p.feedEvery())
		case Running:
			if begin := g.freezeAt(); begin > now {
				at = min(at, begin)
			}
		case Frozen:
		}
	}
	return at
}

// Pills are the files to be read now: those of groups that are frozen. The paths are sorted.
func (g Guard) Pills() []string {
	var paths []string
	for _, m := range g.members {
		if m.state == Frozen || m.state == Freezing {
			paths = append(paths, m.Pills...)
		}
	}
	slices.Sort(paths)
	return slices.Compact(paths)
}

// Groups returns all groups, sorted by name.
func (g Guard) Groups() []GroupStatus {
	out := make([]GroupStatus, 0, len(g.members))
	for _, m := range g.members {
		out = append(out, GroupStatus{Group: m.Group, State: m.state})
	}
	return out
}

// Lease returns the epoch and the deadline; ok is false before the first renewal and after a fencing.
func (g Guard) Lease() (epoch uint64, deadline time.Duration, ok bool) {
	return g.epoch, g.deadline, g.leased
}

// Epoch is the newest epoch that the guard heard of.
func (g Guard) Epoch() uint64 { return g.floor }

// Clean says whether no group of an epoch before the one given is left.
func (g Guard) Clean(epoch uint64) bool {
	return !slices.ContainsFunc(g.members, func(m member) bool { return m.Epoch < epoch })
}

// Resetting returns why the machine is being reset, "" if it is not.
func (g Guard) Resetting() string { return g.resetFor }

func (g Guard) clone() Guard {
	g.members = slices.Clone(g.members)
	return g
}

func (g *Guard) apply(now time.Duration, ev GuardEvent) error {
	switch ev := ev.(type) {
	case Tick:
	case Renewal:
		return g.renewed(now, ev)
	case ProtectGroup:
		return g.protect(now, ev.Group)
	case UnprotectGroup:
		return g.unprotect(now, ev.Name)
	case FenceOrder:
		g.fence(now, ev.Epoch)
	case PillRead:
		g.fence(now, ev.Epoch)
	case Done:
		g.done(now, ev)
	}
	return nil
}

func (g *Guard) renewed(now time.Duration, ev Renewal) error {
	if ev.Epoch < g.floor {
		return model.Errorf(model.ErrConflict, "the lease of epoch %d is refused: this node was fenced with epoch %d", ev.Epoch, g.floor)
	}
	if ev.Deadline > now+g.p.Lease {
		return model.Invalidf("deadline", "it is %v away, further than a lease (%v)", ev.Deadline-now, g.p.Lease)
	}
	if !g.leased || ev.Epoch > g.epoch {
		g.doom(now, ev.Epoch)
		g.leased, g.epoch, g.floor, g.deadline = true, ev.Epoch, ev.Epoch, ev.Deadline
		return nil
	}
	g.deadline = max(g.deadline, ev.Deadline)
	return nil
}

func (g *Guard) protect(now time.Duration, p Group) error {
	switch {
	case p.Name == "":
		return model.Invalidf("name", "a group needs a name")
	case p.OnDeadline != FreezeGroup && p.OnDeadline != ResetMachine:
		return model.Invalidf("on_deadline", "%q is unknown: use freeze or reset", p.OnDeadline)
	case g.resetFor != "":
		return model.Errorf(model.ErrUnavailable, "guest %s cannot be protected: the machine is being reset: %s", p.Name, g.resetFor)
	case g.watchdog && !g.opened:
		return model.Errorf(model.ErrUnavailable, "guest %s cannot be protected: the watchdog is not armed yet", p.Name)
	case !g.leased || now >= g.freezeAt():
		return model.Errorf(model.ErrUnavailable, "guest %s cannot be protected: this node has no valid lease", p.Name)
	case p.Epoch != g.epoch:
		return model.Errorf(model.ErrConflict, "guest %s cannot be protected with epoch %d: the lease is of epoch %d", p.Name, p.Epoch, g.epoch)
	case !g.mayRun(now):
		return model.Errorf(model.ErrUnavailable, "guest %s cannot be protected: the lease is too short for the watchdog: try again in a second", p.Name)
	}
	m := member{Group: p, state: Running, since: now}
	if i, found := g.find(p.Name); found {
		old := g.members[i]
		if old.state == Killing {
			return model.Errorf(model.ErrBusy, "guest %s cannot be protected: its processes of epoch %d are being killed", p.Name, old.Epoch)
		}
		if old.Cgroup != p.Cgroup {
			return model.Errorf(model.ErrExists, "guest %s is protected already, in cgroup %s", p.Name, old.Cgroup)
		}
		m.state, m.since = old.state, old.since
	}
	g.put(m)
	return nil
}

func (g *Guard) unprotect(now time.Duration, name string) error {
	i, found := g.find(name)
	if !found {
		return nil
	}
	if g.members[i].state != Running || !g.mayRun(now) {
		return model.Errorf(model.ErrBusy, "guest %s cannot be released: it is %s; it is let go when the lease is renewed, or killed when the node was fenced",
			name, g.members[i].state)
	}
	g.members = slices.Delete(g.members, i, i+1)
	return nil
}

// fence ends everything before epoch: groups, and the lease.
func (g *Guard) fence(now time.Duration, epoch uint64) {
	g.doom(now, epoch)
	g.floor = max(g.floor, epoch)
	if g.epoch < epoch {
		g.leased, g.deadline = false, 0
	}
}

// doom condemns every group of an epoch before the one given.
func (g *Guard) doom(now time.Duration, epoch uint64) {
	for i := range g.members {
		if g.members[i].Epoch < epoch {
			g.members[i].enter(Killing, now)
		}
	}
}

func (m *member) enter(s GroupState, now time.Duration) {
	if m.state != s {
		m.state, m.since = s, now
	}
}

func (g *Guard) done(now time.Duration, ev Done) {
	for _, name := range ev.Frozen {
		if i, found := g.find(name); found && g.members[i].state == Freezing {
			g.members[i].enter(Frozen, now)
		}
	}
	for _, name := range ev.ThawFailed {
		if i, found := g.find(name); found && g.members[i].state == Running {
			g.members[i].enter(Freezing, now)
		}
	}
	for _, name := range ev.Dead {
		if i, found := g.find(name); found && g.members[i].state == Killing {
			g.members = slices.Delete(g.members, i, i+1)
		}
	}
	if ev.Fed {
		g.opened, g.fedAt = true, now
	}
}

// settle brings every group to where it must be at now and says how.
func (g *Guard) settle(now time.Duration) []GuardAction {
	g.condemn(now)
	var actions []GuardAction
	run := g.mayRun(now)
	for i := range g.members {
		m := &g.members[i]
		switch {
		case m.state == Killing:
			actions = append(actions, Kill{Group: m.Group})
		case run && m.state != Running:
			m.enter(Running, now)
			actions = append(actions, Thaw{Group: m.Group})
		case !run && m.state != Frozen:
			m.enter(Freezing, now)
			actions = append(actions, Freeze{Group: m.Group})
		}
	}
	if g.resetFor != "" && (g.resetAt == 0 || now >= g.resetAt+g.p.feedEvery()) {
		g.resetAt = now
		actions = append(actions, Reset{Reason: g.resetFor})
	}
	if g.mayFeed(now) && (!g.opened || now >= g.fedAt+g.p.feedEvery()) {
		g.fedAt = now
		actions = append(actions, Feed{})
	}
	return actions
}

// condemn decides on the reset: a group whose storage demands it at the
// deadline, a freeze or a kill that was not confirmed in time.
func (g *Guard) condemn(now time.Duration) {
	for i := range g.members {
		m := &g.members[i]
		reason := ""
		switch {
		case m.state == Killing && now >= m.since+g.p.Watchdog:
			reason = fmt.Sprintf("guest %s does not die", m.Name)
		case m.state == Freezing && now >= m.since+g.p.confirmWithin():
			reason = fmt.Sprintf("guest %s does not freeze", m.Name)
		case m.OnDeadline != ResetMachine || m.state == Killing:
		case g.leased && now >= g.freezeAt():
			reason = fmt.Sprintf("the lease ended, and writes of guest %s may be under way", m.Name)
		case !g.leased && now >= m.since+g.p.Watchdog:
			reason = fmt.Sprintf("no lease came, and writes of guest %s may be under way", m.Name)
		}
		if reason == "" {
			continue
		}
		m.enter(Killing, now)
		if g.resetFor == "" {
			g.resetFor = reason
		}
	}
}

// freezeAt is when the guard begins to freeze.
func (g *Guard) freezeAt() time.Duration { return g.deadline - g.p.FreezeMargin }

// mayRun says whether protected groups may run at now: the lease is valid, and a
// guard that hung from now on would be ended by the watchdog no later than at the deadline.
func (g *Guard) mayRun(now time.Duration) bool {
	return g.leased && now < g.freezeAt() && (!g.watchdog || g.fedAt+g.p.Watchdog <= g.deadline) && g.resetFor == ""
}

// mayFeed says whether the machine may live for another W from now on, whatever happens to the guard.
func (g *Guard) mayFeed(now time.Duration) bool {
	if !g.watchdog || g.resetFor != "" {
		return false
	}
	covered := g.leased && now+g.p.Watchdog+g.p.feedSlack() <= g.deadline
	for _, m := range g.members {
		safe := m.state == Frozen && m.OnDeadline == FreezeGroup
		if m.state == Killing || (!safe && !covered) {
			return false
		}
	}
	return true
}

func (g *Guard) find(name string) (int, bool) {
	return slices.BinarySearchFunc(g.members, name, func(m member, name string) int { return strings.Compare(m.Name, name) })
}

func (g *Guard) put(m member) {
	i, found := g.find(m.Name)
	if found {
		g.members[i] = m
		return
	}
	g.members = slices.Insert(g.members, i, m)
}
