package move

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/migrate"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/qmp"
	"sauh.dev/sauh/internal/qmp/qmptest"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/store/mem"
)

const (
	guest model.VMID = 100
	nodeA            = "n1" // the source
	nodeB            = "n2" // the target
	judge            = "n3" // a third node, which never fails and decides about HA
)

// world is three nodes with one guest, whose agents do as the real ones: they
// recover what was interrupted, start a guest of theirs that has no process, and the third fences the silent.
type world struct {
	t       *testing.T
	room    *qmptest.Room
	cluster *mem.Cluster
	nodes   map[string]*machine
	judge   *mem.Store
	wg      sync.WaitGroup
	ctx     context.Context
	end     context.CancelFunc
	result  chan error

	mu     sync.Mutex
	points []string // what happened, in order
	at     string   // where the fault strikes: a point and its number
	strike func()
	struck bool
	count  map[string]int
	boots  int
	lines  []string
	rpcCut bool
}

// machine is a node: its processes outlive its agent.
type machine struct {
	w     *world
	name  string
	store *mem.Store
	notes *memNotes

	// Guarded by w.mu.
	off    bool
	silent time.Time // since when it does not reach the store; zero if it does
	procs  []*process
	agent  *agent
}

type process struct {
	*qmptest.QEMU
	node *machine
}

// agent is one life of a node's agent.
type agent struct {
	m      *machine
	ctx    context.Context
	cancel context.CancelCauseFunc
	target *Target
	claims Claims

	// Guarded by w.mu.
	dead  bool
	conns []net.Conn
}

func newWorld(t *testing.T) *world {
	w := &world{
		t: t, room: qmptest.NewRoom(), cluster: mem.New(), nodes: map[string]*machine{}, count: map[string]int{},
		result: make(chan error, 1),
	}
	w.ctx, w.end = context.WithCancel(context.Background())
	w.judge = w.cluster.Open(judge)
	for _, name := range []string{nodeA, nodeB, judge} {
		w.put(model.LivePrefix+name, model.Live{Epoch: 1})
	}
	w.putRaw(model.GuestConfigKey(nodeA, guest), "name: probe\n")
	w.put(model.ProtectedPrefix+guest.String(), model.Protected{Node: nodeA})
	for _, name := range []string{nodeA, nodeB} {
		w.nodes[name] = &machine{w: w, name: name, store: w.cluster.Open(name), notes: &memNotes{}}
	}
	w.nodes[nodeA].boot()
	w.room.SetHook(func(q *qmptest.QEMU, point string) { w.point(q.Name + " " + point) })
	for _, m := range w.nodes {
		m.startAgent()
	}
	w.wg.Add(1)
	go w.manage()
	return w
}

func (w *world) putRaw(key, value string) {
	w.t.Helper()
	kv, err := w.judge.Get(w.ctx, key, store.Linearizable)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		w.t.Fatal(err)
	}
	_, err = w.judge.Txn(w.ctx, store.Txn{
		If:   []store.Cond{{Key: key, Revision: kv.ModRevision}},
		Then: []store.Op{store.Put(key, []byte(value))},
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) put(key string, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		w.t.Fatal(err)
	}
	w.putRaw(key, string(b))
}

// point marks a place where a fault can strike.
func (w *world) point(name string) {
	w.mu.Lock()
	w.count[name]++
	id := fmt.Sprintf("%s #%d", name, w.count[name])
	w.points = append(w.points, id)
	strike := w.strike
	if id != w.at || w.struck || strike == nil {
		strike = nil
	} else {
		w.struck = true
	}
	w.mu.Unlock()
	if strike != nil {
		strike()
	}
}

// boot starts the guest anew on m.
func (m *machine) boot() {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	m.w.boots++
	m.procs = append(m.procs, &process{m.w.room.Start(m.name), m})
}

// process returns the node's living process of the guest.
func (m *machine) process() *process {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	for _, p := range m.procs {
		if p.Status() != "" {
			return p
		}
	}
	return nil
}

func (m *machine) startAgent() {
	a := &agent{m: m}
	a.ctx, a.cancel = context.WithCancelCause(m.w.ctx)
	a.target = NewTarget(a.targetDeps())
	m.w.mu.Lock()
	m.agent = a
	m.w.mu.Unlock()
	m.w.wg.Add(1)
	go a.work()
}

