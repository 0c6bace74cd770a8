package agent

import (
	"context"

	"sauh.dev/sauh/internal/agent/move"
	"sauh.dev/sauh/internal/agent/task"
	"sauh.dev/sauh/internal/core/migrate"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/qemu"
	"sauh.dev/sauh/internal/qmp"
	"sauh.dev/sauh/internal/store"
)

// moving is what both sides of a migration on this node share.
type moving struct {
	node   string
	dir    string // notes and QEMU's sockets
	st     store.Store
	procs  *procs
	claims *move.Claims
}

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

// deps is what both sides of a migration on this node need.
func (m *moving) deps(log func(model.VMID, string)) move.Deps {
	return move.Deps{
		Node: m.node, Store: m.st, Notes: move.DirNotes{Dir: m.dir}, Claims: m.claims, Config: migrate.Defaults(),
		Log: log, Find: m.find,
	}
}

func (m *moving) find(ctx context.Context, id model.VMID) (move.QEMU, error) {
	if err := m.procs.unadopted(id); err != nil {
		return nil, err
	}
	p := m.procs.get(id)
	if p == nil {
		return nil, model.Errorf(model.ErrNotFound, "guest %s does not run on %s", id, m.node)
	}
	conn, err := p.Process.QMP(ctx)
	if err != nil {
		return nil, err
	}
	return moveQEMU{p, conn}, nil
}

// departures are the migrations of this node's guests to others.
type departures struct {
	*moving
	files   guestFiles
	roster  roster
	quorate func() bool
	live    observer
	tasks   guestTasks
	starter *starter
	peers   *peers
	// allowed says why a person may not move a guest.
	allowed func(node string, id model.VMID) error
}

// movePeer is a target's agent, seen from here.
type movePeer struct {
	peers *peers
	node  string
}

// Prepare implements move.Peer.
func (p movePeer) Prepare(ctx context.Context, r move.PrepareRequest) (move.PrepareAnswer, error) {
	return callPeer[move.PrepareAnswer](ctx, p.peers, p.node, "migrate/prepare", r)
}

// Abort implements move.Peer.
func (p movePeer) Abort(ctx context.Context, r move.AbortRequest) error {
	_, err := callPeer[struct{}](ctx, p.peers, p.node, "migrate/abort", r)
	return err
}

// Migrate implements api.Guests.
func (d *departures) Migrate(ctx context.Context, id model.VMID, target string, online bool) (string, error) {
	if err := d.allowed(d.node, id); err != nil {
		return "", err
	}
	return d.migrate(ctx, id, target, online, func(context.Context, *task.Task) error { return nil })
}

// migrate begins a migration; its task runs first with the guest's lock, and ends the migration with an error.
func (d *departures) migrate(ctx context.Context, id model.VMID, target string, online bool, first func(context.Context, *task.Task) error) (string, error) {
	f, err := d.files.readable(id)
	if err != nil {
		return "", err
	}
	if !d.quorate() {
		return "", writeError("guest "+id.String(), store.ErrNoQuorum)
	}
	if target == d.node {
		return "", model.Invalidf("target", "guest %s is on %s already", id, target)
	}
	if _, err := d.roster.node(target); err != nil {
		return "", model.Invalidf("target", "%v", err)
	}
	if err := d.procs.unadopted(id); err != nil {
		return "", err
	}
	p := d.procs.get(id)
	if p != nil && !online {
		return "", model.Invalidf("online", "can't migrate running VM without --online")
	}
	set, err := d.starter.storages.known()
	if err != nil {
		return "", err
	}
	disks := f.conf.Disks()
	if p != nil {
		disks = append(disks, disksOf(p.Spec())...)
	}
	if local := set.localReason(disks); local != "" {
		return "", model.Errorf(model.ErrBusy, "guest %s cannot move: %s", id, local)
	}
	check := d.checkRequest(f, p)
	if err := d.askTarget(ctx, target, check); err != nil {
		return "", err
	}
	return d.tasks.start("qmigrate", id, "migration to "+target, func(ctx context.Context, t *task.Task) error {
		if err := first(ctx, t); err != nil {
			return err
		}
		if p == nil {
			return d.migrateOffline(ctx, id, target, t)
		}
		return d.migrateOnline(ctx, id, p, target, check, t)
	})
}

func (d *departures) migrateOnline(ctx context.Context, id model.VMID, p *proc, target string, check checkRequest, t *task.Task) error {
	err := move.Source(ctx, move.SourceDeps{
		Deps:     d.deps(func(_ model.VMID, line string) { t.Logf("%s", line) }),
		Peer:     movePeer{d.peers, target},
		Check:    func(ctx context.Context, _ move.Request) error { return d.askTarget(ctx, target, check) },
		Progress: t.Progress,
	}, move.Request{VMID: id, Target: target, Task: t.UPID(), Machine: check.Machine})
	if err == nil {
		d.handOver(ctx, id, p, target, t.Logf)
	}
	return err
}

// migrateOffline moves the file of a guest that does not run.
func (d *departures) migrateOffline(ctx context.Context, id model.VMID, target string, t *task.Task) error {
	if d.procs.get(id) != nil {
		return model.Errorf(model.ErrBusy, "guest %s was started meanwhile: move it with --online", id)
	}
	o, err := d.starter.readOwnership(ctx, id, d.node)
	if err != nil {
		return err
	}
	node, err := d.st.Get(ctx, model.NodePrefix+target, store.Linearizable)
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
	if _, err := d.st.Txn(ctx, txn); err != nil {
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
	Machine []byte     `json:"machine,omitempty"` // the running QEMU's own qemu.Spec, in JSON
	Accel   string     `json:"accel,omitempty"`   // of the running QEMU
	QEMU    string     `json:"qemu,omitempty"`    // the source's version
}

func (d *departures) checkRequest(f guestFile, p *proc) checkRequest {
	r := checkRequest{VMID: f.id, Config: f.raw}
	if p != nil {
		s := p.Spec()
		r.Running, r.Machine, r.Accel, r.QEMU = true, mustJSON(s), s.Accel, d.starter.host.qemuVersion()
	}
	return r
}

// askTarget has the target check, and refuses one that is not there.
func (d *departures) askTarget(ctx context.Context, target string, r checkRequest) error {
	if !d.live.Online(target) {
		return model.Errorf(model.ErrUnavailable, "node %s is not online: choose one that `sauh cluster status` shows online", target)
	}
	if r.Running {
		if err := qemu.SupportsMigration(r.Accel, r.QEMU); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, storageDeadline)
	defer cancel()
	_, err := callPeer[struct{}](ctx, d.peers, target, "migrate/check", r)
	return err
}
