package ha

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"time"

	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/place"
	"sauh.dev/sauh/internal/core/pveconf"
)

// clearIntents ends the migrations that lost their source or target: by a cut that holds, or by one that was
// made since the migration began. DESIGN.md says why deleting the intent decides.
func (d *decision) clearIntents() {
	for _, id := range slices.Sorted(maps.Keys(d.view.Intents)) {
		in := d.view.Intents[id]
		for _, end := range []struct {
			role, node string
			epoch      uint64
		}{{"source", in.Source, in.SourceEpoch}, {"target", in.Target, in.TargetEpoch}} {
			m := d.nodes[end.node]
			if m != nil && m.LiveRevision != 0 && (m.Live.Fenced || m.Live.Epoch > end.epoch) {
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
	lost   map[string][]placed // by node that may be taken or soon may: those that can move, and not by its cut
	fenced []placed            // of fenced nodes: those that can move now
	stuck  []placed            // those that cannot, with the reason
	// held counts the guests that want to be brought back, by node; unguarded names nodes with one that was not under guard.
	held      map[string]int
	unguarded map[string]bool
	// holds maps a lost node to a guest that waits elsewhere until the node's acknowledgement of it is void.
	holds map[string]string
}

// plan places all guests that a fenced or silent node holds, in one go, so that each counts for the next.
func (d *decision) plan() plan {
	p := plan{lost: make(map[string][]placed), held: make(map[string]int), unguarded: make(map[string]bool), holds: make(map[string]string)}
	guests := d.lostGuests(&p)
	if len(guests) == 0 {
		return p
	}
	slices.SortStableFunc(guests, func(a, b Guest) int {
		return cmp.Or(d.byOrder(a, b), cmp.Compare(b.MemoryMiB, a.MemoryMiB), cmp.Compare(a.VMID, b.VMID))
	})
	for _, g := range guests {
		to, verdicts := d.placing().choose(g, place.Request{Prefer: place.Best})
		n, pl := d.nodes[g.Node], placed{guest: g, to: to, reason: place.Explain(verdicts)}
		switch {
		case to == "" && n.take:
			p.stuck = append(p.stuck, pl)
		case to == "":
		case n.Live.Fenced && n.take && d.covered(n, g):
			p.fenced = append(p.fenced, pl)
		default:
			p.lost[n.Name] = append(p.lost[n.Name], pl)
		}
	}
	return p
}

// byOrder compares by the order in which guests start; 0 is the last.
func (d *decision) byOrder(a, b Guest) int {
	return cmp.Compare(startOrder(d.view.Config[a.VMID]), startOrder(d.view.Config[b.VMID]))
}

func startOrder(r Resource) uint { return uint(r.Order) - 1 }

// covered: the cut of n lets this guest be taken already.
func (d *decision) covered(n *node, g Guest) bool {
	named := n.Live.Fenced && n.Live.CoversGuest(g.VMID) || slices.Contains(n.refused, g.VMID)
	return n.covers == "" || g.RBD && named
}

// lostGuests are the guests of lost nodes that may be taken, now or soon; those that may never are stuck.
func (d *decision) lostGuests(p *plan) []Guest {
	var out []Guest
	for i := range d.view.Guests {
		g := &d.view.Guests[i]
		n := d.nodes[g.Node]
		if n != nil && (n.online(d.p) && n.heard < d.p.Ask || g.Node == d.self) {
			d.watch(n, *g)
			d.awaited(p, g)
			continue
		}
		state := d.view.Resources[g.VMID]
		if state != pveconf.HAStarted && state != pveconf.HAStopped || d.view.Statuses[g.VMID].State == StatusError || d.moved(*g) {
			continue
		}
		switch {
		case n == nil:
			p.stuck = append(p.stuck, placed{guest: *g, reason: cannot(*g, "%s is no member of the cluster, so its file must be moved by hand", g.Node)})
		case n.LiveRevision == 0 || n.frozen != "" || n.disarm != Armed:
		case state == pveconf.HAStopped && n.ends != "" && d.view.Policy.Shutdown == ShutdownMigrate:
			// Who was to leave has left; what is stopped moves when it is to start.
		default:
			p.held[n.Name]++
			if d.wanted(n, *g, p) && (n.take || d.mayShoot(n)) {
				out = append(out, *g)
			}
		}
	}
	return out
}

// awaited: g's file was moved by hand from a node that is lost, and whose cut its owner waits for.
func (d *decision) awaited(p *plan, g *Guest) {
	prot := d.view.Protected[g.VMID]
	if prot.Node == "" || prot.Node == g.Node || !d.isHA(g.VMID) {
		return
	}
	switch n := d.nodes[prot.Node]; {
	case n == nil || n.Live.Fenced || n.frozen != "" || n.disarm != Armed:
	case n.take && n.covers == "":
		p.holds[n.Name] = g.SID()
	case n.silence >= d.p.Suspect:
		d.poll(n)
	}
}

// poll looks again when the lease of n may be over.
func (d *decision) poll(n *node) {
	if n.Wait > 0 {
		d.out.wake(max(d.seen+n.Wait, d.now+time.Millisecond))
		return
	}
	d.wakeIn(d.p.Poll)
}

// watch looks again when the node of a guest would be silent for too long.
func (d *decision) watch(n *node, g Guest) {
	if n.Name == d.self {
		return
	}
	if state := d.view.Resources[g.VMID]; state == pveconf.HAStarted || state == pveconf.HAStopped {
		until := d.p.Suspect - n.silence
		if len(n.Fencing) > 0 && n.Heard > 0 {
			until = min(until, d.p.Ask-n.heard)
		}
		d.wakeIn(until)
	}
}

// wanted says whether a guest of a silent node is to be placed; one that was not under guard needs a proof.
func (d *decision) wanted(n *node, g Guest, p *plan) bool {
	if !n.take || n.covers != "" && !n.Live.Fenced {
		switch {
		case n.silence < d.p.Suspect:
			d.wakeIn(d.p.Suspect - n.silence)
		default:
			d.poll(n)
		}
	}
	if g.Local != "" {
		if n.take {
			p.stuck = append(p.stuck, placed{guest: g, reason: cannot(g, "only %s has %s", g.Node, g.Local)})
		}
		return false
	}
	if n.powerOff || d.view.Protected[g.VMID].Node == g.Node {
		return true
	}
	p.unguarded[n.Name] = true
	if n.take {
		p.stuck = append(p.stuck, placed{guest: g, reason: cannot(g, "not under guard on %s", g.Node)})
	}
	return false
}

// mayShoot: whether the node is shot depends on whether its guests would have a place.
func (d *decision) mayShoot(n *node) bool { return len(n.Fencing) > 0 && n.heard >= d.p.FenceDelay }

func cannot(g Guest, format string, args ...any) string {
	return g.SID() + " cannot be taken over: " + fmt.Sprintf(format, args...)
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

// cut fences a node whose lease is over or whose death is proved, if that brings back at least one guest. Else the node is
// better left alone: should it come back, its guests go on where they were.
func (d *decision) cut(n *node, guests []placed, holds string) {
	guests = slices.DeleteFunc(slices.Clone(guests), func(g placed) bool { return !d.covered(n, g.guest) })
	why := n.why
	switch {
	case len(guests) > 0:
	case holds != "" && n.covers == "":
		why += ", and " + holds + " waits for it"
	default:
		return
	}
	live := lease.Cut(n.Live, d.self)
	live.Covers = n.covers
	d.out.add(Cut{n.Name, n.LiveRevision, live, why})
	for _, g := range guests {
		st := d.view.Statuses[g.guest.VMID].Status
		st.State, st.Node, st.Target, st.Reason = StatusFence, n.Name, "", n.Name+" is being cut off, then the guest moves"
		d.set(g.guest, st, 0)
	}
}

// recovery says of a guest of a lost node why it has no place.
func (d *decision) recovery(g placed) {
	st := d.view.Statuses[g.guest.VMID].Status
	st.State, st.Node, st.Target, st.Reason = StatusRecovery, g.guest.Node, "", g.reason
	d.set(g.guest, st, 0)
}

// deadLocks are the locks of tasks that died with their node; such a lock is removed from the file of a guest that moves.
func deadLock(lock string) bool {
	switch lock {
	case "backup", "mounted", "migrate", "clone", "rollback", "snapshot", "snapshot-delete", "suspending", "suspended":
		return true
	}
	return false
}

// move takes a guest from its fenced node, unless a migration must be decided first.
func (d *decision) move(g placed) {
	id := g.guest.VMID
	if _, ok := d.view.Intents[id]; ok {
		return
	}
	from, to := d.nodes[g.guest.Node], d.nodes[g.to]
	d.out.add(Move{
		VMID: id, Kind: g.guest.Kind, From: from.Name, To: to.Name,
		LiveRevision: from.LiveRevision, ConfigRevision: g.guest.Revision,
		ProtectedRevision: d.view.Protected[id].Revision, ToRevision: to.Revision,
		Reason:   fmt.Sprintf("%s is fenced (epoch %d); %s", from.Name, from.Live.Epoch, g.reason),
		DropLock: deadLock(g.guest.Lock),
	})
}

// backoff is the n-th wait of a series that doubles.
func backoff(first, most time.Duration, n int) time.Duration {
	return min(first<<min(max(n-1, 0), 20), most)
}
