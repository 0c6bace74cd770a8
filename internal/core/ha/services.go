package ha

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"sauh.dev/sauh/internal/core/place"
	"sauh.dev/sauh/internal/core/pveconf"
)

// services looks at every guest whose node is there.
func (d *decision) services() {
	var starts []*Guest
	evaluate := d.view.Rules != nil
	for i := range d.view.Guests {
		g := &d.view.Guests[i]
		n := d.nodes[g.Node]
		if n == nil || !d.isHA(g.VMID) || d.undecided(*g) {
			continue
		}
		st := d.view.Statuses[g.VMID]
		evaluate = evaluate || n.leaving != "" || st.Away != ""
		if d.service(n, g, st) {
			starts = append(starts, g)
		}
	}
	d.strayCommands()
	if len(starts) == 0 && !evaluate && !d.view.Policy.Rebalance || !d.assembled() {
		return
	}
	moves := make(map[string]place.Move)
	if evaluate {
		for _, m := range d.placing().planner.Evaluate() {
			moves[m.SID] = m
		}
	}
	d.permit(starts, moves)
	for _, sid := range slices.Sorted(maps.Keys(moves)) {
		d.take(moves[sid])
	}
	d.rebalance()
}

// assembled: every member is there, or the manager has waited for those that are just booting as it did itself. Who places guests before
// that places them again afterwards.
func (d *decision) assembled() bool {
	if d.now-d.since >= d.p.Suspect {
		return true
	}
	for _, n := range d.nodes {
		if n.Name != d.self && !n.online(d.p) {
			d.out.wake(d.since + d.p.Suspect)
			return false
		}
	}
	return true
}

// service decides about one guest. It reports whether the guest waits for the word to start.
func (d *decision) service(n *node, g *Guest, st StatusRecord) (waits bool) {
	_, migrating := d.view.Intents[g.VMID]
	state := d.view.Resources[g.VMID]
	switch {
	case n.disarm != Armed:
		d.rest(g, st, n.disarm)
	case n.frozen != "":
		d.frozen(g, st, n.frozen)
	case st.State == StatusError:
		d.failed(n, g, st, state)
	case !n.online(d.p) || migrating:
	case st.moving() && st.Node == g.Node:
		d.checkTarget(g, st)
	case d.command(n, g, st):
	case state != pveconf.HAStarted:
	case len(n.lostOf(g)) > 0: // before what it failed at: that came of it
		d.flee(n, g, st)
	case d.gaveUp(g, st):
		d.elsewhere(g, st)
	default:
		return d.awaits() && needsPermit(st, g.Node)
	}
	return false
}

func (d *decision) awaits() bool { return AwaitsManager(d.view.Policy, d.view.Rules) }

// needsPermit: by its record the guest does not run and nobody has allowed it to start.
func needsPermit(st StatusRecord, node string) bool {
	switch st.State {
	case "", StatusStopped, StatusStopping, StatusIgnored:
		return true
	default:
		return st.Hold != "" && st.Node == node
	}
}

// rest refuses commands and marks a guest for which HA is disarmed.
func (d *decision) rest(g *Guest, st StatusRecord, how Disarm) {
	d.drop(g, "HA is disarmed")
	switch {
	case st.State == StatusError:
	case how == DisarmIgnore:
		d.rewrite(g, st, StatusIgnored, "HA is disarmed: as if it were no HA resource")
	default:
		d.rewrite(g, st, StatusFreeze, "HA is disarmed: it stays as it is")
	}
}

func (d *decision) frozen(g *Guest, st StatusRecord, why string) {
	if st.State != StatusError {
		d.rewrite(g, st, StatusFreeze, why)
	}
}

// rewrite changes the state of a record and nothing that is to be remembered.
func (d *decision) rewrite(g *Guest, st StatusRecord, to StatusState, why string) {
	next := st.Status
	next.State, next.Node, next.Target, next.Reason = to, g.Node, "", why
	if d.shown < maxShown && !st.Says(next) {
		d.shown++
		d.set(*g, next, 0)
	}
}

// maxShown bounds the records that one look writes for show: the next look goes on.
const maxShown = 256

