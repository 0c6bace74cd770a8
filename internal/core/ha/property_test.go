package ha_test

import (
	"testing"
	"time"

	"pgregory.net/rapid"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
)

// tracked is a world that counts what happened, so that the test can tell that it tried something.
type tracked struct {
	*world
	late                                   []ha.Action // carried out once, and coming a second time
	cuts, moves, cleared, commits, refused int
	early, handed                          int // cuts before the lease was over, guests handed over
}

// carry checks, at the moment when an action is committed, that it was allowed.
func (w *tracked) carry(rt *rapid.T, a ha.Action, commit func() bool) {
	before := w.store.kv
	committed := commit()
	if !committed {
		w.refused++
		return
	}
	switch a := a.(type) {
	case ha.Cut:
		w.cuts++
		if m := w.machine(a.Node); !m.off && w.now < m.deadline {
			rt.Fatalf("%s was cut at %s, its lease lasts until %s", a.Node, w.now, m.deadline)
		} else if w.now < m.deadline {
			w.early++
		}
	case ha.Move:
		w.moves++
		from := before[model.LivePrefix+a.From]
		if !from.value.(model.Live).Fenced || from.revision != a.LiveRevision {
			rt.Fatalf("%s moved from %s, which was not fenced at revision %d: %+v", a.VMID.SID(), a.From, a.LiveRevision, from)
		}
		if w.machine(a.From).executes(a.VMID, w.now) {
			rt.Fatalf("%s moved from %s while it executes there", a.VMID.SID(), a.From)
		}
	case ha.ClearIntent:
		w.cleared++
	case ha.Handover:
		w.handed++
		if w.machine(a.From).executes(a.VMID, w.now) {
			rt.Fatalf("%s was handed over by %s while it executes there", a.VMID.SID(), a.From)
		}
	}
}

func (w *tracked) answerNext(rt *rapid.T, d *director) {
	if len(d.queue) == 0 {
		return
	}
	i := rapid.IntRange(0, len(d.queue)-1).Draw(rt, "action")
	a := d.queue[i]
	if rapid.IntRange(0, 3).Draw(rt, "twice") == 0 {
		w.late = append(w.late, a)
	}
	w.carry(rt, a, func() bool {
		before := w.store.revision
		w.answer(d, i)
		return w.store.revision != before
	})
}

func (w *tracked) actions() map[string]func(*rapid.T) {
	node := func(rt *rapid.T) *machine { return rapid.SampledFrom(w.machines).Draw(rt, "node") }
	guest := func(rt *rapid.T) model.VMID { return rapid.SampledFrom(w.guests).Draw(rt, "guest") }
	director := func(rt *rapid.T) *director { return rapid.SampledFrom(w.directors).Draw(rt, "manager") }
	return map[string]func(*rapid.T){
		"": func(rt *rapid.T) {
			if s := w.wrong(); s != "" {
				rt.Fatal(s)
			}
		},
		"time passes": func(rt *rapid.T) {
			w.now += time.Duration(rapid.IntRange(1, 30).Draw(rt, "tenths")) * 100 * time.Millisecond
		},
		"a long time":       func(rt *rapid.T) { w.pass(rt) },
		"a node renews":     func(rt *rapid.T) { w.renew(node(rt)) },
		"two nodes renew":   func(rt *rapid.T) { w.beat(rt) },
		"a renewal arrives": func(rt *rapid.T) { w.arrive(rt, node(rt)) },
		"power is cut":      func(rt *rapid.T) { w.powerOff(rt, node(rt)) },
		"a node boots": func(rt *rapid.T) {
			if m := node(rt); m.off {
				w.register(m)
			}
		},
		"a node starts its guests": func(rt *rapid.T) {
			m := node(rt)
			for _, id := range w.guests {
				w.start(m, id)
			}
		},
		"a person changes maintenance": func(rt *rapid.T) {
			w.store.set(model.HARequestPrefix+node(rt).name, ha.NodeRequest{Maintenance: rapid.Bool().Draw(rt, "maintenance")})
		},
		"guests must leave a node": func(rt *rapid.T) { w.maintain(rt, node(rt)) },
		"a node leaves": func(rt *rapid.T) {
			if rapid.IntRange(0, 4).Draw(rt, "really") == 0 {
				w.leave(node(rt))
			}
		},
		"a worker reports":       func(rt *rapid.T) { w.report(node(rt), guest(rt)) },
		"a node hands over":      func(rt *rapid.T) { w.handOverLate(rt, node(rt)) },
		"a migration begins":     func(rt *rapid.T) { w.announce(node(rt), guest(rt)) },
		"a migration completes":  func(rt *rapid.T) { w.onWaiting(rt, w.complete) },
		"a target commits":       func(rt *rapid.T) { w.onWaiting(rt, w.tryCommit) },
		"a migration goes well":  func(rt *rapid.T) { w.migrate(node(rt), guest(rt)) },
		"a source takes back":    func(rt *rapid.T) { w.takeBack(node(rt), guest(rt)) },
		"a manager sees the now": func(rt *rapid.T) { w.look(director(rt), w.store.revision) },
		"a manager sees the past": func(rt *rapid.T) {
			d := director(rt)
			w.look(d, rapid.Int64Range(d.seen, w.store.revision).Draw(rt, "revision"))
		},
		"a manager acts":       func(rt *rapid.T) { w.answerNext(rt, director(rt)) },
		"a manager acts again": func(rt *rapid.T) { w.answerNext(rt, director(rt)) },
		"an action comes late": func(rt *rapid.T) {
			if len(w.late) > 0 {
				a := w.late[0]
				w.late = w.late[1:]
				w.carry(rt, a, func() bool { return w.carryOut(a) != 0 })
			}
		},
	}
}

