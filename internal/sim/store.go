package sim

import (
	"time"

	"sauh.dev/sauh/internal/core/model"
)

// record is a key of the store with its value, which nobody changes once it is written.
type record struct {
	key         string
	val         any
	create, mod int64
}

// cond and op are a transaction's compare and write; mod 0 demands that there is no key, val nil deletes.
type cond struct {
	key string
	mod int64
}

type op struct {
	key string
	val any
}

// change is one entry of the log.
type change struct {
	rev  int64
	by   *node // who asked for it
	recs []record
}

// store is the replicated memory: one log, kept by whoever leads. The members are the nodes' agents.
type store struct {
	s          *sim
	data       map[string]record
	rev        int64
	log        []change
	leader     *node // nil while there is none
	term       int
	voting     bool       // an election is under way
	limbo      []*request // proposals of a leader that lost its majority: each may be committed yet
	slow       time.Duration
	duplicates int // so many proposals arrive twice
}

// The store's times, from measurements of three embedded members.
const (
	commitLeast     = 1500 * time.Microsecond
	commitMost      = 4 * time.Millisecond
	readLeast       = 400 * time.Microsecond
	readMost        = 1200 * time.Microsecond
	electionLeast   = time.Second
	electionMost    = 2 * time.Second
	attemptTime     = 400 * time.Millisecond // until an attempt without an answer is repeated
	requestDeadline = time.Second            // until the client is told that there is no quorum
)

// request is a transaction or, with read set, a linearizable read of one key.
type request struct {
	a         *agent
	read      string
	conds     []cond
	ops       []op
	done      func(reply)
	deadline  time.Duration
	sent      time.Duration // when the first attempt left, true time
	committed int64         // the revision, once it is
}

// reply is what a client gets. err is nil, model.ErrConflict or model.ErrNoQuorum; a missing key is a record with mod 0.
type reply struct {
	rev int64
	rec record
	err error
}

// member reports whether n's member of the store takes part.
func (n *node) member() bool { return n.agentProc.runs() }

// hears reports whether n's member can keep leader company, in both directions.
func (st *store) hears(leader, n *node) bool {
	return n.member() && (leader == n || st.s.linked(leader, n) && st.s.linked(n, leader))
}

// majority reports whether leader reaches enough members.
func (st *store) majority(leader *node) bool {
	if !leader.member() {
		return false
	}
	count := 0
	for _, n := range st.s.nodes {
		if st.hears(leader, n) {
			count++
		}
	}
	return count > len(st.s.nodes)/2
}

// topology is told of every change of who can speak to whom.
func (st *store) topology() {
	st.s.topology()
	defer st.s.quorumKick()
	if st.leader != nil && st.majority(st.leader) {
		st.catchUp()
		return
	}
	if st.leader != nil {
		st.s.trace(st.leader, "store: leader without a majority")
		st.leader = nil
		st.term++
	}
	st.elect()
}

// elect finds a leader after a while, if there can be one.
func (st *store) elect() {
	if st.voting {
		return
	}
	st.voting = true
	st.s.after(st.s.rng.between(electionLeast, electionMost), nil, func() {
		st.voting = false
		first := st.s.rng.n(len(st.s.nodes))
		for i := range st.s.nodes {
			n := st.s.nodes[(first+i)%len(st.s.nodes)]
			if !st.majority(n) {
				continue
			}
			st.leader = n
			st.term++
			st.s.trace(n, "store: leads term %d", st.term)
			st.resolveLimbo()
			st.catchUp()
			st.s.quorumKick()
			return
		}
	})
}

// resolveLimbo decides the proposals that an earlier leader may have replicated.
func (st *store) resolveLimbo() {
	limbo := st.limbo
	st.limbo = nil
	for _, r := range limbo {
		if r.committed == 0 && st.s.rng.chance(50) {
			st.s.trace(r.a.node, "store: a late proposal is decided")
			st.apply(r)
		}
	}
}

// catchUp delivers to members that missed something and can be reached again.
func (st *store) catchUp() {
	for _, n := range st.s.nodes {
		if n.lagging && st.leader != nil && st.hears(st.leader, n) {
			n.lagging = false
			at := st.s.now + st.s.rng.between(20*time.Millisecond, 200*time.Millisecond)
			n.deliverAt = at
			for range st.log[n.applied:] {
				st.s.at(at, &n.agentProc, n.deliver)
			}
		}
	}
}

// quorate is what n's agent believes: that it hears a leader.
func (st *store) quorate(n *node) bool {
	return st.leader != nil && st.hears(st.leader, n)
}

