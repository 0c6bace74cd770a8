package agent

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/load"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/qemu"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/sys"
)

// machine3 is a node whose cgroups are files of the test's, with the shell that measures it.
type machine3 struct {
	t    *testing.T
	l    *nodeLoad
	dir  string
	now  time.Duration // the node's boot clock
	cpu  time.Duration // used by all that runs there
	mib  int64         // used of 8 GiB
	used map[model.VMID]time.Duration
}

// measuredNode has node name measured with files instead of cgroups.
func (n *node) measuredNode(name string) *machine3 {
	n.t.Helper()
	m := &machine3{t: n.t, dir: n.t.TempDir(), now: time.Hour, mib: 1024, used: map[model.VMID]time.Duration{}}
	m.l = &nodeLoad{
		node: name, boot: "boot-" + name, log: slog.New(slog.NewTextHandler(io.Discard, nil)), st: n.st.Store, mirror: n.m.mirror,
		procs:   newProcs(Paths{CgroupRoot: m.dir, Run: m.dir}, n.a.log, nil, func() {}),
		machine: sys.Cgroup(m.dir), memory: func() (int64, int64, error) { return 8 << 30, 8<<30 - m.mib<<20, nil },
		clock: func() time.Duration { return m.now },
	}
	return m
}

// write makes a file of the node's.
func (m *machine3) write(text string, path ...string) {
	m.t.Helper()
	file := filepath.Join(append([]string{m.dir}, path...)...)
	must(m.t, os.MkdirAll(filepath.Dir(file), 0o755))
	must(m.t, os.WriteFile(file, []byte(text), 0o600))
}

// pass lets time go by once, in which the node's own processes and the guests that run there use so many processors.
func (m *machine3) pass(host float64, guests map[model.VMID]float64) {
	m.now += load.Pace
	m.cpu += time.Duration(host * float64(load.Pace))
	for id := range m.l.procs.list() {
		if _, ok := guests[id]; !ok {
			delete(m.l.procs.all, id)
			delete(m.used, id)
		}
	}
	for id, cpus := range guests {
		if m.l.procs.get(id) == nil {
			m.l.procs.all[id] = newProc(&qemu.Process{}, false)
		}
		used := time.Duration(cpus * float64(load.Pace))
		m.used[id] += used
		m.cpu += used
		m.write(fmt.Sprintf("usage_usec %d\nuser_usec 0\n", m.used[id].Microseconds()), "sauh", "guests", id.String(), "cpu.stat")
		m.write("", "sauh", "guests", id.String(), "cgroup.procs")
	}
	m.write(fmt.Sprintf("usage_usec %d\n", m.cpu.Microseconds()), "cpu.stat")
}

// look has the node measure, and waits until the mirror has what it told.
func (n *node) look(m *machine3) {
	m.l.look(n.t.Context())
	n.follow()
}

const dynamic = "crs: ha=dynamic\n"

func (n *node) told(name string) (r load.Record) {
	n.t.Helper()
	if v := n.get(model.HALoadPrefix + name); v != "" {
		must(n.t, json.Unmarshal([]byte(v), &r))
	}
	return r
}

func TestANodeTellsWhatItAndItsGuestsUse(t *testing.T) {
	n := haNode(t)
	n.put(datacenterKey, dynamic)
	m := n.measuredNode("n1")
	guests := map[model.VMID]float64{100: 1.5, 101: 0}
	m.pass(0.5, guests)
	n.look(m)
	if got := n.get(model.HALoadPrefix + "n1"); got != "" {
		t.Errorf("after one look it tells %s", got)
	}
	m.pass(0.5, guests)
	n.look(m)
	want := load.Record{
		BootID: "boot-n1", At: uint64(m.now.Microseconds()), Rest: load.Use{CPU: 0.5, MemoryMiB: 1024},
		Guests: map[model.VMID]load.Use{100: {CPU: 1.5}, 101: {}},
	}
	if diff := cmp.Diff(want, n.told("n1")); diff != "" {
		t.Error(diff)
	}
}

func TestTheMemoryOfAGuestIsThatOfItsProcesses(t *testing.T) {
	n := haNode(t)
	m := n.measuredNode("n1")
	m.pass(0, map[model.VMID]float64{100: 1})
	m.write(fmt.Sprintf("%d\n%d\n", os.Getpid(), 1<<30), "sauh", "guests", "100", "cgroup.procs") // the second has just ended
	r, err := m.l.read(n.m.mirror.Snapshot())
	must(t, err)
	bytes, err := sys.ProcessMemory(os.Getpid())
	must(t, err)
	if got, is := r.Guests[100].MemoryMiB, bytes>>20; got < is/2 || got > is {
		t.Errorf("got %d MiB, the process has %d", got, is)
	}
	m.l.procs.all[200] = newProc(&qemu.Process{}, false) // its cgroup is gone
	if r, err := m.l.read(n.m.mirror.Snapshot()); err != nil || len(r.Guests) != 1 {
		t.Errorf("%+v, %v", r, err)
	}
}

