//go:build room && measure

package roomtest

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"syscall"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// allRows is the whole table, ordered so that each room is built once.
func (m *measurement) allRows() []row {
	plain, fast := setup{nodes: 3}, setup{nodes: 3, profile: "fast"}
	bmc, bmcFast := setup{nodes: 3, bmc: true}, setup{nodes: 3, profile: "fast", bmc: true}
	const s, whole = time.Second, "ledger whole"
	hold, faults := 10*time.Minute, 20
	if *measureQuick {
		hold, faults = time.Minute, 10
	}
	nemesis := func(r *room) time.Duration { return r.randomFaults(faults, m.rand.Uint64()) }
	return []row{
		// First of their room: a node that was silent three times of late is no place to come home to.
		{"reboot", "own reboot, policy migrate → guest home", "no guest restarted", plain, 3, 0, "", rebootByMigration},
		{"link-down", "guests' network down → moved live", "not restarted", plain, 3, 0, "", guestLinkDown},
		{"storage-hangs", "storage hangs → QEMU elsewhere", whole, plain, 3, 30 * s, "", storageHangs},
		{"storage-fails", "storage gives errors → QEMU elsewhere", whole, plain, 3, 30 * s, "", storageFails},
		{"agent-silent", "guest agent silent → reset", "by policy", plain, 3, 0, "", agentSilent},
		{"panicked", "guest panicked → reset", "by policy", plain, 3, 0, "", panicked},
		{"qemu-killed", "QEMU killed → started again", whole, plain, 10, 2 * s, "", qemuKilled},
		{
			"networks-gone", "all networks gone for " + hold.String() + ", back → guests thawed", "no reset, no restart, " + whole, plain, 1, 5 * s, "",
			func(r *room) time.Duration { return networksGone(r, hold) },
		},
		{"suspicion", "power cut → manager's record", "", plain, 10, 2500 * time.Millisecond, "", suspicion},
		{"lease", "power cut, lease alone → QEMU elsewhere", whole, plain, 10, 13 * s, "", failoverAfter(powerCut, false)},
		{"lease-cut-off", "all cables cut, lease alone → QEMU elsewhere", whole, plain, 10, 13 * s, "", failoverAfter(cutOff, false)},
		{"lease-hung", "agent and guard stopped, watchdog and lease → QEMU again", whole, plain, 10, 13 * s, "", failoverAfter(hung, false)},
		{"lease-leader", "power cut of manager and leader, lease alone", whole, plain, 10, 2 * s, "lease", failoverAfter(powerCut, true)},

		{"power-off", "power cut, BMC says off → QEMU elsewhere", whole, bmc, 10, 4 * s, "", failoverAfter(powerCut, false)},
		{"cut-off", "all cables cut, BMC switches off → QEMU elsewhere", whole, bmc, 10, 8 * s, "", failoverAfter(cutOff, false)},
		{"hung", "agent and guard stopped → QEMU again", whole, bmc, 10, 8 * s, "", failoverAfter(hung, false)},
		{"hung-agent", "agent stopped, BMC switches off → QEMU elsewhere", whole, bmc, 10, 8 * s, "", failoverAfter(hungAgent, false)},
		{"power-off-leader", "power cut of manager and leader, BMC says off", whole, bmc, 10, 2 * s, "power-off", failoverAfter(powerCut, true)},
		{"cut-off-leader", "all cables of manager and leader cut, BMC switches off", whole, bmc, 10, 2 * s, "cut-off", failoverAfter(cutOff, true)},

		{"suspicion-fast", "power cut → manager's record, R = 250 ms", "", fast, 10, s, "", suspicion},
		{"lease-fast", "power cut, lease of 5 s alone → QEMU elsewhere", whole, fast, 10, 9 * s, "", failoverAfter(powerCut, false)},
		{"lease-cut-off-fast", "all cables cut, lease of 5 s alone → QEMU elsewhere", whole, fast, 10, 9 * s, "", failoverAfter(cutOff, false)},
		{"power-off-fast", "power cut, BMC says off → QEMU elsewhere", whole, bmcFast, 10, 2 * s, "", failoverAfter(powerCut, false)},

		{"faults", fmt.Sprintf("%d random faults, lease alone; slowest recovery of all guests", faults), "one writer, " + whole, setup{nodes: 5}, 1, 0, "", nemesis},
		{"faults-bmc", "the same with BMCs", "one writer, " + whole, setup{nodes: 5, bmc: true}, 1, 0, "", nemesis},
	}
}

// anyPhase is the time between two renewals: a fault comes at any moment in it.
const anyPhase = time.Second

// suspicion is the time until the manager has written down that a node is silent.
func suspicion(r *room) time.Duration {
	st := r.Cluster("n1")
	lost := r.otherThan(st.Manager, st.Leader)
	r.Guest(100).On(lost).Protected()
	r.AllWell()
	manager := r.Cluster(lost).Manager
	r.waitOut(rand.N(anyPhase))
	since := r.PowerOff(lost)
	return r.Logged(manager, agentUnit, since, lost+" was silent").Sub(since)
}

