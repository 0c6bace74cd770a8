package ha_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/core/rules"
)

// A stage is a cluster in which everything goes well that is not told to fail: each node has a manager and a worker, transactions are
// committed at once, guests start and move at once. It plays stories of many minutes, and notes what happened to guests.
type stage struct {
	t     *testing.T
	store *memory
	now   time.Duration
	nodes []*actor
	// What the configuration says.
	resources map[model.VMID]pveconf.HAState
	config    map[model.VMID]ha.Resource
	policy    ha.Policy
	rules     *rules.Set
	guests    map[model.VMID]ha.Guest // all but Node and Revision
	fencing   []ha.FenceMethod
	bmc       func(node string) bool // off?
	// fail says why an action of a node goes wrong, "" if it does not.
	fail func(node string, a ha.Action) string
	kind ha.FailKind // of what goes wrong, FailOther at first
	log  []string    // starts, stops, moves
}

// actor is a node of a stage.
type actor struct {
	name     string
	up       bool // power and network
	renewed  time.Duration
	manager  ha.State
	worker   ha.Worker
	member   ha.Member
	runs     map[model.VMID]bool
	sick     map[model.VMID]ha.Sickness
	answers  map[model.VMID]bool
	shutting bool
}

func newStage(t *testing.T, nodes ...string) *stage {
	s := &stage{
		t: t, store: newMemory(), resources: map[model.VMID]pveconf.HAState{}, config: map[model.VMID]ha.Resource{},
		guests: map[model.VMID]ha.Guest{}, fail: func(string, ha.Action) string { return "" },
	}
	for _, name := range nodes {
		s.store.set(model.NodePrefix+name, model.Node{Name: name})
		s.nodes = append(s.nodes, &actor{
			name: name, member: ha.Member{Name: name, MemoryMiB: 16384, CPUs: 8, Storages: []string{"nas"}, Why: "it renews", Level: ha.Level},
		})
		s.boot(name)
	}
	return s
}

func (s *stage) actor(name string) *actor {
	return s.nodes[slices.IndexFunc(s.nodes, func(a *actor) bool { return a.name == name })]
}

// boot lets a node begin a new life: it registers with a new boot id.
func (s *stage) boot(name string) {
	a := s.actor(name)
	a.up, a.renewed, a.shutting = true, s.now, false
	a.runs, a.sick, a.answers = map[model.VMID]bool{}, map[model.VMID]ha.Sickness{}, map[model.VMID]bool{}
	a.manager, a.worker = ha.New(name, ha.DefaultParams()), ha.NewWorker(name, ha.DefaultParams())
	live, _ := s.store.kv[model.LivePrefix+name].value.(model.Live)
	live.BootID, live.Fenced, live.Left, live.By = fmt.Sprintf("%s at %s", name, s.now), false, false, ""
	s.store.set(model.LivePrefix+name, live)
}

// die cuts the power.
func (s *stage) die(name string) {
	a := s.actor(name)
	a.up = false
	clear(a.runs)
}

// ends lets a node begin its orderly end; it goes when its worker lets it.
func (s *stage) ends(name string, how ha.NodeEnd) {
	live := s.store.kv[model.LivePrefix+name].value.(model.Live)
	s.store.set(model.HANodePrefix+name, ha.NodeMode{Ends: how, BootID: live.BootID})
	s.actor(name).shutting = true
}

// guest puts an HA resource of 1 GiB on nas under a node, with one try here and one elsewhere.
func (s *stage) guest(id model.VMID, node string, state pveconf.HAState) {
	s.resources[id] = state
	s.config[id] = ha.Resource{MaxRestart: 1, MaxRelocate: 1}
	s.guests[id] = ha.Guest{VMID: id, MemoryMiB: 1024, CPUs: 1, Storages: []string{"nas"}}
	s.store.set(model.GuestConfigKey(node, id), "conf")
}

// asks writes a command.
func (s *stage) asks(id model.VMID, c ha.Command) {
	s.store.set(model.HACommandPrefix+s.sid(id), c)
	s.store.revision++
}

func (s *stage) sid(id model.VMID) string { g := s.guests[id]; return g.SID() }

func (s *stage) status(id model.VMID) ha.Status {
	st, _ := s.store.kv[model.HAStatusPrefix+s.sid(id)].value.(ha.Status)
	return st
}