// kill ends the agent at once: from now on nothing it does has an effect.
func (a *agent) kill() {
	a.m.w.mu.Lock()
	defer a.m.w.mu.Unlock()
	if a.dead {
		return
	}
	a.dead = true
	a.cancel(ErrAbandoned)
	for _, c := range a.conns {
		_ = c.Close()
	}
	a.m.w.wg.Add(1)
	go func() {
		defer a.m.w.wg.Done()
		a.target.Close()
	}()
}

func (a *agent) isDead() bool {
	a.m.w.mu.Lock()
	defer a.m.w.mu.Unlock()
	return a.dead
}

// work is the level-triggered part of an agent: recover first, then start what should run.
func (a *agent) work() {
	defer a.m.w.wg.Done()
	for a.ctx.Err() == nil {
		a.recover()
		a.startMissing()
		_ = sleep(a.ctx, 500*time.Millisecond)
	}
}

func (a *agent) recover() {
	_, err := Recover(a.ctx, a.targetDeps(), guest)
	if err != nil && !errors.Is(err, model.ErrNotFound) && !errors.Is(err, model.ErrBusy) && a.ctx.Err() == nil {
		a.m.w.logf("%s recover: %v", a.m.name, err)
	}
}

func (a *agent) startMissing() {
	free, err := a.claims.Claim(guest)
	if err != nil {
		return
	}
	defer free()
	_, err = a.m.store.Get(a.ctx, intentKey(guest), store.Linearizable)
	if !errors.Is(err, store.ErrNotFound) {
		return
	}
	if _, err := a.m.store.Get(a.ctx, model.GuestConfigKey(a.m.name, guest), store.Linearizable); err != nil {
		return
	}
	if !a.isDead() && a.m.process() == nil {
		a.m.boot()
	}
}

func (w *world) logf(format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lines = append(w.lines, fmt.Sprintf(format, args...))
}

// gate is the agent's view of the store: with points, and shut when the agent is dead.
type gate struct {
	store.Store
	a *agent
}

var errDead = errors.New("the agent is dead")

func (g gate) Get(ctx context.Context, key string, r store.Read) (store.KV, error) {
	if g.a.isDead() {
		return store.KV{}, errDead
	}
	return g.Store.Get(ctx, key, r)
}

func (g gate) Txn(ctx context.Context, t store.Txn) (int64, error) {
	g.a.m.w.point(g.a.m.name + " txn")
	if g.a.isDead() {
		return 0, errDead
	}
	rev, err := g.Store.Txn(ctx, t)
	g.a.m.w.point(g.a.m.name + " txn answer")
	if g.a.isDead() {
		return 0, errDead
	}
	return rev, err
}

// handle is a process as an agent holds it.
type handle struct {
	p    *process
	a    *agent
	conn *qmp.Conn
}

func (h *handle) QMP() *qmp.Conn { return h.conn }

func (h *handle) Destroy(context.Context) error {
	if h.a.isDead() {
		return errDead
	}
	h.p.Die()
	return nil
}

func (a *agent) hold(ctx context.Context, p *process) (QEMU, error) {
	raw := p.Pipe()
	a.m.w.mu.Lock()
	dead := a.dead
	a.conns = append(a.conns, raw)
	a.m.w.mu.Unlock()
	if dead {
		_ = raw.Close()
		return nil, errDead
	}
	conn, err := qmp.NewConn(ctx, raw)
	if err != nil {
		return nil, err
	}
	return &handle{p, a, conn}, nil
}

func (a *agent) deps() Deps {
	return Deps{
		Node: a.m.name, Store: gate{a.m.store, a}, Notes: notesOf{a}, Claims: &a.claims, Config: migrate.Defaults(),
		Log: func(_ model.VMID, line string) { a.m.w.logf("%s %s", a.m.name, line) },
		Find: func(ctx context.Context, _ model.VMID) (QEMU, error) {
			if p := a.m.process(); p != nil {
				return a.hold(ctx, p)
			}
			return nil, model.ErrNotFound
		},
	}
}

