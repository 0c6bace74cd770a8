package ha_test

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

// A world is a small simulated cluster on one clock: a store, nodes with leases that run guests, and
// two managers. It is built so that all that matters can go wrong: views are old, transactions arrive late, in any order and
// twice, renewals are lost, machines die, migrations stop anywhere.

const (
	lease    = 10 * time.Second
	takeWait = 10520 * time.Millisecond // L(1+2ε)+F
)

type entry struct {
	value    any
	revision int64
}

// memory is the store: a map, and all that it ever was.
type memory struct {
	revision int64
	kv       map[string]entry
	history  []map[string]entry // history[i] is the map at revision i
}

func newMemory() *memory {
	return &memory{kv: map[string]entry{}, history: []map[string]entry{{}}}
}

type write struct {
	key   string
	value any // nil deletes
}

// txn commits if all compares hold, and returns the revision, or 0.
func (s *memory) txn(cmp []ha.Compare, writes ...write) int64 {
	for _, c := range cmp {
		if s.kv[c.Key].revision != c.Revision {
			return 0
		}
	}
	for _, w := range writes {
		if !slices.ContainsFunc(cmp, func(c ha.Compare) bool { return c.Key == w.key }) {
			panic("write without compare: " + w.key)
		}
	}
	s.revision++
	s.kv = maps.Clone(s.kv)
	for _, w := range writes {
		if w.value == nil {
			delete(s.kv, w.key)
		} else {
			s.kv[w.key] = entry{w.value, s.revision}
		}
	}
	s.history = append(s.history, s.kv)
	return s.revision
}

// set writes without a compare, for the set-up.
func (s *memory) set(key string, value any) {
	s.txn([]ha.Compare{{Key: key, Revision: s.kv[key].revision}}, write{key, value})
}

func (s *memory) owner(id model.VMID) (node string, n int) {
	for key := range s.kv {
		if on, g, ok := model.ParseGuestConfigKey(key); ok && g == id {
			node, n = on, n+1
		}
	}
	return node, n
}

// machine is a node: what it knows of its own lease, and which guests execute on it.
type machine struct {
	name     string
	epoch    uint64
	revision int64         // of its live record, as it knows
	deadline time.Duration // its guests are frozen from then on
	off      bool
	// sent are the renewals under way: when they were sent, and what they compare.
	sent []renewal
	runs map[model.VMID]bool
	// paused are guests whose migration is complete and not decided; incoming are those on their target.
	paused, incoming map[model.VMID]int64 // → revision of the intent
}

type renewal struct {
	at       time.Duration
	revision int64
}

// executes: QEMU runs the guest's code at now.
func (m *machine) executes(id model.VMID, now time.Duration) bool {
	return !m.off && m.runs[id] && now < m.deadline
}

// director is a manager and its agent: a view of the past, and actions that it has not carried out.
type director struct {
	self    string
	state   ha.State
	seen    int64                    // revision of its view
	arrived map[string]time.Duration // of each node's last renewal that it saw
	queue   []ha.Action
}

type world struct {
	store     *memory
	now       time.Duration
	machines  []*machine
	directors []*director
	guests    []model.VMID
}

func newWorld() *world {
	w := &world{store: newMemory(), now: time.Second, guests: []model.VMID{100, 101, 102}}
	for i, name := range []string{"n1", "n2", "n3"} {
		w.store.set(model.NodePrefix+name, model.Node{Name: name, MemoryMiB: 16384})
		w.store.set(model.LivePrefix+name, model.Live{Epoch: 1})
		m := &machine{
			name: name, epoch: 1, revision: w.store.revision, deadline: w.now + lease,
			runs: map[model.VMID]bool{}, paused: map[model.VMID]int64{}, incoming: map[model.VMID]int64{},
		}
		w.machines = append(w.machines, m)
		id := w.guests[i]
		w.store.set(model.GuestConfigKey(name, id), "memory: 1024")
		w.store.set(model.ProtectedPrefix+id.String(), model.Protected{Node: name})
		w.store.set(model.HAStatusPrefix+id.SID(), ha.Status{State: ha.StatusStarted, Node: name})
	}
	for _, name := range []string{"n1", "n2"} {
		w.directors = append(w.directors, &director{self: name, state: ha.New(name, ha.DefaultParams()), seen: w.store.revision, arrived: map[string]time.Duration{}})
	}
	return w
}

func (w *world) machine(name string) *machine {
	return w.machines[slices.IndexFunc(w.machines, func(m *machine) bool { return m.name == name })]
}