// run plays for a while; the store's revision moves on at least once, as it does when a file is written.
func (s *stage) run(d time.Duration) {
	s.t.Helper()
	s.store.revision++
	s.store.history = append(s.store.history, s.store.kv)
	for end := s.now + d; s.now < end; s.now += 50 * time.Millisecond {
		for _, a := range s.nodes {
			if a.up {
				a.renewed = s.now
			}
		}
		s.settle()
	}
}

// settle feeds everybody until nobody wants anything more.
func (s *stage) settle() {
	s.t.Helper()
	for range 200 {
		before := s.store.revision
		busy := false
		for _, a := range s.nodes {
			if a.up {
				busy = s.feed(a) || busy
			}
		}
		if !busy && s.store.revision == before {
			return
		}
	}
	s.t.Fatalf("at %s: the cluster does not come to rest: %v", s.now, s.log[max(0, len(s.log)-20):])
}

func (s *stage) feed(a *actor) (busy bool) {
	var actions []ha.Action
	a.manager, actions = a.manager.Step(s.now, s.view(a))
	for len(actions) > 0 {
		act := actions[0]
		actions = actions[1:]
		if _, wake := act.(ha.Wake); wake {
			continue
		}
		busy = true
		var more []ha.Action
		a.manager, more = a.manager.Step(s.now, s.answer(a, act))
		actions = append(actions, more...)
	}
	a.worker, actions = a.worker.Step(s.now, s.local(a))
	for len(actions) > 0 {
		act := actions[0]
		actions = actions[1:]
		if _, wake := act.(ha.Wake); wake {
			continue
		}
		busy = true
		var more []ha.Action
		a.worker, more = a.worker.Step(s.now, s.answer(a, act))
		actions = append(actions, more...)
	}
	if ok, _ := a.worker.MayLeave(s.now); a.shutting && ok {
		s.leave(a)
	}
	return busy
}

func (s *stage) leave(a *actor) {
	live := s.store.kv[model.LivePrefix+a.name].value.(model.Live)
	live.Left = true
	s.store.set(model.LivePrefix+a.name, live)
	s.die(a.name)
	s.note("%s left", a.name)
}

func (s *stage) note(format string, args ...any) { s.log = append(s.log, fmt.Sprintf(format, args...)) }

// answer carries an action out.
func (s *stage) answer(a *actor, act ha.Action) ha.Event {
	if why := s.fail(a.name, act); why != "" {
		s.note("%s on %s failed", line(act), a.name)
		return ha.ActionFailed{Action: act, Kind: s.kind, Reason: why}
	}
	if ask, ok := act.(ha.AskFence); ok {
		return ha.FenceResult{Action: ask, Off: s.bmc(ask.Node)}
	}
	rev, ok := s.do(a, act)
	if !ok {
		return ha.ActionFailed{Action: act, Kind: ha.FailConflict}
	}
	return ha.ActionDone{Action: act, Revision: rev}
}

func (s *stage) do(a *actor, act ha.Action) (int64, bool) {
	switch x := act.(type) {
	case ha.Start:
		s.start(a, x.VMID)
		return 0, true
	case ha.Stop:
		delete(a.runs, x.VMID)
		s.note("stop %s on %s", s.sid(x.VMID), a.name)
		return 0, true
	case ha.Discard:
		delete(a.runs, x.VMID)
		return 0, true
	case ha.Reset:
		delete(a.sick, x.VMID)
		s.note("reset %s", s.sid(x.VMID))
		return 0, true
	case ha.Shoot:
		s.note("shoot %s by %s", x.Node, x.Method)
		s.die(x.Node)
		return 0, true
	case ha.Acknowledge:
		if x.Written {
			return 0, true
		}
	}
	rev := s.txn(a, act)
	return rev, rev != 0
}

func (s *stage) start(a *actor, id model.VMID) {
	for _, o := range s.nodes {
		if o.runs[id] && o != a {
			s.t.Fatalf("at %s: %s starts on %s and runs on %s", s.now, s.sid(id), a.name, o.name)
		}
	}
	a.runs[id] = true
	s.note("start %s on %s", s.sid(id), a.name)
}