func (a *agent) targetDeps() TargetDeps {
	return TargetDeps{
		Deps: a.deps(), Listen: "10.10.2.2",
		Start: func(ctx context.Context, r StartRequest) (QEMU, error) {
			a.m.w.point(a.m.name + " start")
			if a.isDead() || !r.Protected || string(r.Config) != "name: probe\n" || string(r.Machine) != "as it runs" {
				return nil, errDead
			}
			p := &process{a.m.w.room.StartIncoming(a.m.name), a.m}
			a.m.w.mu.Lock()
			a.m.procs = append(a.m.procs, p)
			a.m.w.mu.Unlock()
			return a.hold(ctx, p)
		},
		Protect: func(context.Context, model.VMID) error { return nil },
	}
}

// peer is the source's way to the target's agent of this moment.
type peer struct{ w *world }

func (p peer) reach() (*Target, error) {
	p.w.mu.Lock()
	defer p.w.mu.Unlock()
	a := p.w.nodes[nodeB].agent
	if p.w.rpcCut || a.dead {
		return nil, model.Errorf(model.ErrUnavailable, "node %s does not answer", nodeB)
	}
	return a.target, nil
}

func (p peer) Prepare(ctx context.Context, r PrepareRequest) (PrepareAnswer, error) {
	p.w.point("prepare")
	t, err := p.reach()
	if err != nil {
		return PrepareAnswer{}, err
	}
	answer, err := t.Prepare(ctx, r)
	p.w.point("prepare answer")
	if _, cut := p.reach(); cut != nil {
		return PrepareAnswer{}, cut
	}
	return answer, err
}

func (p peer) Abort(ctx context.Context, r AbortRequest) error {
	t, err := p.reach()
	if err != nil {
		return err
	}
	return t.Abort(ctx, r)
}

// migrate has the source's agent of this moment move the guest.
func (w *world) migrate(ctx context.Context) {
	m := w.nodes[nodeA]
	w.mu.Lock()
	a := m.agent
	w.mu.Unlock()
	ctx, cancel := context.WithCancelCause(ctx)
	unlink := context.AfterFunc(a.ctx, func() { cancel(context.Cause(a.ctx)) })
	w.wg.Add(1)
	go func() {
		defer w.wg.Done()
		defer unlink()
		d := SourceDeps{Deps: a.deps(), Peer: peer{w}}
		err := Source(ctx, d, Request{VMID: guest, Target: nodeB, Task: "UPID:1", Machine: []byte("as it runs")})
		for errors.Is(err, model.ErrBusy) && sleep(ctx, time.Millisecond) == nil {
			err = Source(ctx, d, Request{VMID: guest, Target: nodeB, Task: "UPID:1", Machine: []byte("as it runs")})
		}
		w.result <- err
	}()
}

// manage is the HA manager on the third node: it fences who is silent and gives
// the guest of a fenced node to a living one.
func (w *world) manage() {
	defer w.wg.Done()
	for w.ctx.Err() == nil {
		_ = sleep(w.ctx, 500*time.Millisecond)
		for _, name := range []string{nodeA, nodeB} {
			w.judgeNode(name)
		}
	}
}

func (w *world) judgeNode(name string) {
	w.mu.Lock()
	silent := w.nodes[name].silent
	w.mu.Unlock()
	d := Deps{Node: judge, Store: w.judge}
	live, kv, err := getJSON[model.Live](w.ctx, d, model.LivePrefix+name, store.Linearizable)
	if err != nil {
		return
	}
	switch {
	case !silent.IsZero() && !live.Fenced && time.Since(silent) > 12*time.Second:
		w.write(kv, model.Live{Epoch: live.Epoch + 1, Fenced: true, By: judge})
	case !silent.IsZero() && live.Fenced:
		w.takeOver(d, name)
	case silent.IsZero() && live.Fenced:
		w.write(kv, model.Live{Epoch: live.Epoch}) // it is back and registers again
	}
}

func (w *world) write(kv store.KV, v any) {
	b, _ := json.Marshal(v)
	_, _ = w.judge.Txn(w.ctx, store.Txn{
		If:   []store.Cond{{Key: kv.Key, Revision: kv.ModRevision}},
		Then: []store.Op{store.Put(kv.Key, b)},
	})
}