// failed minds a guest in error: nothing is done but what a person asks for by disabling it. The owner's worker does it, if it is there.
func (d *decision) failed(n *node, g *Guest, st StatusRecord, state pveconf.HAState) {
	d.drop(g, "the service is in error: disable it first")
	if state == pveconf.HADisabled && !n.online(d.p) {
		d.set(*g, Status{State: StatusStopped, Node: g.Node, Reason: "it was in error and is disabled", Log: st.Log}, 0)
	}
}

// drop refuses the guest's command, if there is one.
func (d *decision) drop(g *Guest, why string) {
	if c, ok := d.view.Commands[g.VMID]; ok && c.Kind != CommandStop {
		d.out.add(DropCommand{VMID: g.VMID, Kind: g.Kind, Revision: c.Revision, Reason: why})
	}
}

// strayCommands are those for what is no HA resource, or has no guest.
func (d *decision) strayCommands() {
	for _, id := range slices.Sorted(maps.Keys(d.view.Commands)) {
		if !d.isHA(id) {
			d.out.add(DropCommand{VMID: id, Kind: d.view.Config[id].Kind, Revision: d.view.Commands[id].Revision, Reason: "it is no HA resource"})
		}
	}
}

// checkTarget takes a move back whose target is no place any more.
func (d *decision) checkTarget(g *Guest, st StatusRecord) {
	to := d.nodes[st.Target]
	why := ""
	switch {
	case st.Target == g.Node:
		return // it has arrived; its worker will say so
	case to == nil:
		why = st.Target + " is no member of the cluster any more"
	case !to.online(d.p):
		why = st.Target + " is not online"
	case to.shun != "":
		why = to.shun
	case len(to.lostOf(g)) > 0:
		why = to.hasLost(g)
	default:
		why = to.doubts(g)
	}
	if why == "" {
		d.wakeIn(d.p.Suspect - to.silence)
		return
	}
	next := st.Status
	next.State, next.Target, next.Reason = StatusStarting, "", "it stays on "+g.Node+": "+why
	next.MoveFailures++
	if k := len(next.Tried) - 1; k >= 0 && next.Tried[k] == g.Node { // it left because it did not start here, and no other was tried
		next.Tried = slices.Clone(next.Tried[:k])
	}
	if d.view.Resources[g.VMID] != pveconf.HAStarted {
		next.State = StatusStopped
	}
	d.set(*g, next, 0)
}

// command acts on a person's word, and reports whether there was one.
func (d *decision) command(n *node, g *Guest, st StatusRecord) bool {
	c, ok := d.view.Commands[g.VMID]
	if !ok || c.Kind == CommandStop {
		return false // the worker minds the time a stop may take
	}
	refusal, with := d.refusal(n, g, c)
	if refusal != "" {
		d.drop(g, refusal)
		return true
	}
	next := st.Status
	next.State, next.Node, next.Target, next.Reason = d.way(g, st), g.Node, c.Target, "a person asked for it"
	if c.Kind == CommandRelocate {
		next.State = StatusRelocate
	}
	if next.Away == c.Target {
		next.Away = ""
	}
	next.MoveFailures, next.Failures, next.Tried = 0, 0, nil
	d.set(*g, next, c.Revision)
	d.placing().planner.Move(g.SID(), c.Target)
	d.along(g, with, c.Target)
	return true
}

// refusal says why a command cannot be carried out, and else who must go along.
func (d *decision) refusal(n *node, g *Guest, c CommandRecord) (string, []string) {
	to := d.nodes[c.Target]
	switch {
	case c.Kind != CommandMigrate && c.Kind != CommandRelocate:
		return fmt.Sprintf("%q is no command that this version knows", c.Kind), nil
	case c.Target == g.Node:
		return "it is on " + c.Target + " already", nil
	case to == nil:
		return c.Target + " is no member of the cluster", nil
	case !to.online(d.p):
		return c.Target + " is not online", nil
	case to.shun != "":
		return to.shun, nil
	case g.Local != "":
		return "only " + n.Name + " has " + g.Local, nil
	case g.Lock != "":
		return "its configuration is locked (" + g.Lock + ")", nil
	}
	return d.placing().planner.Check(g.SID(), c.Target)
}