// renew sends a renewal; deliver commits it, or lets the node learn that it was fenced.
func (w *world) renew(m *machine) {
	if !m.off {
		m.sent = append(m.sent, renewal{w.now, m.revision})
	}
}

func (w *world) deliver(m *machine, i int) {
	r := m.sent[i]
	m.sent = slices.Delete(m.sent, i, i+1)
	key := model.LivePrefix + m.name
	live := w.store.kv[key].value.(model.Live)
	live.Epoch, live.Fenced, live.By = m.epoch, false, ""
	live.Seq++
	if rev := w.store.txn([]ha.Compare{{Key: key, Revision: r.revision}}, write{key, live}); rev != 0 {
		m.revision, m.deadline = rev, max(m.deadline, r.at+lease)
		return
	}
	if !m.off && w.store.kv[key].value.(model.Live).Fenced {
		w.register(m)
	}
}

// register is what a node does that learned of its fencing, or boots: no guest runs, then the new epoch counts.
func (w *world) register(m *machine) {
	key := model.LivePrefix + m.name
	live := w.store.kv[key].value.(model.Live)
	m.off, m.sent = false, nil
	m.runs, m.paused, m.incoming = map[model.VMID]bool{}, map[model.VMID]int64{}, map[model.VMID]int64{}
	live.Fenced, live.By, live.Left = false, "", false
	live.BootID = fmt.Sprintf("%s at %d", m.name, w.store.revision)
	m.revision = w.store.txn([]ha.Compare{{Key: key, Revision: w.store.kv[key].revision}}, write{key, live})
	m.epoch, m.deadline = live.Epoch, w.now+lease
}

// leased: valid lease, current epoch, by a linearizable read.
func (w *world) leased(m *machine) bool {
	live := w.store.kv[model.LivePrefix+m.name].value.(model.Live)
	return !m.off && w.now < m.deadline && !live.Fenced && live.Epoch == m.epoch
}

// start is the one start path: what Start's contract demands.
func (w *world) start(m *machine, id model.VMID) {
	_, mine := w.store.kv[model.GuestConfigKey(m.name, id)]
	_, intent := w.store.kv[model.IntentPrefix+id.String()]
	prot, _ := w.store.kv[model.ProtectedPrefix+id.String()].value.(model.Protected)
	_, paused := m.paused[id]
	if mine && !intent && !paused && prot.Node == m.name && w.leased(m) {
		delete(m.incoming, id) // a leftover is killed first
		m.runs[id] = true
	}
}

// announce begins a migration from the guest's node to m.
func (w *world) announce(m *machine, id model.VMID) {
	node, _ := w.store.owner(id)
	src := w.machine(node)
	if src == m || !src.executes(id, w.now) || !w.leased(m) || !w.leased(src) {
		return
	}
	key, conf := model.IntentPrefix+id.String(), model.GuestConfigKey(node, id)
	rev := w.store.txn([]ha.Compare{{Key: key}, {Key: conf, Revision: w.store.kv[conf].revision}},
		write{key, model.Intent{VMID: id, Source: node, Target: m.name, SourceEpoch: src.epoch, TargetEpoch: m.epoch}})
	if rev != 0 {
		m.incoming[id] = rev
	}
}

// complete: the memory is over; both sides are paused.
func (w *world) complete(m *machine, id model.VMID) {
	in, ok := w.store.kv[model.IntentPrefix+id.String()]
	if !ok || m.incoming[id] != in.revision {
		return
	}
	if src := w.machine(in.value.(model.Intent).Source); src.executes(id, w.now) && !m.off {
		delete(src.runs, id)
		src.paused[id] = in.revision
	}
}

// commit: the target takes the guest, and only then continues it.
func (w *world) commit(m *machine, id model.VMID) {
	key := model.IntentPrefix + id.String()
	rev, waits := m.incoming[id]
	in, _ := w.store.kv[key].value.(model.Intent)
	if !waits || !w.leased(m) || in.Target != m.name {
		return
	}
	if src := w.machine(in.Source); src.paused[id] != rev {
		return // not complete
	}
	from, to, prot := model.GuestConfigKey(in.Source, id), model.GuestConfigKey(m.name, id), model.ProtectedPrefix+id.String()
	done := w.store.txn([]ha.Compare{
		{Key: key, Revision: rev},
		{Key: from, Revision: w.store.kv[from].revision},
		{Key: to},
		{Key: prot, Revision: w.store.kv[prot].revision},
		{Key: model.LivePrefix + m.name, Revision: w.store.kv[model.LivePrefix+m.name].revision},
	},
		write{key, nil}, write{from, nil}, write{to, w.store.kv[from].value}, write{prot, model.Protected{Node: m.name}})
	delete(m.incoming, id)
	if done != 0 {
		m.runs[id] = true
	}
}