func (w *world) takeOver(d Deps, from string) {
	to := nodeA
	if from == nodeA {
		to = nodeB
	}
	in, err := d.get(w.ctx, intentKey(guest), store.Linearizable)
	conf, err2 := d.get(w.ctx, model.GuestConfigKey(from, guest), store.Linearizable)
	if err != nil || err2 != nil || in.ModRevision != 0 || conf.ModRevision == 0 {
		return
	}
	_, _ = w.judge.Txn(w.ctx, store.Txn{
		If: []store.Cond{
			{Key: in.Key}, {Key: conf.Key, Revision: conf.ModRevision}, {Key: model.GuestConfigKey(to, guest)},
		},
		Then: []store.Op{store.Delete(conf.Key), store.Put(model.GuestConfigKey(to, guest), conf.Value)},
	})
}

// close ends the world and waits for all of it.
func (w *world) close() {
	w.room.SetHook(nil)
	for _, m := range w.nodes {
		m.life().kill()
	}
	w.end()
	w.room.Close()
	w.wg.Wait()
	for _, m := range w.nodes {
		_ = m.store.Close()
	}
	_ = w.judge.Close()
}

// verify says what is wrong with where the world ended up; reboots tells whether
// the fault may cost the guest its memory.
func (w *world) verify(reboots bool) error {
	if v := w.room.Violations(); len(v) > 0 {
		return fmt.Errorf("two writers: %q", v)
	}
	if r := w.room.Running(); len(r) != 1 {
		return fmt.Errorf("running at the end: %q, alive %q", r, w.room.Alive())
	}
	if a := w.room.Alive(); len(a) != 1 {
		return fmt.Errorf("processes left over: %q, running %q", a, w.room.Running())
	}
	if w.booted() > 1 && !reboots {
		return errors.New("the guest was booted anew")
	}
	if _, err := w.judge.Get(context.Background(), intentKey(guest), store.Local); !errors.Is(err, store.ErrNotFound) {
		return fmt.Errorf("the intent is left over: %w", err)
	}
	owner := w.room.Running()[0]
	if _, err := w.judge.Get(context.Background(), model.GuestConfigKey(owner, guest), store.Local); err != nil {
		return fmt.Errorf("the guest runs on %s and its file is elsewhere: %w", owner, err)
	}
	for name, m := range w.nodes {
		if n := m.notes.list(); len(n) > 0 && !m.isOff() {
			return fmt.Errorf("a note is left on %s: %v", name, n)
		}
	}
	return nil
}

// booted counts how often the guest was started anew, the first time included.
func (w *world) booted() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.boots
}

// strikeAt has f happen at a point.
func (w *world) strikeAt(point string, f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.count = map[string]int{}
	w.at, w.strike = point, f
}

// said reports whether a line of the log contains text.
func (w *world) said(text string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return slices.ContainsFunc(w.lines, func(l string) bool { return strings.Contains(l, text) })
}

func (m *machine) isOff() bool {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	return m.off
}

// life is the node's agent of this moment.
func (m *machine) life() *agent {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	return m.agent
}

// story is what to read when a test failed.
func (w *world) story() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return fmt.Sprintf("room %q\nlog %q\npoints %q", w.room.Log(), w.lines, w.points[max(0, len(w.points)-60):])
}

// memNotes keeps notes in memory.
type memNotes struct {
	mu sync.Mutex
	m  map[model.VMID]Note
}

func (n *memNotes) Save(id model.VMID, note Note) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.m == nil {
		n.m = map[model.VMID]Note{}
	}
	n.m[id] = note
	return nil
}

func (n *memNotes) Load(id model.VMID) (Note, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	note, ok := n.m[id]
	if !ok {
		return Note{}, model.ErrNotFound
	}
	return note, nil
}

func (n *memNotes) Remove(id model.VMID) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.m, id)
	return nil
}

func (n *memNotes) list() []model.VMID {
	n.mu.Lock()
	defer n.mu.Unlock()
	var ids []model.VMID
	for id := range n.m {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// notesOf are a node's notes as one life of its agent has them.
type notesOf struct{ a *agent }

func (n notesOf) Save(id model.VMID, note Note) error {
	if n.a.isDead() {
		return errDead
	}
	return n.a.m.notes.Save(id, note)
}

func (n notesOf) Load(id model.VMID) (Note, error) {
	if n.a.isDead() {
		return Note{}, errDead
	}
	return n.a.m.notes.Load(id)
}

func (n notesOf) Remove(id model.VMID) error {
	if n.a.isDead() {
		return errDead
	}
	return n.a.m.notes.Remove(id)
}
