package agent

import (
	"context"
	"errors"
	"fmt"
	"time"

	"sauh.dev/sauh/internal/agent/move"
	"sauh.dev/sauh/internal/agent/task"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/migrate"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/qemu"
	"sauh.dev/sauh/internal/qmp"
	"sauh.dev/sauh/internal/store"
)

// recoverAgain is how long an interrupted migration that could not be settled rests before the next try.
const recoverAgain = 2 * time.Second

// moveQEMU lends a process to the migration.
type moveQEMU struct {
	*proc
	conn *qmp.Conn
}

// QMP implements move.QEMU.
func (q moveQEMU) QMP() *qmp.Conn { return q.conn }

// Destroy implements move.QEMU.
func (q moveQEMU) Destroy(ctx context.Context) error {
	if err := q.Kill(ctx); err != nil {
		return err
	}
	return q.waitCleaned(ctx)
}

// moveDeps is what both sides of a migration on this node need.
func (m *member) moveDeps(log func(model.VMID, string)) move.Deps {
	return move.Deps{
		Node: m.name, Store: m.st, Notes: move.DirNotes{Dir: m.agent.opts.Paths.qemuRun()}, Claims: &m.claims, Config: migrate.Defaults(),
		Log: log, Find: m.findProcess,
	}
}

func (m *member) findProcess(ctx context.Context, id model.VMID) (move.QEMU, error) {
	p := m.procs.get(id)
	if p == nil {
		return nil, model.Errorf(model.ErrNotFound, "guest %s does not run on %s", id, m.name)
	}
	conn, err := p.Process.QMP(ctx)
	if err != nil {
		return nil, err
	}
	return moveQEMU{p, conn}, nil
}

func (m *member) newMoveTarget() *move.Target { return move.NewTarget(m.targetDeps()) }

func (m *member) targetDeps() move.TargetDeps {
	return move.TargetDeps{
		Deps: m.moveDeps(func(id model.VMID, line string) {
			m.log.Info("migration: "+line, "vmid", id)
		}),
		Listen:   m.addresses[0].String(),
		Start:    m.startIncoming,
		Protect:  m.protectIncoming,
		Ready:    m.readyFor,
		Finished: m.migrationIn,
	}
}

// startIncoming starts the QEMU that waits for a guest's memory.
func (m *member) startIncoming(ctx context.Context, r move.StartRequest) (move.QEMU, error) {
	conf, err := pveconf.ParseGuest(r.Config)
	if err != nil {
		return nil, fmt.Errorf("configuration of guest %s: %w", r.VMID, err)
	}
	spec, err := m.spec(ctx, r.VMID, conf)
	if err != nil {
		return nil, err
	}
	spec.Incoming, spec.Paused = true, true
	if err := m.prepareGroup(ctx, r.VMID, conf, r.Protected, m.term()); err != nil {
		return nil, err
	}
	p, err := m.startQEMU(ctx, spec)
	if err != nil {
		m.dropGroup(context.WithoutCancel(ctx), r.VMID, r.Protected)
		return nil, err
	}
	m.procs.add(r.VMID, newProc(p, true))
	return m.findProcess(ctx, r.VMID)
}

// protectIncoming puts a guest under the guard that became an HA resource while it moved.
func (m *member) protectIncoming(ctx context.Context, id model.VMID) error {
	f, err := m.owner(id)
	if err != nil {
		return err
	}
	conf, err := pveconf.ParseGuest(f.raw)
	if err != nil {
		return err
	}
	return m.guardGuest(ctx, id, conf, m.term())
}

// term is the lease as it is now, for those whose transaction compares the epoch.
func (m *member) term() term {
	epoch, ok := m.lease.Valid()
	return term{epoch, ok}
}

// readyFor says why a guest must not go on here now.
func (m *member) readyFor(_ context.Context, id model.VMID) error {
	if _, ok := m.lease.Valid(); !ok {
		return model.Errorf(model.ErrUnavailable, "%s holds no valid lease, so guest %s may not run there", m.name, id)
	}
	return nil
}

// migrationIn ends what servePrepare has begun.
func (m *member) migrationIn(id model.VMID, owner bool, _ string) {
	if p := m.procs.get(id); owner && p != nil {
		p.incoming.Store(false) // also if its user had paused it before
	}
	m.mu.Lock()
	unlock := m.arriving[id]
	delete(m.arriving, id)
	m.mu.Unlock()
	if unlock != nil {
		unlock()
	}
}

