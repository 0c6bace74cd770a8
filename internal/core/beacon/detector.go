package beacon

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// Event is Look, Datagram, Members, Acknowledge or Found.
type Event interface{ isEvent() }

// Look is a look at this node's own guests: all claims of its Recorder. It comes each SampleEvery, and is the clock by
// which the detector knows that it was awake.
type Look struct{ Claims []Claim }

// Datagram is a message that arrived, its signature good, on a socket of Network.
type Datagram struct {
	Network Network
	Message Message
}

// Members are the names of all members; the others' messages are foreign.
type Members struct{ Names []string }

// Acknowledge ends an alarm: a person has seen it. If the guest runs twice after that, there is a new one.
type Acknowledge struct{ ID string }

// Found says that this node came upon a QEMU that runs a guest of Owner's, and ends it. That is an alarm by itself: it is ended before
// enough looks have seen it, and what it did before the first of them nobody has claimed.
type Found struct {
	VMID  model.VMID
	Owner string
	// Epoch is this node's. Since is when the process was started, on this node's clock.
	Epoch uint64
	Since time.Duration
}

func (Look) isEvent()        {}
func (Datagram) isEvent()    {}
func (Members) isEvent()     {}
func (Acknowledge) isEvent() {}
func (Found) isEvent()       {}

// Counters count what became of datagrams. They only rise.
type Counters struct {
	// Accepted were used.
	Accepted uint64
	// Foreign were signed by the cluster, but not for this node and network, or not by a member.
	Foreign uint64
	// Stale were no newer than the last one of their sender on their network: overtaken, doubled or recorded.
	Stale uint64
	// Unconfirmed were of a boot of which nothing yet proves that it is the present one; the first of each boot are.
	Unconfirmed uint64
	// Boots were found to be new.
	Boots uint64
	// ClockBreaks: a clock, here or there, stood still or jumped.
	ClockBreaks uint64
	// Alarms were raised.
	Alarms uint64
}

// Silence says how long a member was not heard of while this node listened.
type Silence struct {
	// Any is the time since the last message on any network, Networks on each, by Network.
	Any      time.Duration
	Networks [2]time.Duration
	// Ever: it was heard of at all; if not, the times count from when this node began to listen.
	Ever bool
}

// Detector finds double runs. It is not safe for concurrent use.
type Detector struct {
	self, boot string
	began      time.Duration // nothing from before is claimed
	looked     time.Duration // the last Look
	awake      time.Duration // since then without a Gap
	pruned     time.Duration
	peers      map[string]*peer
	guests     map[model.VMID][]*run
	alarms     map[pair]*Alarm
	acked      map[pair]time.Duration // until then everything is known to a person
	suspicions map[pair]suspicion
	counters   Counters
}

// peer is another member.
type peer struct {
	boot    string // "" until one is confirmed
	seq     [networks]uint64
	heard   [networks]time.Duration
	ever    bool
	claimed uint64        // the beat whose claims were taken in last
	echo    Echo          // what it is told of its own messages
	echoed  time.Duration // the newest of this node's messages that it has proved to have received
	sent    time.Duration // the newest of its own, on its clock
	floor   time.Duration // here: what was before cannot be placed, because a clock stood still or may have
	offset  offset
	// again is when it was heard of after a silence, here. Until it has proved to have received something that was sent
	// since then, its clock may have stood still: located is false, and nothing of it is compared.
	again   time.Duration
	located bool
}

// last is when it was heard of last on any network.
func (p *peer) last() time.Duration { return max(p.heard[Management], p.heard[Cluster]) }

// suspicion is an overlap that was certain at at, of two runs by the name of their nodes.
type suspicion struct {
	at   time.Duration
	x, y *run
}

// run is a claim and who made it.
type run struct {
	Claim
	node string
}

// NewDetector knows no member and has the alarms that an earlier life left unacknowledged. boot is this
// node's boot id.
func NewDetector(now time.Duration, self, boot string, alarms []Alarm) *Detector {
	d := &Detector{
		self: self, boot: boot, began: now, looked: now, awake: now, pruned: now,
		peers: map[string]*peer{}, guests: map[model.VMID][]*run{}, alarms: map[pair]*Alarm{}, acked: map[pair]time.Duration{},
		suspicions: map[pair]suspicion{},
	}
	for _, a := range alarms {
		a.Raised, a.Last = min(a.Raised, now), min(a.Last, now) // another boot's clock may have been ahead
		d.alarms[a.pair()] = &a
	}
	return d
}

