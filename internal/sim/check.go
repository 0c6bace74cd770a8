package sim

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

// Rule names what was broken.
type Rule string

// The rules that a life is checked for.
const (
	ruleOneWriter Rule = "one-writer"     // at each instant at most one process can write a disk
	ruleOldMemory Rule = "old-memory"     // nobody goes on with memory from before another one wrote
	ruleLateWrite Rule = "late-write"     // no write arrives after a successor has written
	ruleLease     Rule = "lease"          // no protected guest runs without a lease of the current epoch
	ruleFile      Rule = "file"           // no guest begins to run where its file is not
	ruleTwoFiles  Rule = "two-files"      // a guest has exactly one file
	ruleGuarded   Rule = "guarded"        // what is acknowledged is under the guard
	ruleProof     Rule = "proof"          // nobody is cut off, and nothing taken over, before it cannot write any more
	ruleNeedless  Rule = "needless-fence" // nobody is cut off who renews
	ruleMove      Rule = "needless-move"  // no guest moves without a reason
	ruleEpoch     Rule = "epoch"          // a node's epoch never goes down, and a cut raises it
	ruleRest      Rule = "rest"           // once the faults are over, everything that can run runs
	ruleRules     Rule = "rules"          // and the rules for placement hold
	ruleQuiet     Rule = "quiet"          // and nothing changes any more
	ruleGuardless Rule = "guardless"      // a node renews only while its guard answers
	ruleClean     Rule = "clean"          // a fenced node registers only after its old guests are dead
	ruleReset     Rule = "needless-reset" // no machine is reset without a fault
)

// Violation is a rule that was broken.
type Violation struct {
	Rule Rule          `json:"rule"`
	At   time.Duration `json:"at_ns"`
	What string        `json:"what"`
}

func (v Violation) String() string {
	return fmt.Sprintf("%s at %.3fs: %s", v.Rule, v.At.Seconds(), v.What)
}

// checks is what the rules need to remember.
type checks struct {
	s       *sim
	renewed []time.Duration // by node: when its last committed renewal was sent, true time
	sentAt  []time.Duration // the same on its own clock
	boot    []int           // and in which boot
	watch   []bool          // an event is out for the end of its lease
	quietAt time.Duration   // the last write that was no renewal
	quietBy string
}

func newChecks(s *sim) *checks {
	n := len(s.nodes)
	return &checks{s: s, renewed: make([]time.Duration, n), sentAt: make([]time.Duration, n), boot: make([]int, n), watch: make([]bool, n)}
}

// broken notes a violation; the first one ends the life.
func (c *checks) broken(r Rule, format string, args ...any) {
	if c.s.violation != nil {
		return
	}
	c.s.violation = &Violation{r, c.s.now, fmt.Sprintf(format, args...)}
	c.s.trace(nil, "BROKEN %s", c.s.violation)
}

// wrote is told of each record that was committed.
func (c *checks) wrote(r *request, old, rec record) {
	if strings.HasPrefix(rec.key, model.LivePrefix) {
		c.liveWritten(r, old, rec)
		return
	}
	c.quietAt, c.quietBy = c.s.now, rec.key
	if strings.HasPrefix(rec.key, model.ConfigPrefix+"nodes/") && rec.val != nil {
		c.fileWritten(r, rec)
		return
	}
	if strings.HasPrefix(rec.key, model.ProtectedPrefix) && rec.val != nil {
		c.acknowledged(rec)
	}
}

func (c *checks) liveWritten(r *request, old, rec record) {
	n := c.s.nodeNamed(rec.key[len(model.LivePrefix):])
	live, _ := rec.val.(model.Live)
	was, _ := old.val.(model.Live)
	if live.Epoch < was.Epoch {
		c.broken(ruleEpoch, "the epoch of %s goes down from %d to %d", n.name, was.Epoch, live.Epoch)
	}
	if live.Fenced {
		c.quietAt, c.quietBy = c.s.now, rec.key
		c.cut(n, was, live)
		return
	}
	if r.a.node == n && live.BootID == r.a.bootID() {
		if !n.guardProc.up && r.sent > n.guardDied+time.Millisecond {
			c.broken(ruleGuardless, "%s renews, and its guard died at %.3fs", n.name, n.guardDied.Seconds())
		}
		for _, q := range n.qemus {
			if was.Fenced && q.protect && q.proc.up && q.cg.mark != nil && q.cg.mark.Epoch < live.Epoch {
				c.broken(ruleClean, "%s registers with epoch %d and %s of epoch %d is alive", n.name, live.Epoch, q, q.cg.mark.Epoch)
			}
		}
		if live.Left {
			n.ended.left = c.s.now
		}
		c.renewed[n.i], c.sentAt[n.i], c.boot[n.i] = r.sent, n.clk.read(r.sent), n.boots
		c.watchLease(n)
	}
}