// servePrepare is the target's answer to a source; the guest's lock is held until the migration ended here.
func servePrepare(ctx context.Context, m *member, peer string, r move.PrepareRequest) (move.PrepareAnswer, error) {
	if m.leaving.Load() {
		return move.PrepareAnswer{}, model.Errorf(model.ErrUnavailable, "node %s is leaving the cluster", m.name)
	}
	unlock, err := m.locks.tryLock(r.VMID, "arriving from "+peer)
	if err != nil {
		return move.PrepareAnswer{}, err
	}
	m.mu.Lock()
	m.arriving[r.VMID] = unlock
	m.mu.Unlock()
	a, err := m.moves.Prepare(ctx, r)
	if err != nil && !m.claims.Busy(r.VMID) {
		m.migrationIn(r.VMID, false, "")
	}
	return a, err
}

func serveAbort(ctx context.Context, m *member, _ string, r move.AbortRequest) (struct{}, error) {
	return struct{}{}, m.moves.Abort(ctx, r)
}

// movePeer is a target's agent, seen from here.
type movePeer struct {
	m    *member
	node string
}

// Prepare implements move.Peer.
func (p movePeer) Prepare(ctx context.Context, r move.PrepareRequest) (move.PrepareAnswer, error) {
	return callPeer[move.PrepareAnswer](ctx, p.m, p.node, "migrate/prepare", r)
}

// Abort implements move.Peer.
func (p movePeer) Abort(ctx context.Context, r move.AbortRequest) error {
	_, err := callPeer[struct{}](ctx, p.m, p.node, "migrate/abort", r)
	return err
}

// Migrate implements api.Guests.
func (g *guestsAPI) Migrate(ctx context.Context, id model.VMID, target string, online bool) (string, error) {
	m, f, err := g.own(ctx, id)
	if err != nil {
		return "", err
	}
	if target == m.name {
		return "", model.Invalidf("target", "guest %s is on %s already", id, target)
	}
	if _, err := m.node(target); err != nil {
		return "", model.Invalidf("target", "%v", err)
	}
	p := m.procs.get(id)
	if p != nil && !online {
		return "", model.Invalidf("online", "can't migrate running VM without --online")
	}
	if local := m.localReason(f.conf); local != "" {
		return "", model.Errorf(model.ErrBusy, "guest %s cannot move: %s", id, local)
	}
	check := m.checkRequest(f, p)
	if err := m.askTarget(ctx, target, check); err != nil {
		return "", err
	}
	return m.guestTask("qmigrate", id, "migration to "+target, func(ctx context.Context, t *task.Task) error {
		if p == nil {
			return m.migrateOffline(ctx, id, target, t)
		}
		return m.migrateOnline(ctx, id, target, check, t)
	})
}

func (m *member) migrateOnline(ctx context.Context, id model.VMID, target string, check checkRequest, t *task.Task) error {
	err := move.Source(ctx, move.SourceDeps{
		Deps:     m.moveDeps(func(_ model.VMID, line string) { t.Logf("%s", line) }),
		Peer:     movePeer{m, target},
		Check:    func(ctx context.Context, _ move.Request) error { return m.askTarget(ctx, target, check) },
		Progress: t.Progress,
	}, move.Request{VMID: id, Target: target, Task: t.UPID()})
	return err
}

// migrateOffline moves the file of a guest that does not run.
func (m *member) migrateOffline(ctx context.Context, id model.VMID, target string, t *task.Task) error {
	if m.procs.get(id) != nil {
		return model.Errorf(model.ErrBusy, "guest %s was started meanwhile: move it with --online", id)
	}
	o, err := m.readOwnership(ctx, id, m.name)
	if err != nil {
		return err
	}
	node, err := m.st.Get(ctx, model.NodePrefix+target, store.Linearizable)
	if err != nil {
		return writeError("migrate guest "+id.String(), err)
	}
	to, protected := model.GuestConfigKey(target, id), model.ProtectedPrefix+id.String()
	txn := store.Txn{
		If: []store.Cond{
			{Key: o.conf.Key, Revision: o.conf.ModRevision},
			{Key: to},
			{Key: model.IntentPrefix + id.String()},
			{Key: protected, Revision: o.protected.Revision},
			{Key: model.NodePrefix + target, Revision: node.ModRevision},
		},
		Then: []store.Op{store.Delete(o.conf.Key), store.Put(to, o.conf.Value)},
	}
	if o.protected.Revision != 0 {
		txn.Then = append(txn.Then, store.Put(protected, mustJSON(model.Protected{Node: target})))
	}
	if _, err := m.st.Txn(ctx, txn); err != nil {
		return writeError("migrate guest "+id.String(), err)
	}
	t.Logf("guest %s does not run: its file is now %s's", id, target)
	return nil
}

// checkRequest asks a target whether it can take a guest.
type checkRequest struct {
	VMID    model.VMID `json:"vmid"`
	Config  []byte     `json:"config"`
	Running bool       `json:"running"`
	Machine string     `json:"machine,omitempty"` // of the running QEMU
	CPU     string     `json:"cpu,omitempty"`
	Accel   string     `json:"accel,omitempty"`
	QEMU    string     `json:"qemu,omitempty"`
}