// Step takes an event in and returns the alarms that it raises, which only a Look and a Found do. An overlap that goes on under an alarm that is not
// acknowledged raises none, but renews that one's evidence. now never goes back.
func (d *Detector) Step(now time.Duration, ev Event) []Alarm {
	switch ev := ev.(type) {
	case Look:
		return d.look(now, ev.Claims)
	case Datagram:
		d.receive(now, ev.Network, ev.Message)
	case Members:
		d.setMembers(now, ev.Names)
	case Found:
		return d.found(now, ev)
	case Acknowledge:
		for p, a := range d.alarms {
			if a.ID == ev.ID {
				delete(d.alarms, p)
				d.acked[p] = now
			}
		}
	}
	return nil
}

// Alarms returns those that are not acknowledged, by their id.
func (d *Detector) Alarms() []Alarm {
	all := make([]Alarm, 0, len(d.alarms))
	for _, a := range d.alarms {
		all = append(all, *a)
	}
	slices.SortFunc(all, func(a, b Alarm) int { return cmp.Compare(a.ID, b.ID) })
	return all
}

// Counters returns what was counted so far.
func (d *Detector) Counters() Counters { return d.counters }

// Echo is what the next message to a member has to carry.
func (d *Detector) Echo(to string) Echo {
	if p := d.peers[to]; p != nil {
		return p.echo
	}
	return Echo{}
}

// Silence says how long a member has been silent; ok is false for this node and for whoever is no member. Time that this
// node slept through does not count.
func (d *Detector) Silence(now time.Duration, node string) (s Silence, ok bool) {
	p := d.peers[node]
	if p == nil {
		return Silence{}, false
	}
	now = min(now, d.looked+Gap)
	since := func(heard time.Duration) time.Duration { return max(0, now-max(heard, d.awake)) }
	for n := range p.heard {
		s.Networks[n] = since(p.heard[n])
	}
	s.Any, s.Ever = min(s.Networks[Management], s.Networks[Cluster]), p.ever
	return s, true
}

func (d *Detector) setMembers(now time.Duration, names []string) {
	wanted := make(map[string]bool, len(names))
	for _, name := range names {
		if name == d.self {
			continue
		}
		wanted[name] = true
		if d.peers[name] == nil {
			d.peers[name] = &peer{offset: newOffset(now), heard: [networks]time.Duration{now, now}}
		}
	}
	for name := range d.peers {
		if !wanted[name] {
			delete(d.peers, name)
			d.forget(name)
		}
	}
}

func (d *Detector) look(now time.Duration, own []Claim) []Alarm {
	if now-d.looked > Gap {
		d.awake = now
	}
	d.looked = now
	if now-d.pruned > window {
		d.prune(now)
	}
	d.takeIn(now, d.self, own)
	return d.confirm(now)
}

func (d *Detector) receive(now time.Duration, network Network, m Message) {
	p := d.peers[m.From]
	if p == nil || m.To != d.self || m.Network != network {
		d.counters.Foreign++
		return
	}
	p.noteEcho(now, m)
	fresh := m.Echo.Boot == d.boot && m.Echo.Sent <= now
	switch {
	case m.Boot != p.boot && (!fresh || m.Echo.Sent < d.began || m.Echo.Sent <= p.echoed):
		d.counters.Unconfirmed++
		return
	case m.Boot != p.boot:
		d.counters.Boots++
		d.forget(m.From)
		*p = peer{
			boot: m.Boot, offset: newOffset(now), heard: p.heard,
			echo: Echo{Boot: m.Boot, Sent: m.Sent, Arrived: now},
		}
	case m.Seq <= p.seq[network]:
		d.counters.Stale++
		return
	}
	d.counters.Accepted++
	if now-p.last() > Gap || !p.ever {
		p.again, p.located = now, false
	}
	p.seq[network], p.heard[network], p.ever = m.Seq, now, true
	p.sent = max(p.sent, m.Sent)
	if fresh {
		p.echoed = max(p.echoed, m.Echo.Sent)
		if !p.located && m.Echo.Sent >= p.again {
			p.located = true
			if !p.offset.resume(now) {
				p.floor = now
			}
		}
	}
	if p.located {
		d.locate(now, p, m, fresh)
	}
	if m.Seq == p.claimed {
		return // the other network was faster
	}
	p.claimed = m.Seq
	d.takeIn(now, m.From, m.Claims)
}