// fault makes a node end for the others and returns when.
type fault func(r *room, node string) time.Time

func powerCut(r *room, node string) time.Time { return r.PowerOff(node) }

func cutOff(r *room, node string) time.Time {
	since := time.Now()
	r.Cut(node)
	return since
}

// hung stops all of Sauh on a node and leaves its kernel and its guests alone.
func hung(r *room, node string) time.Time {
	since := r.Signal(node, guardUnit, syscall.SIGSTOP)
	r.Signal(node, agentUnit, syscall.SIGSTOP)
	return since
}

// hungAgent leaves the guard, so no watchdog resets the node.
func hungAgent(r *room, node string) time.Time { return r.Signal(node, agentUnit, syscall.SIGSTOP) }

// failoverAfter is the time from a fault of a guest's node until a QEMU of the guest is started again.
func failoverAfter(strike fault, leader bool) func(r *room) time.Duration {
	return func(r *room) time.Duration {
		var lost string
		if leader {
			lost = r.makeManagerLead()
		} else {
			st := r.Cluster("n1")
			lost = r.otherThan(st.Manager, st.Leader)
		}
		g := r.Guest(100).On(lost).Protected()
		r.AllWell()
		l := g.Ledger()
		st := r.Cluster(lost)
		if is := st.Manager == lost && st.Leader == lost; is != leader {
			r.t.Fatalf("%s should be manager and leader: %v; manager %s, leader %s", lost, leader, st.Manager, st.Leader)
		}
		r.waitOut(rand.N(anyPhase))
		since := strike(r, lost)
		took := g.StartedAgain(since)
		g.MustAnswer(patience)
		l.MustGoOn(patience)
		l.MustBeWhole()
		return took
	}
}

// qemuKilled takes the nodes in turn: a guest that dies twice within a minute on one node waits longer the second time.
func qemuKilled(r *room) time.Duration {
	home := r.nextNode()
	g := r.Guest(100).On(home).Protected()
	l := g.Ledger()
	took := g.StartedAgain(g.Kill())
	g.MustAnswer(patience)
	l.MustBeWhole()
	return took
}

// nextNode is the one after that of guest 100.
func (r *room) nextNode() string {
	row, err := r.Guest(100).Find()
	if err != nil {
		return r.names[0]
	}
	for i, n := range r.names {
		if n == row.Node {
			return r.names[(i+1)%len(r.names)]
		}
	}
	return r.names[0]
}

// networksGone cuts every node from every other for a time. It returns how long after the last cable is back the last guest is thawed.
func networksGone(r *room, hold time.Duration) time.Duration {
	type before struct {
		g    *guest
		l    *ledger
		qemu process
		boot string
	}
	var guests []before
	for i, node := range []string{"n1", "n3"} {
		g := r.Guest(model.VMID(100 + i)).On(node).Protected()
		guests = append(guests, before{g, g.Ledger(), g.QEMU(), g.MustAnswer(patience).BootID})
	}
	boots := r.boots()
	since := time.Now()
	for _, n := range r.names {
		r.Cut(n)
	}
	for _, b := range guests {
		r.Eventually(fmt.Sprintf("guest %d is frozen", b.g.id), leaseTime-time.Since(since), func() error {
			if p := b.g.QEMU(); !p.frozen {
				return errors.New("it runs")
			}
			return nil
		})
	}
	r.Throughout(hold-time.Since(since), "the guests stay frozen", func() error {
		for _, b := range guests {
			if p := b.g.QEMU(); !p.frozen || p.pid != b.qemu.pid {
				return fmt.Errorf("%v", &p)
			}
		}
		return nil
	})
	for _, n := range r.names {
		r.Plug(n)
	}
	healed := time.Now()
	var last time.Duration
	for _, b := range guests {
		r.Eventually(fmt.Sprintf("guest %d runs", b.g.id), patience, func() error {
			p := b.g.QEMU()
			if p.frozen || p.pid != b.qemu.pid {
				return fmt.Errorf("%v", &p)
			}
			last = max(last, p.thawedAt.Sub(healed))
			return nil
		})
	}
	r.AllWell()
	for _, b := range guests {
		if now := b.g.MustAnswer(patience).BootID; now != b.boot {
			r.t.Errorf("guest %d was restarted", b.g.id)
		}
		if ps := b.g.Processes(since); len(ps) != 1 {
			r.t.Errorf("guest %d had the processes %v", b.g.id, ps)
		}
		b.l.MustGoOn(patience)
		b.l.MustBeWhole()
	}
	if now := r.boots(); now != boots {
		r.t.Errorf("nodes were reset: boots %s, before %s", now, boots)
	}
	return last
}

// boots says how often each node has booted.
func (r *room) boots() (text string) {
	for _, n := range r.names {
		st := r.Node(n)
		text += fmt.Sprintf("%s %d (%d resets) ", n, st.Boots, len(st.Resets))
	}
	return text
}

func storageHangs(r *room) time.Duration { return storageLost(r, hangs) }

func agentSilent(r *room) time.Duration {
	g := r.sick()
	r.waitOut(tellsLoss) // its agent was heard
	return g.fallIll("/agent?silent=1")
}