// txn commits what is a transaction; a migration is one that does everything.
func (s *stage) txn(a *actor, act ha.Action) int64 {
	switch x := act.(type) {
	case ha.TakeManager:
		return s.store.txn(x.Compares(), write{model.ManagerKey, x.Manager})
	case ha.Cut:
		s.note("cut %s", x.Node)
		return s.store.txn(x.Compares(), write{model.LivePrefix + x.Node, x.NewLive})
	case ha.NoteHistory:
		return s.store.txn(x.Compares(), write{model.HAHistoryPrefix + x.Node, x.History})
	case ha.DropCommand:
		s.note("refused %s: %s", s.sid(x.VMID), x.Reason)
		return s.store.txn(x.Compares(), write{model.HACommandPrefix + s.sid(x.VMID), nil})
	case ha.SetStatus:
		w := []write{{model.HAStatusPrefix + s.sid(x.VMID), x.Status}}
		if x.Command != 0 {
			w = append(w, write{model.HACommandPrefix + s.sid(x.VMID), nil})
		}
		return s.store.txn(x.Compares(), w...)
	case ha.Acknowledge:
		return s.store.txn(x.Compares(), write{model.ProtectedPrefix + x.VMID.String(), model.Protected{Node: x.Node}})
	case ha.Unacknowledge:
		return s.store.txn(x.Compares(), write{model.ProtectedPrefix + x.VMID.String(), nil})
	case ha.Move:
		return s.rename(x.Compares(), x.VMID, x.From, x.To, true)
	case ha.Handover:
		return s.rename(x.Compares(), x.VMID, x.From, x.To, x.Protected)
	case ha.Migrate:
		delete(a.runs, x.VMID)
		s.actor(x.Target).runs[x.VMID] = true
		from := model.GuestConfigKey(a.name, x.VMID)
		prot := model.ProtectedPrefix + x.VMID.String()
		return s.rename([]ha.Compare{{Key: from, Revision: s.store.kv[from].revision}, {Key: model.GuestConfigKey(x.Target, x.VMID)}, {Key: prot, Revision: s.store.kv[prot].revision}},
			x.VMID, a.name, x.Target, true)
	}
	s.t.Fatalf("unknown action %s", act.Key())
	return 0
}

func (s *stage) rename(c []ha.Compare, id model.VMID, from, to string, protected bool) int64 {
	w := []write{{model.GuestConfigKey(from, id), nil}, {model.GuestConfigKey(to, id), "conf"}}
	if protected {
		w = append(w, write{model.ProtectedPrefix + id.String(), model.Protected{Node: to}})
	}
	rev := s.store.txn(c, w...)
	if rev != 0 {
		s.note("%s %s→%s", s.sid(id), from, to)
	}
	return rev
}

func at[T any](s *stage, key string) T {
	v, _ := s.store.kv[key].value.(T)
	return v
}

// records are the ones that both machines see.
func (s *stage) records() (prot map[model.VMID]ha.Protected, st map[model.VMID]ha.StatusRecord, cmds map[model.VMID]ha.CommandRecord, guests []ha.Guest) {
	prot, st, cmds = map[model.VMID]ha.Protected{}, map[model.VMID]ha.StatusRecord{}, map[model.VMID]ha.CommandRecord{}
	for id := range s.guests {
		if e := s.store.kv[model.ProtectedPrefix+id.String()]; e.value != nil {
			prot[id] = ha.Protected{Protected: e.value.(model.Protected), Revision: e.revision}
		}
		if e := s.store.kv[model.HAStatusPrefix+s.sid(id)]; e.value != nil {
			st[id] = ha.StatusRecord{Status: e.value.(ha.Status), Revision: e.revision}
		}
		if e := s.store.kv[model.HACommandPrefix+s.sid(id)]; e.value != nil {
			cmds[id] = ha.CommandRecord{Command: e.value.(ha.Command), Revision: e.revision}
		}
	}
	for _, key := range slices.Sorted(maps.Keys(s.store.kv)) {
		if node, id, ok := model.ParseGuestConfigKey(key); ok {
			g := s.guests[id]
			g.Node, g.Revision = node, s.store.kv[key].revision
			guests = append(guests, g)
		}
	}
	return prot, st, cmds, guests
}

func (s *stage) quorate() bool {
	up := 0
	for _, a := range s.nodes {
		if a.up {
			up++
		}
	}
	return up > len(s.nodes)/2
}

func (s *stage) unix() int64 { return int64(1_000_000 + s.now/time.Second) }