// noteEcho notes the newest message of the sender. Another boot is only told of after the present one
// fell silent for two beats: recordings of an old one must not come in between.
func (p *peer) noteEcho(now time.Duration, m Message) {
	if m.Boot == p.echo.Boot && m.Sent > p.echo.Sent || m.Boot != p.echo.Boot && now-p.echo.Arrived > 2*Beat || p.echo.Boot == "" {
		p.echo = Echo{Boot: m.Boot, Sent: m.Sent, Arrived: now}
	}
}

// locate bounds where the sender's clock stands.
func (d *Detector) locate(now time.Duration, p *peer, m Message, fresh bool) {
	b := bounds{lo: math.MinInt64, hi: now - m.Sent}
	if fresh && now-m.Echo.Sent <= 2*window {
		b.lo = m.Echo.Sent - m.Echo.Arrived
	}
	if !p.offset.note(now, b) {
		d.counters.ClockBreaks++
		p.floor = now
	}
}

// forget drops what a node claimed.
func (d *Detector) forget(node string) {
	for id, runs := range d.guests {
		d.keep(id, slices.DeleteFunc(runs, func(r *run) bool { return r.node == node }))
	}
}

func (d *Detector) keep(id model.VMID, runs []*run) {
	if len(runs) == 0 {
		delete(d.guests, id)
		return
	}
	d.guests[id] = runs
}

// prune drops what is too old to be compared with anything that is yet to come.
func (d *Detector) prune(now time.Duration) {
	d.pruned = now
	for id, runs := range d.guests {
		d.keep(id, slices.DeleteFunc(runs, func(r *run) bool {
			latest := now
			if p := d.peers[r.node]; p != nil {
				latest = p.sent
			}
			return r.Until < latest-remember
		}))
	}
	for p, at := range d.acked {
		if at < now-horizon {
			delete(d.acked, p)
		}
	}
}

// takeIn adds a node's claims, or extends what is known of the same runs, and looks at each for a second one.
func (d *Detector) takeIn(now time.Duration, node string, claims []Claim) {
	for _, c := range claims {
		runs := d.guests[c.VMID]
		i := slices.IndexFunc(runs, func(r *run) bool { return r.node == node && r.same(c) })
		if i < 0 {
			i = len(runs)
			runs = append(runs, &run{Claim: c, node: node})
			d.guests[c.VMID] = runs
		}
		r := runs[i]
		r.Until, r.Ended = max(r.Until, c.Until), r.Ended || c.Ended
		for _, other := range runs {
			if other.node != node {
				d.compare(now, r, other)
			}
		}
	}
}

// clock bounds the offset of a node's clock, drift included; ok is false while there is no bound.
func (d *Detector) clock(node string) (b bounds, ok bool) {
	if node == d.self {
		return bounds{}, true
	}
	p := d.peers[node]
	if p == nil || !p.located || !p.offset.get().known() {
		return bounds{}, false
	}
	b = p.offset.get()
	return bounds{lo: b.lo - slack, hi: b.hi + slack}, true
}

// since is where a run is taken to begin, on the clock of its node: never so long ago that the drift is more than slack.
func (d *Detector) since(r *run) time.Duration {
	p := d.peers[r.node]
	if p == nil {
		return r.Since
	}
	return max(r.Since, p.sent-horizon)
}

// floor is the instant, here, before which nothing of two nodes is compared.
func (d *Detector) floor(key pair) time.Duration {
	floor := max(d.began, d.acked[key])
	for _, node := range []string{key.a, key.b} {
		if p := d.peers[node]; p != nil {
			floor = max(floor, p.floor)
		}
	}
	return floor
}

// compare suspects a double run if two runs of a guest overlapped for certain, after what was acknowledged.
func (d *Detector) compare(now time.Duration, x, y *run) {
	if x.node > y.node {
		x, y = y, x
	}
	a, ok := d.judge(x, y)
	key := pairOf(x.VMID, x.node, y.node)
	switch old, pending := d.suspicions[key]; {
	case !ok:
	case d.alarms[key] != nil:
		d.alarms[key].renew(now, a)
	case pending:
		d.suspicions[key] = suspicion{at: old.at, x: x, y: y}
	default:
		d.suspicions[key] = suspicion{at: now, x: x, y: y}
	}
}