// takeBack: the source continues its own QEMU, if the intent is gone by its own hand or the manager's, and the file is still its own.
func (w *world) takeBack(m *machine, id model.VMID) {
	rev, paused := m.paused[id]
	if !paused || !w.leased(m) {
		return
	}
	key := model.IntentPrefix + id.String()
	if w.store.kv[key].revision == rev {
		w.store.txn([]ha.Compare{{Key: key, Revision: rev}}, write{key, nil})
	}
	delete(m.paused, id)
	if _, mine := w.store.kv[model.GuestConfigKey(m.name, id)]; mine {
		m.runs[id] = true
	}
}

// look feeds a director the store as it was at a revision.
func (w *world) look(d *director, revision int64) {
	old, kv := w.store.history[d.seen], w.store.history[revision]
	for _, m := range w.machines {
		key := model.LivePrefix + m.name
		if _, known := d.arrived[m.name]; !known || old[key].revision != kv[key].revision {
			d.arrived[m.name] = w.now
		}
	}
	d.seen = revision
	w.step(d, w.view(d, kv))
}

func (w *world) step(d *director, ev ha.Event) {
	var actions []ha.Action
	d.state, actions = d.state.Step(w.now, ev)
	for _, a := range actions {
		if _, wake := a.(ha.Wake); !wake {
			d.queue = append(d.queue, a)
		}
	}
}

func (w *world) view(d *director, kv map[string]entry) ha.View {
	v := ha.View{
		Revision: d.seen, Quorate: true, LeaseValid: true, Resources: map[model.VMID]pveconf.HAState{}, Protected: map[model.VMID]ha.Protected{},
		Intents: map[model.VMID]ha.Intent{}, Statuses: map[model.VMID]ha.StatusRecord{},
	}
	v.Manager, _ = kv[model.ManagerKey].value.(model.Manager)
	v.ManagerRevision = kv[model.ManagerKey].revision
	for _, m := range w.machines {
		live := kv[model.LivePrefix+m.name]
		silence := w.now - d.arrived[m.name]
		v.Members = append(v.Members, ha.Member{
			Name: m.name, Revision: kv[model.NodePrefix+m.name].revision, MemoryMiB: 16384,
			Live: live.value.(model.Live), LiveRevision: live.revision, Silence: silence,
			MayTake: silence >= takeWait && !live.value.(model.Live).Fenced || live.value.(model.Live).Left, Why: "its lease is over",
			Heard: silence, Beacons: true, Fencing: []ha.FenceMethod{{Name: "bmc", Rehearsed: true}}, Storages: nil,
			Request: requestIn(kv, m.name), Mode: modeIn(kv, m.name),
		})
	}
	for _, key := range slices.Sorted(maps.Keys(kv)) {
		if node, id, ok := model.ParseGuestConfigKey(key); ok {
			v.Guests = append(v.Guests, ha.Guest{VMID: id, Node: node, Revision: kv[key].revision, MemoryMiB: 1024})
			v.Resources[id] = pveconf.HAStarted
		}
	}
	for _, id := range w.guests {
		if e := kv[model.ProtectedPrefix+id.String()]; e.value != nil {
			v.Protected[id] = ha.Protected{Protected: e.value.(model.Protected), Revision: e.revision}
		}
		if e := kv[model.IntentPrefix+id.String()]; e.value != nil {
			v.Intents[id] = ha.Intent{Intent: e.value.(model.Intent), Revision: e.revision}
		}
		if e := kv[model.HAStatusPrefix+id.SID()]; e.value != nil {
			v.Statuses[id] = ha.StatusRecord{Status: e.value.(ha.Status), Revision: e.revision}
		}
	}
	return v
}

func requestIn(kv map[string]entry, node string) ha.NodeRequest {
	r, _ := kv[model.HARequestPrefix+node].value.(ha.NodeRequest)
	return r
}

func modeIn(kv map[string]entry, node string) ha.NodeMode {
	m, _ := kv[model.HANodePrefix+node].value.(ha.NodeMode)
	return m
}