// along moves those that a rule keeps with g.
func (d *decision) along(g *Guest, with []string, target string) {
	for _, sid := range with {
		o := d.placing().guests[sid]
		if o == nil || o.Node == target || !d.isHA(o.VMID) || d.undecided(*o) {
			continue
		}
		st := d.view.Statuses[o.VMID]
		if _, migrating := d.view.Intents[o.VMID]; migrating || st.moving() && st.Node == o.Node || st.State == StatusError {
			continue
		}
		d.send(o, st, target, "it goes where "+g.SID()+" goes, by rule")
	}
}

// way is how a guest moves: live if it runs and can, else stopped.
func (d *decision) way(g *Guest, st StatusRecord) StatusState {
	if g.Kind == "ct" || g.NoLive != "" || st.State != StatusStarted {
		return StatusRelocate
	}
	return StatusMigrate
}

// send has the owner's worker bring a guest to target.
func (d *decision) send(g *Guest, st StatusRecord, target, why string) {
	next := st.Status
	next.State, next.Node, next.Target, next.Reason = d.way(g, st), g.Node, target, why
	if n := d.nodes[g.Node]; n != nil && n.leaving != "" && n.Health.NetworkDown == "" && next.Away == "" {
		next.Away = g.Node
	}
	if next.Away == target {
		next.Away = ""
	}
	d.set(*g, next, 0)
	d.moves[g.Node]++
	d.moves[target]++
	sent := d.sent[g.VMID]
	if sent.node != g.Node || d.now-sent.at > 10*d.p.MoveBackoffMax {
		sent = sending{node: g.Node}
	}
	d.sent[g.VMID] = sending{g.Node, sent.times + 1, d.now}
	d.placing().planner.Move(g.SID(), target)
}

// gaveUp: the worker has tried it here as often as it may.
func (d *decision) gaveUp(g *Guest, st StatusRecord) bool {
	conf, limited := d.view.Config[g.VMID]
	return limited && st.Node == g.Node && st.State == StatusStarting && st.Failures > conf.MaxRestart
}

// elsewhere finds the next node for a guest that did not start, or declares it in error.
func (d *decision) elsewhere(g *Guest, st StatusRecord) {
	conf := d.view.Config[g.VMID]
	next := st.Status
	next.Tried = append(slices.Clone(st.Tried), g.Node)
	next.Failures = 0
	if len(next.Tried) > conf.MaxRelocate {
		next.State, next.Target = StatusError, ""
		next.Reason = "it did not start on " + strings.Join(slices.Compact(slices.Clone(next.Tried)), ", ") + ", the last time because: " + st.Reason
		d.set(*g, next, 0)
		return
	}
	to := ""
	if g.Local == "" && g.Lock == "" {
		to, _ = d.placing().choose(*g, place.Request{Prefer: place.Next, Tried: next.Tried})
	}
	if to == "" || to == g.Node {
		next.State, next.Target, next.Reason = StatusStarting, "", "no other node is left to try: it is tried here once more, because: "+st.Reason
		d.set(*g, next, 0)
		return
	}
	_, with := d.placing().planner.Check(g.SID(), to)
	next.State, next.Target, next.Reason = StatusRelocate, to, "it did not start on "+g.Node+": "+st.Reason
	d.set(*g, next, 0)
	d.along(g, with, to)
}

// patience: the guest's last move failed a moment ago, or its worker did not understand it.
func (d *decision) patience(g *Guest, st StatusRecord) bool {
	var until time.Duration
	if sent := d.sent[g.VMID]; sent.node == g.Node {
		until = sent.at + backoff(d.p.MoveBackoff, d.p.MoveBackoffMax, sent.times)
	}
	if n := st.MoveFailures; n > 0 {
		w, ok := d.waits[g.VMID]
		if !ok || w.revision != int64(n) {
			w = wait{int64(n), d.now}
			d.waits[g.VMID] = w
		}
		until = max(until, w.since+backoff(d.p.MoveBackoff, d.p.MoveBackoffMax, n))
	}
	if d.now >= until {
		return false
	}
	d.out.wake(until)
	return true
}