// judge says whether two runs of a guest, by the name of their nodes, overlapped for certain, and how.
func (d *Detector) judge(x, y *run) (Alarm, bool) {
	bx, okx := d.clock(x.node)
	by, oky := d.clock(y.node)
	if !okx || !oky {
		return Alarm{}, false
	}
	overlap := d.overlap(x, y, bx, by, d.floor(pairOf(x.VMID, x.node, y.node)))
	if overlap <= Tolerance {
		return Alarm{}, false
	}
	a := Alarm{VMID: x.VMID, Runs: [2]Run{d.evidence(x, bx), d.evidence(y, by)}, Overlap: overlap}
	a.Last = min(a.Runs[0].Until, a.Runs[1].Until)
	return a, true
}

// confirm turns the suspicions that are old enough into alarms, if they still stand.
func (d *Detector) confirm(now time.Duration) []Alarm {
	var raised []Alarm
	for key, s := range d.suspicions {
		if now-s.at < Confirm {
			continue
		}
		delete(d.suspicions, key)
		a, ok := d.judge(s.x, s.y)
		if !ok {
			continue
		}
		a.ID = alarmID(now, key)
		a.Raised = now
		a.describe(now)
		d.alarms[key] = &a
		d.counters.Alarms++
		raised = append(raised, a)
	}
	slices.SortFunc(raised, func(a, b Alarm) int { return cmp.Compare(a.ID, b.ID) })
	return raised
}

// found raises the alarm about what this node came upon, unless there is one about the two nodes.
func (d *Detector) found(now time.Duration, f Found) []Alarm {
	key := pairOf(f.VMID, d.self, f.Owner)
	if d.alarms[key] != nil {
		return nil
	}
	own := Run{Node: d.self, Boot: d.boot, Epoch: f.Epoch, Since: f.Since, Until: now, Ended: true}
	owner := Run{Node: f.Owner}
	if p := d.peers[f.Owner]; p != nil {
		owner.Boot = p.boot
	}
	a := Alarm{
		ID: alarmID(now, key), VMID: f.VMID, Runs: [2]Run{own, owner}, Raised: now, Last: now, Found: true,
		Evidence: fmt.Sprintf("%s found a process that ran it, not frozen, %v after that was started, and ends it; epoch %d", d.self, round(now-f.Since), f.Epoch),
	}
	d.alarms[key] = &a
	d.counters.Alarms++
	return []Alarm{a}
}

func alarmID(now time.Duration, key pair) string {
	return fmt.Sprintf("%d-%s-%s-%d", key.vmid, key.a, key.b, now.Milliseconds())
}

// renew takes over later evidence of the same double run.
func (a *Alarm) renew(now time.Duration, later Alarm) {
	if later.Last <= a.Last {
		return
	}
	a.Runs, a.Last, a.Found = later.Runs, later.Last, false
	a.Overlap = max(a.Overlap, later.Overlap)
	a.describe(now)
}

// overlap is the time that x and y both ran for certain. It is a concave function of where the two clocks
// stand, so its least value is at a corner of their bounds.
func (d *Detector) overlap(x, y *run, bx, by bounds, floor time.Duration) time.Duration {
	least := time.Duration(math.MaxInt64)
	for _, ox := range []time.Duration{bx.lo, bx.hi} {
		for _, oy := range []time.Duration{by.lo, by.hi} {
			begin := max(d.since(x)+ox, d.since(y)+oy, floor)
			least = min(least, min(x.Until+ox, y.Until+oy)-begin)
		}
	}
	return least
}

func (d *Detector) evidence(r *run, b bounds) Run {
	e := Run{
		Node: r.node, Boot: d.boot, Epoch: r.Epoch, Revision: r.Revision,
		Since: d.since(r) + b.hi, Until: r.Until + b.lo, Clock: (b.hi - b.lo) / 2, Ended: r.Ended,
	}
	if p := d.peers[r.node]; p != nil {
		e.Boot = p.boot
	}
	return e
}