// handOverLate ends a guest that is wanted elsewhere, as the node saw it a while ago, and hands it over now, later or twice. In
// between the guest does not start: the agent holds its lock.
func (w *tracked) handOverLate(rt *rapid.T, m *machine) {
	seen := w.store.revision - rapid.Int64Range(0, min(5, w.store.revision)).Draw(rt, "seen before")
	for _, id := range w.guests {
		w.handOverOne(rt, m, id, seen)
	}
}

func (w *tracked) handOverOne(rt *rapid.T, m *machine, id model.VMID, seen int64) {
	a, ok := w.handOver(m, id, seen)
	if !ok {
		return
	}
	delete(m.runs, id)
	w.carry(rt, a, func() bool { return w.carryOut(a) != 0 })
	if rapid.Bool().Draw(rt, "twice") {
		w.carry(rt, a, func() bool { return w.carryOut(a) != 0 })
	}
}

// maintain asks for a maintenance, lets the managers see to it, and the node carry out what they have written by then.
func (w *tracked) maintain(rt *rapid.T, m *machine) {
	w.store.set(model.HARequestPrefix+m.name, ha.NodeRequest{Maintenance: true})
	for _, d := range w.directors {
		w.look(d, w.store.revision)
		for range 6 {
			w.answerNext(rt, d)
		}
	}
	w.handOverLate(rt, m)
	w.store.set(model.HARequestPrefix+m.name, ha.NodeRequest{})
}

// pass lets a lease go by, in which some nodes are silent.
func (w *tracked) pass(rt *rapid.T) {
	silent := rapid.SampledFrom(w.machines).Draw(rt, "silent")
	for range 11 {
		w.now += time.Second
		w.beatAllBut(silent)
	}
}

// beat renews two nodes, at once.
func (w *tracked) beat(rt *rapid.T) {
	w.beatAllBut(rapid.SampledFrom(w.machines).Draw(rt, "silent"))
}

func (w *tracked) beatAllBut(silent *machine) {
	for _, m := range w.machines {
		if m != silent && !m.off {
			w.renew(m)
			w.deliver(m, len(m.sent)-1)
		}
	}
	for _, d := range w.directors {
		if d.self != silent.name {
			w.look(d, w.store.revision)
		}
	}
}

func (w *tracked) arrive(rt *rapid.T, m *machine) {
	if len(m.sent) > 0 {
		w.deliver(m, rapid.IntRange(0, len(m.sent)-1).Draw(rt, "renewal"))
	}
}

func (w *tracked) powerOff(rt *rapid.T, m *machine) {
	if rapid.IntRange(0, 4).Draw(rt, "really") == 0 {
		m.off = true
		clear(m.runs)
	}
}

// migrate goes through without a stop.
func (w *tracked) migrate(to *machine, id model.VMID) {
	w.announce(to, id)
	w.complete(to, id)
	w.tryCommit(to, id)
}

// onWaiting does something to one of the guests that wait for a migration on their target.
func (w *tracked) onWaiting(rt *rapid.T, do func(*machine, model.VMID)) {
	for _, m := range w.machines {
		for _, id := range w.guests {
			if _, ok := m.incoming[id]; ok && rapid.Bool().Draw(rt, "this") {
				do(m, id)
			}
		}
	}
}

func (w *tracked) tryCommit(m *machine, id model.VMID) {
	before := w.store.revision
	w.commit(m, id)
	if w.store.revision != before {
		w.commits++
	}
}

// settle lets n3 be dead and everything else be well for half a minute, and expects all guests elsewhere.
func (w *tracked) settle(rt *rapid.T) {
	dead := w.machine("n3")
	dead.off = true
	clear(dead.runs)
	for _, m := range w.machines {
		w.store.set(model.HARequestPrefix+m.name, ha.NodeRequest{})
	}
	for _, m := range w.machines[:2] {
		w.register(m) // what was under way there is over
	}
	for range 300 {
		w.now += 100 * time.Millisecond
		if w.now%time.Second < 100*time.Millisecond {
			w.beatAllBut(dead)
		}
		for _, d := range w.directors {
			w.look(d, w.store.revision)
			for len(d.queue) > 0 {
				a := d.queue[0]
				w.carry(rt, a, func() bool {
					before := w.store.revision
					w.answer(d, 0)
					return w.store.revision != before
				})
			}
		}
		if s := w.wrong(); s != "" {
			rt.Fatal(s)
		}
	}
	for _, id := range w.guests {
		if node, _ := w.store.owner(id); node == "n3" {
			rt.Fatalf("%s is still on n3, which is dead", id.SID())
		}
	}
}

func TestTwoManagersWithStaleViewsNeverMakeTwoOwners(t *testing.T) {
	var total tracked
	rapid.Check(t, func(rt *rapid.T) {
		w := &tracked{world: newWorld()}
		for _, m := range w.machines {
			for _, id := range w.guests {
				w.start(m, id)
			}
		}
		for range 3 { // longer stories than rapid's own
			rt.Repeat(w.actions())
		}
		w.settle(rt)
		total.cuts += w.cuts
		total.moves += w.moves
		total.cleared += w.cleared
		total.commits += w.commits
		total.refused += w.refused
		total.early += w.early
		total.handed += w.handed
	})
	t.Logf("%d cuts, %d of them by a proof, %d guests handed over, %d moves, %d migrations ended by a manager, %d by their target, %d actions refused by their compares",
		total.cuts, total.early, total.handed, total.moves, total.cleared, total.commits, total.refused)
	if total.cuts == 0 || total.early == 0 || total.handed == 0 || total.moves == 0 || total.cleared == 0 || total.commits == 0 || total.refused == 0 {
		t.Error("the test tried too little to say anything")
	}
}