// submit carries a request to the leader and its answer back, with retries until the deadline.
func (st *store) submit(r *request) {
	s, n := st.s, r.a.node
	if r.deadline == 0 {
		r.deadline, r.sent = s.now+requestDeadline, s.now
	}
	if s.now >= r.deadline {
		r.done(reply{err: model.ErrNoQuorum})
		return
	}
	l := st.leader
	if l == nil || !s.linked(n, l) || s.lost(n, l) {
		st.again(r, 200*time.Millisecond)
		return
	}
	term := st.term
	d := s.delay(n, l)
	if r.read != "" {
		d += s.rng.between(readLeast, readMost)
	} else {
		d += s.rng.between(commitLeast, commitMost) + st.slow
	}
	s.after(d, nil, func() { st.arrive(r, term) })
}

func (st *store) again(r *request, in time.Duration) {
	st.s.at(min(st.s.now+in, r.deadline), &r.a.node.agentProc, func() { st.submit(r) })
}

// arrive decides a request at the leader.
func (st *store) arrive(r *request, term int) {
	s, n := st.s, r.a.node
	if st.leader == nil || st.term != term || !st.majority(st.leader) {
		if r.read == "" && r.committed == 0 {
			st.limbo = append(st.limbo, r)
		}
		st.again(r, attemptTime)
		return
	}
	var rep reply
	switch {
	case r.read != "":
		rep = reply{rev: st.rev, rec: st.data[r.read]}
	case r.committed != 0:
		rep = reply{rev: r.committed}
	case st.apply(r):
		rep = reply{rev: r.committed}
		if n.atCommit != nil && r.ops[0].key == model.LivePrefix+n.name {
			do := n.atCommit
			n.atCommit = nil
			s.after(0, nil, do)
		}
		if st.duplicates > 0 {
			st.duplicates--
			twin := *r
			s.after(s.rng.between(0, 5*time.Second), nil, func() { st.apply(&twin) })
		}
	default:
		rep = reply{err: model.ErrConflict}
	}
	if !s.linked(st.leader, n) || s.lost(st.leader, n) || n.loseAnswers > 0 {
		if n.loseAnswers > 0 {
			n.loseAnswers--
			s.count(faultLostAnswer)
			s.trace(n, "store: the answer is lost")
			// The connection broke: this client is told that nobody knows.
			s.at(s.now+attemptTime, &n.agentProc, func() { r.done(reply{err: model.ErrNoQuorum}) })
			return
		}
		st.again(r, attemptTime)
		return
	}
	s.after(s.delay(st.leader, n), &n.agentProc, func() { r.done(rep) })
}

// apply makes the transaction, or reports false when a compare does not hold.
func (st *store) apply(r *request) bool {
	for _, c := range r.conds {
		if st.data[c.key].mod != c.mod {
			return false
		}
	}
	st.rev++
	r.committed = st.rev
	ch := change{rev: st.rev, by: r.a.node, recs: make([]record, len(r.ops))}
	for i, o := range r.ops {
		old := st.data[o.key]
		rec := record{key: o.key, val: o.val, create: st.rev, mod: st.rev}
		if old.mod != 0 {
			rec.create = old.create
		}
		ch.recs[i] = rec
		if o.val == nil {
			delete(st.data, o.key)
		} else {
			st.data[o.key] = rec
		}
		st.s.check.wrote(r, old, rec)
	}
	st.log = append(st.log, ch)
	st.replicate()
	return true
}

// replicate sends the newest entry to every member that is not behind.
func (st *store) replicate() {
	s := st.s
	for _, n := range s.nodes {
		if n.lagging {
			continue
		}
		if st.leader == nil || !st.hears(st.leader, n) {
			n.lagging = true
			continue
		}
		at := max(n.deliverAt, s.now+s.delay(st.leader, n)+n.slowApply)
		n.deliverAt = at
		s.at(at, &n.agentProc, n.deliver)
	}
}

// deliverNext applies the next entry of the log to n's copy.
func (n *node) deliverNext() {
	st := n.s.store
	if n.applied >= len(st.log) {
		return
	}
	ch := &st.log[n.applied]
	n.applied++
	for _, rec := range ch.recs {
		if rec.val == nil {
			delete(n.mirror, rec.key)
		} else {
			n.mirror[rec.key] = rec
		}
	}
	if n.agent != nil {
		n.agent.observe(ch)
	}
}

// seed writes what the cluster begins with, before anybody lives.
func (st *store) seed(key string, val any) {
	st.rev++
	rec := record{key: key, val: val, create: st.rev, mod: st.rev}
	st.data[key] = rec
	st.log = append(st.log, change{rev: st.rev, recs: []record{rec}})
	for _, n := range st.s.nodes {
		n.mirror[key] = rec
		n.applied = len(st.log)
	}
}