// content: no rule drives the guest away; it would only be better off elsewhere.
func (d *decision) content(m place.Move) bool {
	refusal, with := d.placing().planner.Check(m.SID, m.From)
	return refusal == "" && len(with) == 0
}

// entangled: somebody of whom a rule says that it must be with the guest, or apart from it, was on its way when this look began. Only when it
// has arrived is it known where the guest belongs; to decide earlier would chase guests around.
func (d *decision) entangled(sid string) bool {
	if len(d.flying) == 0 {
		return false
	}
	mine := d.view.Rules.Of(sid)
	if mine == nil {
		return false
	}
	if d.anyFlying(mine.Together) {
		return true
	}
	for _, a := range mine.Apart {
		if d.flying[a.SID] {
			return true
		}
		if r := d.view.Rules.Of(a.SID); r != nil && d.anyFlying(r.Together) {
			return true
		}
	}
	return false
}

func (d *decision) anyFlying(sids []string) bool {
	return slices.ContainsFunc(sids, func(sid string) bool { return d.flying[sid] })
}

// countMoves counts the moves under way.
func (d *decision) countMoves() {
	d.moves, d.flying = make(map[string]int), make(map[string]bool)
	for i := range d.view.Guests {
		g := &d.view.Guests[i]
		if to := d.target(*g, d.view.Statuses[g.VMID]); to != "" && to != g.Node {
			d.moves[g.Node]++
			d.moves[to]++
			d.flying[g.SID()] = true
		}
	}
}

func (d *decision) full(node string) bool {
	return d.p.MovesPerNode > 0 && d.moves[node] >= d.p.MovesPerNode
}

// maxAdmissions bounds the work of one look for the failures to tolerate, as [place.Planner.Work] counts it: a fifth of a second in a big cluster,
// because a failover must not wait for it. The last admission may go beyond.
const maxAdmissions = place.DefaultBudget / 5

// permit says for each guest that waits for it whether, and where, it starts. Those that a rule sends elsewhere go there first. Who was refused
// is looked at again after those who were not, so that he keeps nobody waiting.
func (d *decision) permit(starts []*Guest, moves map[string]place.Move) {
	slices.SortStableFunc(starts, func(a, b *Guest) int {
		return cmp.Or(cmp.Compare(d.refusedAt(a), d.refusedAt(b)), d.byOrder(*a, *b), cmp.Compare(a.VMID, b.VMID))
	})
	for _, g := range starts {
		st := d.view.Statuses[g.VMID]
		if st.Hold != "" && d.heldLately(g) {
			continue
		}
		if d.place != nil && d.place.planner.Work() >= maxAdmissions {
			d.queue(g, st)
			continue
		}
		m := moves[g.SID()]
		delete(moves, g.SID())
		if d.oneByOne() {
			m = d.destination(g, st)
		}
		if m.To != "" && d.entangled(m.SID) {
			continue // the arrival of the others is a new look
		}
		d.allow(g, st, m)
	}
}

// refusedAt is when the guest's start was refused, 0 if it was not.
func (d *decision) refusedAt(g *Guest) time.Duration {
	if d.view.Statuses[g.VMID].Hold == "" {
		return 0
	}
	return d.waits[g.VMID].since
}

// heldLately: what holds it back was looked at a moment ago.
func (d *decision) heldLately(g *Guest) bool {
	w, ok := d.waits[g.VMID]
	if !ok || d.now-w.since >= d.p.Permit {
		return false
	}
	d.out.wake(w.since + d.p.Permit)
	return true
}

// queue leaves a guest to the next look. Its worker is told, or it would take silence for a yes.
func (d *decision) queue(g *Guest, st StatusRecord) {
	d.wakeIn(d.p.Poll)
	if st.Hold != "" || d.view.Policy.WarnOnly {
		return
	}
	next := st.Status
	next.Node, next.Target, next.State, next.Hold = g.Node, "", StatusStopped, "it waits until others are admitted"
	next.Reason = next.Hold
	d.set(*g, next, 0)
}