// watchLease keeps one event out for the end of the node's lease.
func (c *checks) watchLease(n *node) {
	if c.watch[n.i] {
		return
	}
	c.watch[n.i] = true
	c.s.at(n.clk.when(c.sentAt[n.i]+c.s.params.Lease), nil, func() {
		c.watch[n.i] = false
		if c.boot[n.i] != n.boots || !n.machine.up {
			return
		}
		if !c.leased(n) {
			for _, q := range n.qemus {
				if q.protect && q.writes() {
					c.broken(ruleLease, "%s runs after the end of the lease of %s", q, n.name)
				}
			}
			return
		}
		c.watchLease(n)
	})
}

// leased reports whether the node's lease holds, counted from the sending of the last renewal that was committed.
func (c *checks) leased(n *node) bool {
	return c.boot[n.i] == n.boots && n.local() < c.sentAt[n.i]+c.s.params.Lease
}

// cut checks that the node cannot write any more, and that it was silent.
func (c *checks) cut(n *node, was, live model.Live) {
	s := c.s
	s.result.Cuts++
	if s.scenario != nil && !was.Left {
		s.scenario.cut[n.name] = true
	}
	s.trace(n, "is cut off by %s with epoch %d", live.By, live.Epoch)
	if live.Epoch <= was.Epoch {
		c.broken(ruleEpoch, "%s is cut off and keeps epoch %d", n.name, was.Epoch)
	}
	if !was.Left && n.machine.up && n.agentProc.runs() && s.now-c.renewed[n.i] < 2*s.params.Renew {
		c.broken(ruleNeedless, "%s is cut off although it renewed %v ago", n.name, s.now-c.renewed[n.i])
	}
	if why := s.endExcuses(n, was); why != "" && !s.nodeNamed(live.By).old {
		c.broken(ruleNeedless, "%s is cut off, ended in order (%s), and %s", n.name, n.ended.how, why)
	}
	for _, q := range n.qemus {
		if q.protect && q.writes() && !q.g.storage.refuses(n, q.started) && live.CoversGuest(q.g.id) {
			c.broken(ruleProof, "%s is cut off while %s writes", n.name, q)
		}
	}
}

// fileWritten checks a guest's file where it appears.
func (c *checks) fileWritten(r *request, rec record) {
	s := c.s
	name, id, ok := model.ParseGuestConfigKey(rec.key)
	if !ok {
		return
	}
	g, files := s.guest(id), 0
	from := ""
	for _, n := range s.nodes {
		if _, there := s.store.data[model.GuestConfigKey(n.name, id)]; there {
			files++
		}
	}
	for _, o := range r.ops {
		if o.val == nil && strings.HasPrefix(o.key, model.ConfigPrefix+"nodes/") {
			from, _, _ = model.ParseGuestConfigKey(o.key)
		}
	}
	if from != "" {
		files -= boolInt(hasKey(s.store.data, model.GuestConfigKey(from, id)) && !after(r, from, rec.key))
	}
	if files != 1 {
		c.broken(ruleTwoFiles, "%s has %d files", g.sid, files)
	}
	if rec.create != rec.mod {
		return // an edit
	}
	c.moved(r, g, from, name)
}

// after reports whether r deletes the file of from after it wrote key; such a file is still there when key is checked.
func after(r *request, from, key string) bool {
	for _, o := range r.ops {
		if o.key == key {
			return false
		}
		if o.val == nil && strings.Contains(o.key, "/"+from+"/") {
			return true
		}
	}
	return false
}

func hasKey(m map[string]record, key string) bool { _, ok := m[key]; return ok }

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// moved checks that nobody writes where the guest left, and that there was a reason.
func (c *checks) moved(r *request, g *guest, from, to string) {
	s := c.s
	s.result.Moves++
	s.trace(s.nodeNamed(to), "owns %s, from %s, by %s", g.sid, from, r.a.node.name)
	for _, q := range g.qemus {
		if q.n.name != to && q.writes() && !g.storage.refuses(q.n, q.started) {
			c.broken(ruleProof, "%s goes to %s while %s writes", g.sid, to, q)
		}
	}
	live, _ := s.store.data[model.LivePrefix+from].val.(model.Live)
	recovery := live.Fenced && r.a.node.name != from
	if from == "" || r.a.leavesAlone(g) {
		return // a person's own doing
	}
	g.moves = append(g.moves, move{s.now, from, to, recovery})
	errand, back := s.nodeNamed(from).errands > s.now, 1<<s.nodeNamed(to).i
	if errand {
		g.homes |= 1 << s.nodeNamed(from).i
	}
	switch {
	case recovery || s.scenario != nil || s.ruled() && g.id <= 101 || s.nodeNamed(from).unwell():
	case errand:
	case g.homes&back != 0: // it returns, however late its node does
		g.homes &^= back
	case g.movesAllowed > 0:
		g.movesAllowed--
	default:
		c.broken(ruleMove, "%s moves from %s to %s without a reason", g.sid, from, to)
	}
}