// handOver is what a worker does that saw the store at a revision: a guest that is wanted elsewhere ends, and its file goes. It is
// returned unsent; the transaction alone must see to it that nothing has changed.
func (w *world) handOver(m *machine, id model.VMID, revision int64) (ha.Handover, bool) {
	kv := w.store.history[revision]
	st := kv[model.HAStatusPrefix+id.SID()]
	conf, mine := kv[model.GuestConfigKey(m.name, id)]
	status, _ := st.value.(ha.Status)
	_, paused := m.paused[id]
	if !mine || status.Node != m.name || status.Target == "" || status.Target == m.name || m.off || paused || m.incoming[id] != 0 {
		return ha.Handover{}, false
	}
	if _, intent := kv[model.IntentPrefix+id.String()]; intent {
		return ha.Handover{}, false
	}
	prot := kv[model.ProtectedPrefix+id.String()]
	return ha.Handover{
		VMID: id, From: m.name, To: status.Target, ConfigRevision: conf.revision, ProtectedRevision: prot.revision, StatusRevision: st.revision,
		ToRevision: kv[model.NodePrefix+status.Target].revision, Protected: true,
	}, true
}

// leave is an orderly end: no guest runs, then the record says so. The node must know its own record.
func (w *world) leave(m *machine) {
	key := model.LivePrefix + m.name
	if m.off || !w.leased(m) {
		return
	}
	w.store.set(model.HANodePrefix+m.name, ha.NodeMode{Ends: ha.EndsShutdown, BootID: w.store.kv[key].value.(model.Live).BootID})
	clear(m.runs)
	live := w.store.kv[key].value.(model.Live)
	live.Left = true
	w.store.txn([]ha.Compare{{Key: key, Revision: m.revision}}, write{key, live})
	m.off, m.sent = true, nil
}

// report is what a worker writes that finds a guest's record out of date.
func (w *world) report(m *machine, id model.VMID) {
	if _, mine := w.store.kv[model.GuestConfigKey(m.name, id)]; mine && w.leased(m) {
		w.store.set(model.HAStatusPrefix+id.SID(), ha.Status{State: ha.StatusStarted, Node: m.name})
	}
}

// carryOut commits an action, by what it compares alone, and returns its revision, or 0.
func (w *world) carryOut(a ha.Action) int64 {
	switch a := a.(type) {
	case ha.TakeManager:
		return w.store.txn(a.Compares(), write{model.ManagerKey, a.Manager})
	case ha.Cut:
		return w.store.txn(a.Compares(), write{model.LivePrefix + a.Node, a.NewLive})
	case ha.ClearIntent:
		return w.store.txn(a.Compares(), write{model.IntentPrefix + a.VMID.String(), nil})
	case ha.SetStatus:
		return w.store.txn(a.Compares(), write{model.HAStatusPrefix + a.VMID.SID(), a.Status})
	case ha.AskFence:
		return w.store.revision
	case ha.Shoot:
		m := w.machine(a.Node)
		m.off, m.sent = true, nil
		clear(m.runs)
		return w.store.revision
	case ha.Handover:
		from := model.GuestConfigKey(a.From, a.VMID)
		return w.store.txn(a.Compares(), write{from, nil}, write{model.GuestConfigKey(a.To, a.VMID), w.store.kv[from].value},
			write{model.ProtectedPrefix + a.VMID.String(), model.Protected{Node: a.To}})
	case ha.Move:
		from := model.GuestConfigKey(a.From, a.VMID)
		return w.store.txn(a.Compares(), write{from, nil}, write{model.GuestConfigKey(a.To, a.VMID), w.store.kv[from].value},
			write{model.ProtectedPrefix + a.VMID.String(), model.Protected{Node: a.To}})
	}
	panic("unknown action " + a.Key())
}

// answer carries out an action of a director's queue and tells it what became of it.
func (w *world) answer(d *director, i int) {
	a := d.queue[i]
	d.queue = slices.Delete(d.queue, i, i+1)
	if ask, ok := a.(ha.AskFence); ok {
		w.step(d, ha.FenceResult{Action: ask, Off: w.machine(ask.Node).off})
		return
	}
	if rev := w.carryOut(a); rev != 0 {
		w.step(d, ha.ActionDone{Action: a, Revision: rev})
	} else {
		w.step(d, ha.ActionFailed{Action: a, Kind: ha.FailConflict})
	}
}

// wrong says what must never be, "" if all is well.
func (w *world) wrong() string {
	for _, id := range w.guests {
		if _, n := w.store.owner(id); n != 1 {
			return id.SID() + " has not exactly one owner"
		}
		var on []string
		for _, m := range w.machines {
			if m.executes(id, w.now) {
				on = append(on, m.name)
			}
		}
		if len(on) > 1 {
			return id.SID() + " executes on " + strings.Join(on, " and ")
		}
	}
	return ""
}