// destination is where a guest that has no place yet is to start, with To "" for its own node.
func (d *decision) destination(g *Guest, st StatusRecord) place.Move {
	if g.Local != "" || g.Lock != "" {
		return place.Move{}
	}
	how := place.Request{Prefer: place.Stay}
	if d.view.Policy.RebalanceOnStart {
		how.Prefer = place.Best
	}
	to, verdicts := d.placing().find(*g, how)
	if to == "" || to == g.Node {
		return place.Move{}
	}
	return place.Move{SID: g.SID(), From: g.Node, To: to, Reason: place.Explain(verdicts)}
}

func (d *decision) allow(g *Guest, st StatusRecord, m place.Move) {
	next := st.Status
	next.Node, next.Target, next.Hold, next.State, next.Reason = g.Node, "", "", StatusStarting, "it may start"
	to := d.nodes[m.To]
	if g.Local == "" && g.Lock == "" && m.To != "" && to.online(d.p) && to.shun == "" {
		next.State, next.Target, next.Reason = StatusRelocate, m.To, m.Reason
	}
	d.admit(g, &next)
	delete(d.waits, g.VMID)
	if next.Hold != "" {
		next.State, next.Target, next.Reason = StatusStopped, "", next.Hold
		d.waits[g.VMID] = wait{st.Revision, d.now}
		d.wakeIn(d.p.Permit)
	}
	d.set(*g, next, 0)
}

// admit refuses a start after which the cluster could not take the failures it is to tolerate. What starts counts for the next one.
func (d *decision) admit(g *Guest, next *Status) {
	if !d.oneByOne() {
		return
	}
	on := cmp.Or(next.Target, g.Node)
	r := d.placing().request(*g, place.Request{})
	pol := d.view.Policy
	if pol.Tolerate <= 0 {
		d.placing().planner.Place(r, on)
		return
	}
	why := d.placing().planner.Admit(r, on, pol.Tolerate)
	switch {
	case why == "":
	case pol.WarnOnly:
		next.Reason += "; but " + why
		d.placing().planner.Place(r, on)
	default:
		next.Hold = why
	}
}

// take carries a move of the placement's out, if nothing else is going on with the guest.
func (d *decision) take(m place.Move) {
	p := d.placing()
	g := p.guests[m.SID]
	if g == nil || d.undecided(*g) || !d.isHA(g.VMID) || g.Local != "" || g.Lock != "" {
		return
	}
	st, from, to := d.view.Statuses[g.VMID], d.nodes[g.Node], d.nodes[m.To]
	_, busy := d.view.Intents[g.VMID]
	switch {
	case busy || from == nil || to == nil || g.Node != m.From || !from.online(d.p) || !to.online(d.p):
	case st.moving() && st.Node == g.Node || st.State != StatusStarted && st.State != StatusStarting:
	case len(from.lostOf(g)) > 0 || len(to.lostOf(g)) > 0 || to.doubts(g) != "": // see flee
	case to.shun != "" || to.quarantined && from.leaving == "" && d.content(m):
	case d.gaveUp(g, st) || d.patience(g, st):
	case from.leaving == "" && d.entangled(m.SID):
	case len(m.With) == 0 && (d.full(m.From) || d.full(m.To)): // those that must be together move together
	default:
		why := m.Reason
		if from.leaving != "" {
			why = from.leaving
		} else if st.Away == m.To {
			why = m.To + " is there again"
		}
		d.send(g, st, m.To, why)
	}
}

// rebalance moves guests for a better balance.
func (d *decision) rebalance() {
	pol := d.view.Policy
	if !pol.Rebalance || d.view.Mode.At(d.view.Unix) != Armed {
		return
	}
	next, moves, wake := d.balancer.Step(d.now, d.placing().cluster, pol.Balance)
	d.balancer = next
	if wake > 0 {
		d.out.wake(max(wake, d.now+time.Millisecond))
	}
	if pol.Placing == place.Dynamic {
		d.wakeIn(d.p.Remeasure)
	}
	for _, m := range moves {
		d.take(m)
	}
}