// acknowledged checks that every process of the guest on its node is under the guard.
func (c *checks) acknowledged(rec record) {
	id := vmid(rec.key[len(model.ProtectedPrefix):])
	p, _ := rec.val.(model.Protected)
	for _, q := range c.s.guest(id).qemus {
		if q.n.name == p.Node && q.cg.mark == nil && q.proc.up && c.s.mut != mutNoMark {
			c.broken(ruleGuarded, "%s is acknowledged and not under the guard", q)
		}
	}
}

// runs is told when a process can write from now on.
func (c *checks) runs(g *guest, q *qemu) {
	s, n := c.s, q.n
	if !hasKey(s.store.data, model.GuestConfigKey(n.name, g.id)) {
		c.broken(ruleFile, "%s runs and its file is not on %s", q, n.name)
	}
	p, _ := s.store.data[model.ProtectedPrefix+g.id.String()].val.(model.Protected)
	if p.Node == n.name && !q.protect && q.cg.mark == nil {
		c.broken(ruleGuarded, "%s runs, is acknowledged and not under the guard", q)
	}
	if !q.protect {
		return
	}
	live, _ := s.store.data[model.LivePrefix+n.name].val.(model.Live)
	switch {
	case !c.leased(n):
		c.broken(ruleLease, "%s runs and %s has no lease", q, n.name)
	case q.cg.mark != nil && (live.Fenced || live.Epoch != q.cg.mark.Epoch):
		c.broken(ruleLease, "%s runs with epoch %d and %s has %d", q, q.cg.mark.Epoch, n.name, live.Epoch)
	}
}

// reset checks that a machine is only reset for a reason.
func (c *checks) reset(n *node, why string) {
	if len(c.s.plan.Faults) == 0 && c.s.scenario == nil {
		c.broken(ruleReset, "%s is reset: %s", n.name, why)
	}
}

// rest checks the cluster after the faults: everything that is to run runs, once, and thawed.
func (c *checks) rest() {
	s := c.s
	res, _ := s.store.data[haResourcesKey].val.(*resources)
	for _, g := range s.guests {
		running := 0
		for _, q := range g.qemus {
			if q.writes() {
				running++
			}
			if res.states[g.id] == pveconf.HAStarted && slices.Contains(g.resetOn(), q.sick) {
				c.broken(ruleRest, "%s is %s and was to be reset", q, q.sick)
			}
		}
		state := res.states[g.id]
		switch {
		case state == pveconf.HAStarted && running != 1 && !s.gaveUp(g) && !s.lostFor(g):
			c.broken(ruleRest, "%s is to run and %d processes of it do; %s", g.sid, running, s.describe(g))
		case (state == pveconf.HAStopped || state == pveconf.HADisabled) && running != 0:
			c.broken(ruleRest, "%s is to stand still and %d processes of it run", g.sid, running)
		}
		if hasKey(s.store.data, model.IntentPrefix+g.id.String()) {
			c.broken(ruleRest, "%s: a migration is not decided", g.sid)
		}
	}
}

// ruled: a rule is there, or was, or is to be.
func (s *sim) ruled() bool {
	return s.result.Placement != "" || slices.ContainsFunc(s.plan.Faults, func(f Fault) bool { return f.Kind == faultPersonRules })
}

// placed checks the one rule that a cluster may have, once everybody is there.
func (c *checks) placed() {
	s := c.s
	where := func(g *guest) string {
		for _, q := range g.qemus {
			if q.writes() && s.present().states[g.id] == pveconf.HAStarted {
				return q.n.name
			}
		}
		return ""
	}
	set, _ := s.store.data[haRulesKey].val.(*ruleSet)
	if set == nil || set.name == "" {
		return
	}
	a, b := where(s.guests[0]), where(s.guests[1])
	switch {
	case strings.HasSuffix(set.name, "apart") && a != "" && a == b:
		c.broken(ruleRules, "vm:100 and vm:101 are to be apart and run on %s", a)
	case strings.HasSuffix(set.name, "together") && a != "" && b != "" && a != b:
		c.broken(ruleRules, "vm:100 and vm:101 are to be together and run on %s and %s", a, b)
	case strings.HasSuffix(set.name, "home") && a != "" && a != "n1" && a != "n2":
		c.broken(ruleRules, "vm:100 is to run on n1 or n2 and runs on %s", a)
	}
}

// quiet checks that nothing changed in the last while.
func (c *checks) quiet(since time.Duration) {
	if c.quietAt > since {
		c.broken(ruleQuiet, "%s is still written at %.1fs", c.quietBy, c.quietAt.Seconds())
	}
}

// leavesAlone reports whether HA has nothing to do with the guest, so that whoever moves it is a person.
func (a *agent) leavesAlone(g *guest) bool {
	res, _ := a.s.store.data[haResourcesKey].val.(*resources)
	mode, _ := a.s.store.data[model.HAModeKey].val.(ha.Mode)
	state := res.states[g.id]
	return state == "" || state == pveconf.HAIgnored || mode.At(a.unix()) == ha.DisarmIgnore
}