func TestTheStoreIsWrittenOnlyWhereLoadsCountAndWhenTheyChanged(t *testing.T) {
	n := haNode(t)
	m := n.measuredNode("n1")
	guests := map[model.VMID]float64{100: 0.5}
	writes := func(looks int, change func(i int)) int {
		before := n.cluster.Revision()
		for i := range looks {
			change(i)
			m.pass(0.1, guests)
			n.look(m)
		}
		return int(n.cluster.Revision() - before)
	}
	same := func(int) {}
	if got := writes(10, same); got != 0 {
		t.Errorf("where loads do not count %d writes", got)
	}
	n.put(datacenterKey, dynamic)
	if got := writes(1, same); got != 1 {
		t.Errorf("when they begin to count %d writes", got)
	}
	if got := writes(23, same); got != 0 {
		t.Errorf("while nothing changes for two minutes %d writes", got)
	}
	if got := writes(1, same); got != 1 {
		t.Errorf("after two minutes %d writes", got)
	}
	if got := writes(24, func(i int) { guests[100] = 0.5 + 0.05*float64(i%2) }); got > 1 {
		t.Errorf("for a small change %d writes", got)
	}
	if got := writes(24, func(i int) { guests[100] = float64(i%2) * 8; m.mib = 1024 + 512*int64(i%2) }); got < 6 || got > 12 {
		t.Errorf("for a great change at each look, in two minutes %d writes", got)
	}
	must(t, os.Remove(filepath.Join(m.dir, "cpu.stat")))
	before := n.cluster.Revision()
	n.look(m)
	if n.cluster.Revision() != before || !m.l.failed {
		t.Error("what was not measured is told")
	}
}

func TestAGuestThatComesHereGoesOnWithItsUse(t *testing.T) {
	n := haNode(t)
	n.put(datacenterKey, dynamic)
	m := n.measuredNode("n1")
	for range 2 {
		m.pass(0, nil)
		n.look(m)
	}
	n.put(model.HALoadPrefix+"n2", string(mustJSON(load.Record{BootID: "b", Guests: map[model.VMID]load.Use{200: {CPU: 0.5, MemoryMiB: 300}}})))
	n.put(model.IntentPrefix+"200", `{"vmid":200,"source":"n2","target":"n1"}`)
	m.pass(0, map[model.VMID]float64{200: 1})
	m.l.procs.get(200).incoming.Store(true)
	n.look(m)
	if got := n.told("n1").Guests; len(got) != 0 {
		t.Errorf("a guest that is not here yet is told: %v", got)
	}
	n.delete(model.IntentPrefix + "200")
	m.l.procs.get(200).incoming.Store(false)
	m.pass(0, map[model.VMID]float64{200: 2})
	n.look(m)
	if got, want := n.told("n1").Guests[200], (load.Use{CPU: 0.5}); got != want {
		t.Errorf("got %+v, want %+v", got, want)
	}
}

// allOnline hears of every node all the time.
type allOnline struct {
	*mirror.Mirror
	silent string
}

func (o allOnline) Online(node string) bool { return node != o.silent }

func (o allOnline) Valid() (uint64, bool) { return 1, true }

func (o allOnline) Verdict(node string) (lease.Verdict, time.Duration) {
	live, _ := mirror.Get[model.Live](o.Snapshot(), model.LivePrefix+node)
	return lease.Verdict{Live: live.Value, Revision: live.Revision}, 0
}

