package sim

import (
	"maps"
	"slices"
	"strings"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

const (
	haResourcesKey = model.ConfigPrefix + "ha/resources.cfg"
	haRulesKey     = model.ConfigPrefix + "ha/rules.cfg"
	datacenterKey  = model.ConfigPrefix + "datacenter.cfg"
)

// resources is ha/resources.cfg, read.
type resources struct {
	states map[model.VMID]pveconf.HAState
	config map[model.VMID]ha.Resource
}

// with is a copy with one resource changed; state "" removes it.
func (r *resources) with(id model.VMID, state pveconf.HAState, conf ha.Resource) *resources {
	n := &resources{maps.Clone(r.states), maps.Clone(r.config)}
	if state == "" {
		delete(n.states, id)
		delete(n.config, id)
		return n
	}
	n.states[id], n.config[id] = state, conf
	return n
}

// nodeRecord is all that the store has about one node.
type nodeRecord struct {
	name     string
	revision int64
	live     model.Live
	liveRev  int64
	request  ha.NodeRequest
	mode     ha.NodeMode
	health   ha.NodeHealth
	history  ha.History
	histRev  int64
	level    int
}

// views is an agent's copy of the store as the core reads it. Maps and slices that the core got are never changed: each change makes a
// new one, which costs little because changes other than renewals are rare.
type views struct {
	s        *sim
	rev      int64
	manager  model.Manager
	mgrRev   int64
	mode     ha.Mode
	policy   *datacenter
	rules    *ruleSet
	res      *resources
	nodes    []nodeRecord // by name
	guests   []ha.Guest   // by id
	own      []ha.Guest   // those under this node's path
	prot     map[model.VMID]ha.Protected
	intents  map[model.VMID]ha.Intent
	statuses map[model.VMID]ha.StatusRecord
	commands map[model.VMID]ha.CommandRecord
	fenced   map[string]uint64
	members  map[string]int64
	self     string
	old      bool // the agent is of the earlier version
}

// load takes everything in anew.
func (v *views) load(a *agent) {
	*v = views{
		s: a.s, rev: a.s.store.log[a.node.applied-1].rev, self: a.node.name, old: a.node.old,
		res: &resources{}, policy: &datacenter{}, rules: &ruleSet{},
		prot: map[model.VMID]ha.Protected{}, intents: map[model.VMID]ha.Intent{}, statuses: map[model.VMID]ha.StatusRecord{},
		commands: map[model.VMID]ha.CommandRecord{}, fenced: map[string]uint64{}, members: map[string]int64{},
	}
	for _, rec := range sortedPrefix(a.node.mirror, "") {
		if strings.HasPrefix(rec.key, model.LivePrefix) {
			v.live(rec)
		} else {
			v.changed(rec)
		}
	}
}

func sortedPrefix(m map[string]record, prefix string) []record {
	var out []record
	for key, rec := range m {
		if strings.HasPrefix(key, prefix) {
			out = append(out, rec)
		}
	}
	slices.SortFunc(out, func(a, b record) int { return strings.Compare(a.key, b.key) })
	return out
}

func (v *views) node(name string) *nodeRecord {
	i, ok := slices.BinarySearchFunc(v.nodes, name, func(n nodeRecord, name string) int { return strings.Compare(n.name, name) })
	if !ok {
		v.nodes = slices.Insert(v.nodes, i, nodeRecord{name: name})
	}
	return &v.nodes[i]
}

// live takes in a liveness record and reports whether more than its number changed.
func (v *views) live(rec record) (changed bool) {
	n := v.node(rec.key[len(model.LivePrefix):])
	old := n.live
	live, _ := rec.val.(model.Live)
	n.live, n.liveRev = live, rec.mod
	if rec.val == nil {
		n.liveRev = 0
	}
	if live.Fenced != old.Fenced || live.Fenced && live.Epoch != old.Epoch {
		v.fenced = maps.Clone(v.fenced)
		delete(v.fenced, n.name)
		if live.Fenced {
			v.fenced[n.name] = live.Epoch
		}
	}
	old.Seq = live.Seq
	return live != old
}

// put is a copy of m with one entry changed.
func put[V any](m map[model.VMID]V, id model.VMID, val V, there bool) map[model.VMID]V {
	m = maps.Clone(m)
	if there {
		m[id] = val
	} else {
		delete(m, id)
	}
	return m
}

// changed takes in any other record.
func (v *views) changed(rec record) {
	there := rec.val != nil
	if node, id, ok := model.ParseGuestConfigKey(rec.key); ok {
		v.guest(node, id, rec)
		return
	}
	i := strings.LastIndexByte(rec.key, '/')
	switch prefix, rest := rec.key[:i+1], rec.key[i+1:]; prefix {
	case model.ProtectedPrefix:
		p, _ := rec.val.(model.Protected)
		v.prot = put(v.prot, vmid(rest), ha.Protected{Protected: p, Revision: rec.mod}, there)
	case model.IntentPrefix:
		in, _ := rec.val.(model.Intent)
		v.intents = put(v.intents, vmid(rest), ha.Intent{Intent: in, Revision: rec.mod}, there)
	case model.HAStatusPrefix:
		st, _ := rec.val.(ha.Status)
		if v.old {
			st = statusAsBefore(st)
		}
		v.statuses = put(v.statuses, vmid(rest), ha.StatusRecord{Status: st, Revision: rec.mod}, there)
	case model.HACommandPrefix:
		c, _ := rec.val.(ha.Command)
		v.commands = put(v.commands, vmid(rest), ha.CommandRecord{Command: c, Revision: rec.mod}, there)
	case model.NodePrefix:
		n, _ := rec.val.(model.Node)
		v.node(rest).revision, v.node(rest).level = rec.mod, n.Level
		v.members = maps.Clone(v.members)
		v.members[rest] = rec.mod
	case model.HARequestPrefix:
		v.node(rest).request, _ = rec.val.(ha.NodeRequest)
	case model.HANodePrefix:
		v.node(rest).mode, _ = rec.val.(ha.NodeMode)
	case model.HAHealthPrefix:
		v.node(rest).health, _ = rec.val.(ha.NodeHealth)
	case model.HAHistoryPrefix:
		n := v.node(rest)
		n.history, _ = rec.val.(ha.History)
		n.histRev = rec.mod
	default:
		v.single(rec)
	}
}

// single takes in a record of which there is one.
func (v *views) single(rec record) {
	switch val := rec.val.(type) {
	case model.Manager:
		v.manager, v.mgrRev = val, rec.mod
	case ha.Mode:
		v.mode = val
	case *resources:
		v.res = val
	case *datacenter:
		v.policy = val
	case *ruleSet:
		v.rules = val
	}
}

// vmid reads "100", or the number of "vm:100".
func vmid(s string) model.VMID {
	if i := strings.IndexByte(s, ':'); i >= 0 {
		s = s[i+1:]
	}
	id, err := model.ParseVMID(s)
	if err != nil {
		panic("sim: " + err.Error())
	}
	return id
}

// guest takes in a guest's file.
func (v *views) guest(node string, id model.VMID, rec record) {
	if conf, ok := rec.val.(*guestConf); ok {
		g := v.s.guest(id)
		hg := ha.Guest{
			VMID: id, Node: node, Revision: rec.mod, MemoryMiB: conf.memoryMiB, CPUs: conf.cpus, Storages: g.storageList(),
			Kind: g.kind(), Lock: conf.lock, NoLive: g.noLive(), RBD: g.storage.rbd,
		}
		if g.storage.local != nil {
			hg.Local = conf.storage
		}
		v.guests = setGuest(v.guests, hg)
		if node == v.self {
			v.own = setGuest(v.own, hg)
		} else {
			v.own = dropGuest(v.own, v.self, id)
		}
		return
	}
	v.guests = dropGuest(v.guests, node, id)
	if node == v.self {
		v.own = dropGuest(v.own, node, id)
	}
}

func setGuest(list []ha.Guest, g ha.Guest) []ha.Guest {
	i, ok := slices.BinarySearchFunc(list, g.VMID, func(g ha.Guest, id model.VMID) int { return int(g.VMID) - int(id) })
	list = slices.Clone(list)
	if ok {
		list[i] = g
		return list
	}
	return slices.Insert(list, i, g)
}

// dropGuest leaves a guest's file of node out; one of another node stays.
func dropGuest(list []ha.Guest, node string, id model.VMID) []ha.Guest {
	i := slices.IndexFunc(list, func(g ha.Guest) bool { return g.VMID == id && g.Node == node })
	if i < 0 {
		return list
	}
	return slices.Delete(slices.Clone(list), i, i+1)
}

// managerView is what the manager looks at.
func (a *agent) managerView() ha.View {
	v := &a.view
	view := ha.View{
		Revision: v.rev, Quorate: a.quorate(), LeaseValid: a.valid(), Manager: v.manager, ManagerRevision: v.mgrRev,
		Resources: v.res.states, Config: v.res.config, Guests: a.loads(v.guests), Protected: v.prot, Intents: v.intents, Statuses: v.statuses,
		Commands: v.commands, Policy: v.policy.policy, Mode: v.mode, Rules: v.rules.set, Unix: a.unix(),
		Members: make([]ha.Member, 0, len(v.nodes)),
	}
	for i := range v.nodes {
		if n := &v.nodes[i]; n.revision != 0 {
			view.Members = append(view.Members, a.memberView(n))
		}
	}
	if v.old {
		return asBefore(view)
	}
	return view
}

func (a *agent) memberView(r *nodeRecord) ha.Member {
	n, now := a.s.nodeNamed(r.name), a.node.local()
	m := ha.Member{
		Name: r.name, Revision: r.revision, MemoryMiB: n.spec.memoryMiB, CPUs: n.spec.cpus, Storages: n.spec.storages,
		Request: r.request, Mode: r.mode, Health: r.health, History: r.history, HistoryRevision: r.histRev, Level: r.level,
	}
	live, rev, known := a.observer.Live(r.name)
	if !known {
		return m
	}
	m.Live, m.LiveRevision = live, rev
	present := a.observer.Present(now)
	m.Silence, _ = a.observer.Silence(r.name, now)
	m.Silence = min(m.Silence, present)
	// The observer is asked only where its answer can be yes: an easy case costs no sentence.
	if live.Fenced || live.Left || m.Silence >= a.s.params.SuspectAfter() || a.s.mut == mutNoWait {
		v := a.observer.MayTake(r.name, now)
		m.MayTake, m.Why = v.May, v.Reason
		if a.s.mut == mutNoWait && m.Silence >= a.s.params.SuspectAfter() {
			m.MayTake = true
		}
		m.LiveRevision = v.Revision
	}
	if a.s.mut == mutEndingExcused && a.excuses(r) {
		m.Silence = 0
	}
	if a.s.scenario != nil {
		m.Load = a.s.nodeLoad(n)
		m.Load.MemoryMiB++ // 0 is "not known"
	}
	if a.s.fencing {
		m.Beacons = true
		m.Heard, m.Fencing = min(m.Silence, present, a.s.heard(a.node, n)), n.bmc.methods
	}
	return m
}

// unix is the node's wall clock.
func (a *agent) unix() int64 { return a.node.unix(a.s.now) }

// workerView is what the worker looks at; guarded are the groups that the guard has.
func (a *agent) workerView(guarded []string, known bool) ha.LocalView {
	v := &a.view
	self := v.node(v.self)
	view := ha.LocalView{
		Revision: v.rev, Quorate: a.quorate(), LeaseValid: a.valid(), Guests: v.own, Resources: v.res.states,
		Protected: v.prot, Intents: v.intents, Statuses: v.statuses, Fenced: v.fenced, Processes: make(map[model.VMID]ha.Process, len(a.procs)),
		Busy: maps.Clone(a.locks), Config: v.res.config, Commands: v.commands, Policy: v.policy.policy, Mode: v.mode, Unix: a.unix(),
		Members: v.members, Request: self.request, NodeMode: self.mode, Health: self.health, AwaitManager: ha.AwaitsManager(v.policy.policy, v.rules.set),
	}
	if view.NodeMode.BootID != a.bootID() {
		view.NodeMode = ha.NodeMode{} // of an earlier boot
	}
	for _, q := range a.procs {
		if known {
			q.guarded = contains(guarded, q.g.id.String())
		}
		p := ha.Process{Guarded: q.guarded, Answers: true, Sick: q.sick}
		if q.waits {
			p.State = ha.ProcessIncoming
		}
		view.Processes[q.g.id] = p
	}
	if v.old {
		return localAsBefore(view)
	}
	return view
}
