package ha

import (
	"fmt"
	"slices"
	"time"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/place"
)

// node is what a decision knows of a member.
type node struct {
	Member
	silence time.Duration // of its record, by now
	heard   time.Duration // since the last sign of life by any path, by now
	ends    NodeEnd       // it ends in order, "" if not
	disarm  Disarm
	// take: its guests may be taken, covers says which (as model.Live.Covers) and why says why. powerOff: its power is proved off.
	take     bool
	covers   string
	why      string
	powerOff bool
	// refused are the guests that a storage is proved to keep from writing, by this manager's proofs.
	refused []model.VMID
	// frozen says why its guests are left as they are, "" if they are not.
	frozen string
	// leaving says why its guests are to leave, shun why none is to come, "" each if not so.
	leaving, shun string
	// quarantined: it is a target only if there is no other.
	quarantined bool
}

// survey judges all members.
func (d *decision) survey() {
	d.nodes = make(map[string]*node, len(d.view.Members))
	d.names = make([]string, 0, len(d.view.Members))
	for _, m := range d.view.Members {
		d.nodes[m.Name] = d.judge(m)
		d.names = append(d.names, m.Name)
	}
}

func (d *decision) judge(m Member) *node {
	n := &node{Member: m}
	if m.Name != d.self {
		n.silence, n.heard = m.Silence+d.now-d.seen, m.Heard+d.now-d.seen
		if m.Heard == 0 {
			n.heard = 0 // the agent does not tell
		}
	}
	if m.Mode.Ends != "" && m.Mode.BootID == m.Live.BootID {
		n.ends = m.Mode.Ends
	}
	if n.disarm = d.view.Mode.At(d.view.Unix); n.disarm == Armed {
		n.disarm = m.Request.DisarmAt(d.view.Unix)
	}
	d.freeze(n)
	d.mayTake(n)
	d.welcome(n)
	return n
}

// freeze says whether the node's guests wait for it: it ends in order, and has either said goodbye or is still there.
func (d *decision) freeze(n *node) {
	if n.ends == "" || n.Live.Fenced {
		return
	}
	switch {
	case !n.Live.Left && (n.MayTake || n.silence >= d.p.Suspect):
		// It fell silent before it was through: it crashed, and is asked about and waited for like every other.
	case d.view.Policy.freezes(n.ends):
		n.frozen = fmt.Sprintf("%s ends in order (%s), and its guests wait for it", n.Name, n.ends)
		if n.Name != d.self && !n.Live.Left {
			d.wakeIn(d.p.Suspect - n.silence)
		}
	case n.Live.Left && n.ends == EndsReboot && n.silence < d.p.RebootPatience:
		n.frozen = fmt.Sprintf("%s reboots, and its guests wait for it for %s", n.Name, d.p.RebootPatience)
		d.wakeIn(d.p.RebootPatience - n.silence)
	}
}

// mayTake says whether the node's guests may be taken: by its lease, or by a proof.
func (d *decision) mayTake(n *node) {
	if n.Name == d.self || n.LiveRevision == 0 || n.frozen != "" || n.disarm != Armed {
		return
	}
	var pr proven
	pr, n.refused = d.proof(n)
	n.powerOff = pr.method != "" && !pr.blocklist
	switch {
	case n.Live.Fenced:
		n.take, n.covers = true, n.Live.Covers
		if n.powerOff || d.leaseOver(n) {
			n.covers = ""
		}
	case n.MayTake:
		n.take, n.why = true, n.Why
	case pr.method != "":
		n.take, n.why = true, pr.sentence(n.Name)
		if pr.blocklist {
			n.covers = model.CoversGuests(n.refused)
		}
	}
}

// leaseOver: a node that was cut has no valid lease any more, because no renewal is later than the cut.
func (d *decision) leaseOver(n *node) bool {
	since := n.silence // since the cut arrived
	if q := d.inquests[n.Name]; q != nil && q.renewed {
		since = max(since, d.now-q.lastRenewal)
	}
	if since < d.p.TakeAfter {
		if n.Live.Covers != "" {
			d.wakeIn(d.p.TakeAfter - since)
		}
		return false
	}
	return true
}

// welcome says whether guests may come, or must leave.
func (d *decision) welcome(n *node) {
	switch {
	case n.Request.Maintenance:
		n.leaving = n.Name + " is in maintenance"
	case n.ends != "" && n.ends != EndsRestart && d.view.Policy.Shutdown == ShutdownMigrate:
		n.leaving = fmt.Sprintf("%s ends in order (%s)", n.Name, n.ends)
	case n.Health.NetworkDown != "":
		n.leaving = fmt.Sprintf("the link of the guests' network %s of %s is down", n.Health.NetworkDown, n.Name)
	}
	switch {
	case n.leaving != "":
		n.shun = n.leaving
	case n.ends != "":
		n.shun = fmt.Sprintf("%s ends in order (%s)", n.Name, n.ends)
	case n.disarm != Armed:
		n.shun = "HA is disarmed on " + n.Name
	}
	n.quarantined = d.flaps(n)
}

// flaps: the node was silent too often of late.
func (d *decision) flaps(n *node) bool {
	if d.view.Unix == 0 || d.p.FlapCount == 0 {
		return false
	}
	s := n.History.Silences
	if len(s) < d.p.FlapCount {
		return false
	}
	last, first := s[len(s)-1].Unix, s[len(s)-d.p.FlapCount].Unix
	left := last + int64(d.p.Quarantine/time.Second) - d.view.Unix
	if last-first > int64(d.p.FlapWindow/time.Second) || left <= 0 {
		return false
	}
	d.wakeIn(time.Duration(left) * time.Second)
	return true
}

// noteSilences keeps the histories.
func (d *decision) noteSilences() {
	if d.view.Unix == 0 {
		return
	}
	silent := 0
	for _, n := range d.nodes {
		if n.silence >= d.p.Suspect && !n.Live.Left && !n.Live.Fenced {
			silent++
		}
	}
	if 2*silent > len(d.names) {
		return // rather this node was
	}
	for _, name := range d.names {
		n := d.nodes[name]
		known := func(s Silence) bool { return s.Revision == n.LiveRevision }
		if n.LiveRevision == 0 || n.Live.Fenced || n.Live.Left || n.silence < d.p.Suspect || slices.ContainsFunc(n.History.Silences, known) {
			continue
		}
		h := append(slices.Clone(n.History.Silences), Silence{n.LiveRevision, d.view.Unix})
		d.out.add(NoteHistory{
			Node: name, Revision: n.HistoryRevision, History: History{h[max(0, len(h)-2*d.p.FlapCount):]},
			Reason: fmt.Sprintf("nothing came for %s", n.silence.Round(100*time.Millisecond)),
		})
	}
}

// online: the node is there and its guests can be worked with.
func (n *node) online(p Params) bool {
	return n != nil && n.LiveRevision != 0 && !n.Live.Fenced && !n.Live.Left && !n.take && n.silence < p.Suspect
}

// state is the node's as the placement knows it.
func (d *decision) state(n *node) place.NodeState {
	switch {
	case n.LiveRevision == 0 || n.Live.Left:
		return place.Offline
	case n.Live.Fenced:
		return place.Fenced
	case n.take || n.MayTake && n.Name != d.self || n.silence >= d.p.Suspect:
		return place.Suspect
	case n.leaving != "":
		return place.Maintenance
	default:
		return place.Online
	}
}