func (m *member) checkRequest(f guestFile, p *proc) checkRequest {
	r := checkRequest{VMID: f.id, Config: f.raw}
	if p != nil {
		s := p.Spec()
		r.Running, r.Machine, r.CPU, r.Accel, r.QEMU = true, s.Machine, s.CPU, s.Accel, m.qemuVersion()
	}
	return r
}

// askTarget has the target check, and refuses one that is not there.
func (m *member) askTarget(ctx context.Context, target string, r checkRequest) error {
	if !m.live.Online(target) {
		return model.Errorf(model.ErrUnavailable, "node %s is not online: choose one that `sauh cluster status` shows online", target)
	}
	if r.Running {
		if err := qemu.SupportsMigration(r.Accel, r.QEMU); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, storageDeadline)
	defer cancel()
	_, err := callPeer[struct{}](ctx, m, target, "migrate/check", r)
	return err
}

// serveCheck says why this node cannot take a guest.
func serveCheck(ctx context.Context, m *member, _ string, r checkRequest) (struct{}, error) {
	var none struct{}
	refuse := func(format string, args ...any) (struct{}, error) {
		return none, model.Errorf(model.ErrUnavailable, "node %s cannot take guest %s: %s", m.name, r.VMID, fmt.Sprintf(format, args...))
	}
	if !m.st.Quorate() {
		return refuse("it has no quorum")
	}
	if _, ok := m.lease.Valid(); !ok {
		return refuse("it holds no valid lease")
	}
	if m.procs.get(r.VMID) != nil {
		return refuse("a process of that guest is there")
	}
	conf, err := pveconf.ParseGuest(r.Config)
	if err != nil {
		return none, err
	}
	spec, err := m.spec(ctx, r.VMID, conf)
	if err != nil {
		return refuse("%v", err)
	}
	if !r.Running {
		return none, nil
	}
	_, version, err := m.agent.host.qemu()
	if err == nil {
		err = qemu.SupportsMigration(spec.Accel, version)
	}
	if err != nil {
		return refuse("%v", err)
	}
	_, available, err := memory()
	switch {
	case err != nil:
		return none, err
	case spec.Accel != r.Accel:
		return refuse("the guest runs with %s, and there it would with %s", r.Accel, spec.Accel)
	case spec.Machine != r.Machine:
		return refuse("the guest has the machine type %s, and there it would have %s", r.Machine, spec.Machine)
	case spec.CPU != r.CPU:
		return refuse("the guest has the CPU %s, and there it would have %s", r.CPU, spec.CPU)
	case available>>20 < spec.MemoryMiB:
		return refuse("it has %d MiB of memory free and the guest needs %d", available>>20, spec.MemoryMiB)
	}
	return none, nil
}

// resolveInterrupted settles migrations that an earlier agent of this node left.
// It takes the locks of all that are known at the start before it returns,
// so that nothing else touches those guests first, and looks for others as long as ctx lasts:
// an intent of this node as the source whose guest nobody holds was left by somebody dead.
func (m *member) resolveInterrupted(ctx context.Context) {
	notes := move.DirNotes{Dir: m.agent.opts.Paths.qemuRun()}
	for id := range m.procs.list() {
		if _, err := notes.Load(id); err == nil {
			m.settle(ctx, id)
		}
	}
	for id, in := range m.intents() {
		if in.Source == m.name || in.Target == m.name {
			m.settle(ctx, id)
		}
	}
	m.wg.Go(func() {
		for ctx.Err() == nil {
			sleep(ctx, recoverAgain)
			for id, in := range m.intents() {
				if in.Source == m.name {
					m.settle(ctx, id)
				}
			}
		}
	})
}

// settle recovers one guest's migration in the background, unless something has the guest's lock.
func (m *member) settle(ctx context.Context, id model.VMID) {
	unlock, err := m.locks.tryLock(id, "settling an interrupted migration")
	if err != nil {
		return
	}
	m.wg.Go(func() {
		defer unlock()
		for ctx.Err() == nil {
			v, err := move.Recover(ctx, m.targetDeps(), id)
			if err == nil || errors.Is(err, model.ErrNotFound) {
				m.log.Info("interrupted migration settled", "vmid", id, "verdict", v)
				if p := m.procs.get(id); p != nil {
					p.incoming.Store(m.procs.neverRan(ctx, id, p.Process))
				}
				return
			}
			m.log.Warn("interrupted migration not settled yet", "vmid", id, "err", err)
			sleep(ctx, recoverAgain)
		}
	})
}

// intents are the migrations under way. One whose record cannot be read is nobody's to settle.
func (m *member) intents() map[model.VMID]ha.Intent {
	all, _ := intentsIn(m.mirror.Snapshot())
	return all
}