func TestTheManagerSeesTheLoadsThatCount(t *testing.T) {
	n := haNode(t)
	n.m.manager.live = allOnline{Mirror: n.m.mirror}
	n.put(model.LivePrefix+"n1", `{"boot_id":"b1","epoch":1,"seq":60000000}`)
	n.put(model.LivePrefix+"n2", `{"boot_id":"b2","epoch":1,"seq":60000000}`)
	n.put(model.GuestConfigKey("n1", 101), "memory: 256\n")
	n.put(model.HALoadPrefix+"n1", `{"boot_id":"b1","at":60000000,"rest":{"cpu":0.5,"mem":700},"guests":{"100":{"cpu":1.5,"mem":200}}}`)
	n.put(model.HALoadPrefix+"n2", `{"boot_id":"b2","at":60000000,"rest":{"cpu":0.25,"mem":600}}`)
	type seen struct {
		N1, N2, Guest ha.Load
		Unmeasured    bool
	}
	see := func() (s seen) {
		v := n.m.manager.view()
		for _, m := range v.Members {
			if m.Name == "n1" {
				s.N1 = m.Load
			} else {
				s.N2 = m.Load
			}
		}
		for _, g := range v.Guests {
			if g.VMID == 100 {
				s.Guest = g.Load
			} else if g.VMID == 101 {
				s.Unmeasured = g.Unmeasured
			}
		}
		return s
	}
	wants := func(what string, want seen) {
		t.Helper()
		if diff := cmp.Diff(want, see()); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	wants("where loads do not count", seen{})
	n.put(datacenterKey, dynamic)
	all := seen{ha.Load{CPU: 2, MemoryMiB: 900}, ha.Load{CPU: 0.25, MemoryMiB: 600}, ha.Load{CPU: 1.5, MemoryMiB: 200}, true}
	wants("in mode dynamic", all)

	st, err := n.m.roles.HA.HAStatus(t.Context())
	must(t, err)
	for i, l := range []ha.Load{all.N1, all.N2} {
		want := &api.HALoad{Measured: true, CPU: l.CPU, MemoryMiB: l.MemoryMiB, MaxMemoryMiB: int64(4096 * i)}
		if diff := cmp.Diff(want, st.Nodes[i].Load); diff != "" {
			t.Error(diff)
		}
	}

	n.m.manager.live = allOnline{n.m.mirror, "n2"}
	without2 := all
	without2.N2 = ha.Load{}
	wants("a silent node", without2)
	n.m.manager.live = allOnline{Mirror: n.m.mirror}

	n.put(model.LivePrefix+"n2", `{"boot_id":"b3","epoch":1,"seq":60000000}`)
	wants("a node that was booted anew", without2)
	n.put(model.LivePrefix+"n2", `{"boot_id":"b2","epoch":1,"seq":360000000}`)
	wants("a node that has renewed for five minutes and told nothing", without2)
	n.put(model.LivePrefix+"n2", `{"boot_id":"b2","epoch":1,"seq":60000000}`)
	n.put(model.HALoadPrefix+"n2", `{`)
	wants("a record that cannot be read", without2)
	if !n.m.manager.view().Quorate {
		t.Error("a load that cannot be read ends every decision")
	}
	n.put(model.HALoadPrefix+"n2", `{"boot_id":"b2","at":60000000,"rest":{"cpu":0.25,"mem":600}}`)
	wants("again", all)

	n.delete(model.GuestConfigKey("n1", 100))
	n.put(model.GuestConfigKey("n2", 100), "memory: 256\n")
	all.N1, all.N2 = ha.Load{CPU: 0.5, MemoryMiB: 700}, ha.Load{CPU: 1.75, MemoryMiB: 800}
	wants("a guest that has moved", all)
}

// room is three nodes with four processors and 8 GiB each, in which what the manager wants moved moves.
type room struct {
	*node
	machines map[string]*machine3
	s        ha.State
	now      time.Duration
	moves    []string // "vm:100 n1 n2"
	flying   map[model.VMID]string
	arrives  map[model.VMID]time.Duration
}

// startRoom has HA resources, by node.
func startRoom(t *testing.T, on map[string][]model.VMID) *room {
	t.Helper()
	n := newNode(t)
	n.storage("nas", "\tshared 1\n")
	n.put(datacenterKey, "crs: ha=dynamic,ha-auto-rebalance=1\n")
	n.put(model.ManagerKey, `{"node":"n1","term":1}`)
	n.m.manager.live = allOnline{Mirror: n.m.mirror}
	r := &room{
		node: n, machines: map[string]*machine3{}, s: ha.New("n1", n.m.manager.params), now: time.Hour,
		flying: map[model.VMID]string{}, arrives: map[model.VMID]time.Duration{},
	}
	resources := ""
	for i, name := range []string{"n1", "n2", "n3"} {
		n.put(model.NodePrefix+name, string(mustJSON(model.Node{Name: name, ID: i + 1, Votes: 1, CPUs: 4, MemoryMiB: 8192})))
		r.machines[name] = n.measuredNode(name)
		for _, id := range on[name] {
			n.put(model.GuestConfigKey(name, id), "memory: 1024\ncores: 4\nvirtio0: nas:"+id.String()+"/a.raw\n")
			n.put(model.HAStatusPrefix+id.SID(), string(mustJSON(ha.Status{State: ha.StatusStarted, Node: name})))
			resources += "vm: " + id.String() + "\n\tstate started\n\n"
		}
	}
	n.put(haResourcesKey, resources)
	return r
}

// run lets time go by; use says what a guest uses at the moment.
func (r *room) run(d time.Duration, use func(model.VMID) float64) {
	r.t.Helper()
	for end := r.now + d; r.now < end; {
		r.now += load.Pace
		r.land()
		on := map[string]map[model.VMID]float64{}
		for _, f := range guestFilesIn(r.m.mirror.Snapshot()) {
			if on[f.node] == nil {
				on[f.node] = map[model.VMID]float64{}
			}
			on[f.node][f.id] = use(f.id)
		}
		for name, m := range r.machines {
			m.pass(0.05, on[name])
			if r.now%time.Minute == load.Pace {
				putKey(r.t, r.other, model.LivePrefix+name, string(mustJSON(model.Live{BootID: m.l.boot, Epoch: 1, Seq: uint64(m.now.Microseconds())})))
			}
			m.l.look(r.t.Context())
		}
		r.follow()
		var actions []ha.Action
		r.s, actions = r.s.Step(r.now, r.m.manager.view())
		for _, a := range actions {
			r.do(a)
		}
	}
}

// do carries an action out, and lets a guest fly for ten seconds.
func (r *room) do(a ha.Action) {
	r.t.Helper()
	if _, ok := a.(ha.Wake); ok {
		return
	}
	st, ok := a.(ha.SetStatus)
	if !ok || st.Status.State != ha.StatusMigrate {
		r.t.Fatalf("the manager wants %T: %s", a, a.Why())
	}
	rev, err := r.m.manager.do(r.t.Context(), a)
	must(r.t, err)
	r.follow()
	r.s, _ = r.s.Step(r.now, ha.ActionDone{Action: a, Revision: rev})
	r.moves = append(r.moves, fmt.Sprintf("%s %s %s", st.VMID.SID(), st.Status.Node, st.Status.Target))
	r.flying[st.VMID], r.arrives[st.VMID] = st.Status.Target, r.now+10*time.Second
}

func (r *room) land() {
	r.t.Helper()
	for id, to := range r.flying {
		if r.now < r.arrives[id] {
			continue
		}
		delete(r.flying, id)
		from, file := r.where(id)
		_, err := r.other.Txn(r.t.Context(), store.Txn{
			If:   []store.Cond{{Key: model.GuestConfigKey(from, id), Revision: file.ModRevision}, {Key: model.GuestConfigKey(to, id)}},
			Then: []store.Op{store.Delete(model.GuestConfigKey(from, id)), store.Put(model.GuestConfigKey(to, id), file.Value)},
		})
		must(r.t, err)
		r.put(model.HAStatusPrefix+id.SID(), string(mustJSON(ha.Status{State: ha.StatusStarted, Node: to})))
	}
}

func (r *room) where(id model.VMID) (string, store.KV) {
	for kv := range r.m.mirror.Snapshot().All(model.ConfigPrefix + "nodes/") {
		if node, got, ok := model.ParseGuestConfigKey(kv.Key); ok && got == id {
			return node, kv
		}
	}
	r.t.Fatalf("guest %s has no file", id)
	return "", store.KV{}
}

func TestABusyGuestLeavesALoadedNodeAndNothingGoesBackAndForth(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	noise := rand.New(rand.NewPCG(seed, 0))
	r := startRoom(t, map[string][]model.VMID{"n1": {100, 101}, "n2": {102}, "n3": {103}})
	busy := map[model.VMID]float64{100: 2, 101: 1, 102: 0.8, 103: 1.4}
	noisy := func(id model.VMID) float64 { return busy[id] * (0.7 + 0.6*noise.Float64()) }
	r.run(50*time.Second, noisy)
	if len(r.moves) > 0 {
		t.Errorf("before the imbalance lasted: %v", r.moves)
	}
	r.run(time.Hour, noisy)
	if diff := cmp.Diff([]string{"vm:101 n1 n2"}, r.moves); diff != "" {
		t.Error(diff)
	}
}

func TestAnIdleClusterStaysAsItIs(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	noise := rand.New(rand.NewPCG(seed, 0))
	r := startRoom(t, map[string][]model.VMID{"n1": {100, 101}, "n2": {102}, "n3": {103}})
	spikes := map[model.VMID]int{}
	r.run(time.Hour, func(id model.VMID) float64 { // a job for a quarter of a minute, once in a while
		if spikes[id]--; noise.IntN(120) == 0 {
			spikes[id] = 3
		}
		if spikes[id] > 0 {
			return 1
		}
		return 0.02 * noise.Float64()
	})
	if len(r.moves) > 0 {
		t.Errorf("moved for nothing: %v", r.moves)
	}
}