func (s *stage) view(self *actor) ha.View {
	v := ha.View{
		Revision: s.store.revision, Quorate: s.quorate(), LeaseValid: true, Manager: at[model.Manager](s, model.ManagerKey),
		ManagerRevision: s.store.kv[model.ManagerKey].revision, Resources: maps.Clone(s.resources), Intents: map[model.VMID]ha.Intent{},
		Config: s.config, Policy: s.policy, Mode: at[ha.Mode](s, model.HAModeKey), Rules: s.rules, Unix: s.unix(),
	}
	v.Protected, v.Statuses, v.Commands, v.Guests = s.records()
	for _, a := range s.nodes {
		m := a.member
		live := s.store.kv[model.LivePrefix+a.name]
		m.Revision = s.store.kv[model.NodePrefix+a.name].revision
		m.Live, _ = live.value.(model.Live)
		m.LiveRevision, m.Silence = live.revision, s.now-a.renewed
		if self.name == a.name {
			m.Silence = 0
		}
		for id := range a.runs {
			m.Load.CPU += s.guests[id].Load.CPU
			m.Load.MemoryMiB += s.guests[id].Load.MemoryMiB
		}
		m.Load.CPU += 0.001 // the host's own
		m.MayTake = m.Silence >= ha.DefaultParams().TakeAfter || m.Live.Left
		m.Heard, m.Beacons, m.Fencing = m.Silence+time.Millisecond, true, s.fencing
		m.Request, m.Mode = at[ha.NodeRequest](s, model.HARequestPrefix+a.name), at[ha.NodeMode](s, model.HANodePrefix+a.name)
		m.Health = at[ha.NodeHealth](s, model.HAHealthPrefix+a.name)
		h := s.store.kv[model.HAHistoryPrefix+a.name]
		m.History, _ = h.value.(ha.History)
		m.HistoryRevision = h.revision
		v.Members = append(v.Members, m)
	}
	return v
}

func (s *stage) local(a *actor) ha.LocalView {
	v := ha.LocalView{
		Revision: s.store.revision, Quorate: s.quorate(), LeaseValid: true, Resources: maps.Clone(s.resources), Intents: map[model.VMID]ha.Intent{},
		Fenced: map[string]uint64{}, Processes: map[model.VMID]ha.Process{}, Config: s.config, Policy: s.policy, Mode: at[ha.Mode](s, model.HAModeKey),
		Unix: s.unix(), Members: map[string]int64{}, Request: at[ha.NodeRequest](s, model.HARequestPrefix+a.name),
		Health: at[ha.NodeHealth](s, model.HAHealthPrefix+a.name), AwaitManager: ha.AwaitsManager(s.policy, s.rules),
	}
	live := at[model.Live](s, model.LivePrefix+a.name)
	if m := at[ha.NodeMode](s, model.HANodePrefix+a.name); m.BootID == live.BootID {
		v.NodeMode = m
	}
	var all []ha.Guest
	v.Protected, v.Statuses, v.Commands, all = s.records()
	for _, g := range all {
		if g.Node == a.name {
			v.Guests = append(v.Guests, g)
		}
	}
	for _, o := range s.nodes {
		v.Members[o.name] = s.store.kv[model.NodePrefix+o.name].revision
		if l := at[model.Live](s, model.LivePrefix+o.name); l.Fenced {
			v.Fenced[o.name] = l.Epoch
		}
	}
	for id := range a.runs {
		v.Processes[id] = ha.Process{Guarded: v.Protected[id].Node == a.name, Sick: a.sick[id], Answers: a.answers[id]}
	}
	return v
}

// is compares where the guests are, what their records say and whether they run: "vm:100 n1 started runs".
func (s *stage) is(want ...string) {
	s.t.Helper()
	var got []string
	for _, id := range slices.Sorted(maps.Keys(s.guests)) {
		node, _ := s.store.owner(id)
		l := fmt.Sprintf("%s %s %s", s.sid(id), node, s.status(id).State)
		for _, a := range s.nodes {
			if a.runs[id] {
				l += " runs"
				if a.name != node {
					l += " on " + a.name
				}
			}
		}
		got = append(got, l)
	}
	if !slices.Equal(got, want) {
		s.t.Fatalf("at %s:\n got %s\nwant %s\nlog: %s\nmanager's word: %+v", s.now, strings.Join(got, ", "), strings.Join(want, ", "), strings.Join(s.log, "; "), s.words())
	}
}

func (s *stage) words() []string {
	var out []string
	for _, id := range slices.Sorted(maps.Keys(s.guests)) {
		out = append(out, s.sid(id)+": "+s.status(id).Reason)
	}
	return out
}

// happened compares the log since the last call.
func (s *stage) happened(want ...string) {
	s.t.Helper()
	if !slices.Equal(s.log, want) {
		s.t.Fatalf("at %s:\n got %q\nwant %q\n%v", s.now, s.log, want, s.words())
	}
	s.log = nil
}
