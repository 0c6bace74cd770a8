package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/agent/task"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/network"
	"sauh.dev/sauh/internal/qemu"
	"sauh.dev/sauh/internal/storage"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/sys"
)

// startDeadline bounds a start from the first check to QEMU's answer.
const startDeadline = 40 * time.Second

// ownership is what the store says of a guest, read linearizably.
type ownership struct {
	conf      store.KV // this node's file
	protected mirror.Record[model.Protected]
	intent    mirror.Record[model.Intent]
	state     pveconf.HAState // "" for a guest that is no HA resource
}

// readOwnership reads everything that decides whether this node may start a
// guest. owner is under whose path the file must be.
func (m *member) readOwnership(ctx context.Context, id model.VMID, owner string) (ownership, error) {
	var o ownership
	what := "look up guest " + id.String()
	kv, err := m.st.Get(ctx, model.GuestConfigKey(owner, id), store.Linearizable)
	if errors.Is(err, store.ErrNotFound) {
		return o, model.Errorf(model.ErrNotFound, "Configuration file '%s' does not exist: the guest is not on %s", model.GuestConfigPath(owner, id), owner)
	}
	if err != nil {
		return o, writeError(what, err)
	}
	o.conf = kv
	if o.protected, err = mirror.Read[model.Protected](ctx, m.st, model.ProtectedPrefix+id.String()); err != nil {
		return o, writeError(what, err)
	}
	if o.intent, err = mirror.Read[model.Intent](ctx, m.st, model.IntentPrefix+id.String()); err != nil {
		return o, writeError(what, err)
	}
	res, err := m.st.Get(ctx, haResourcesKey, store.Linearizable)
	if err != nil && !errors.Is(err, store.ErrNotFound) {
		return o, writeError(what, err)
	}
	all, err := pveconf.ParseHAResources(res.Value)
	if err != nil {
		return o, fmt.Errorf("ha/resources.cfg: %w", err)
	}
	o.state = statesOf(all)[id]
	return o, nil
}

// startRequest says which guest to start and in what way.
type startRequest struct {
	id model.VMID
	// haOnly: give up unless the requested state is still started.
	haOnly bool
	// pills are written first: the guest was taken over from these nodes.
	pills []ha.Pill
	log   func(format string, args ...any)
}

// errNotWanted: what the start rested on is no longer so.
var errNotWanted = model.Errorf(model.ErrConflict, "the guest is not to be started here any more")

// startGuest is the one way to a running guest: its file is under this node's
// path, no migration has it, and if it is protected the guard has it first, which takes a
// valid lease with the current epoch. The caller holds the guest's lock.
func (m *member) startGuest(ctx context.Context, r startRequest) error {
	ctx, cancel := context.WithTimeout(ctx, startDeadline)
	defer cancel()
	if p := m.procs.get(r.id); p != nil {
		return model.Errorf(model.ErrBusy, "guest %s runs already (pid %d)", r.id, p.PID())
	}
	if err := m.agent.host.awaitAccel(ctx); err != nil {
		return err
	}
	// The epoch first: if the node is fenced after this, the guard refuses it, so what is read below still holds
	// when the guard has taken the guest.
	epoch, leased := m.lease.Valid()
	o, err := m.readOwnership(ctx, r.id, m.name)
	if err != nil {
		return err
	}
	if o.intent.Revision != 0 {
		return model.Errorf(model.ErrBusy, "guest %s is being migrated from %s to %s", r.id, o.intent.Value.Source, o.intent.Value.Target)
	}
	if r.haOnly && o.state != pveconf.HAStarted {
		return errNotWanted
	}
	conf, err := pveconf.ParseGuest(o.conf.Value)
	if err != nil {
		return fmt.Errorf("%s: %w", model.GuestConfigPath(m.name, r.id), err)
	}
	if lock := conf.Lock(); lock != "" {
		return model.Errorf(model.ErrBusy, "VM is locked (%s)", lock)
	}
	spec, err := m.spec(ctx, r.id, conf)
	if err != nil {
		return err
	}
	for _, key := range pveconf.Unsupported(conf) {
		r.log("WARN: %s is kept but has no effect in this version", key)
	}
	m.writePills(ctx, conf, r.pills)
	return m.launch(ctx, conf, spec, o, term{epoch, leased})
}

// term is the node's lease as it was at one moment.
type term struct {
	epoch uint64
	valid bool
}

// startOnBoot starts this node's guests with onboot 1 once after each boot of the machine, as soon as there is a
// quorum. HA resources are the worker's.
func (m *member) startOnBoot(ctx context.Context) {
	mark := filepath.Join(m.agent.opts.Paths.Run, "booted") // a boot empties the directory
	if _, err := os.Stat(mark); err == nil {
		return
	}
	for !m.st.Quorate() {
		if sleep(ctx, time.Second); ctx.Err() != nil {
			return
		}
	}
	states := m.haStates()
	for _, f := range m.guestFiles() {
		_, ha := states[f.id]
		if f.node != m.name || ha || !f.conf.OnBoot() || f.conf.Template() || m.procs.get(f.id) != nil {
			continue
		}
		_, err := m.guestTask("qmstart", f.id, "start at boot", func(ctx context.Context, t *task.Task) error {
			return m.startGuest(ctx, startRequest{id: f.id, log: t.Logf})
		})
		if err != nil {
			m.log.Warn("guest not started at boot", "vmid", f.id, "err", err)
		}
	}
	if err := sys.WriteFile(mark, []byte(m.agent.boot+"\n")); err != nil {
		m.log.Warn("start at boot not noted", "err", err)
	}
}

// launch protects the guest if it must be, makes its network ready and starts QEMU. at is the lease from before o was read.
func (m *member) launch(ctx context.Context, conf *pveconf.Guest, spec qemu.Spec, o ownership, at term) error {
	id := spec.VMID
	mine := o.protected.Revision != 0 && o.protected.Value.Node == m.name
	protect := mine || o.state != "" && m.localReason(conf) == ""
	if err := m.prepareGroup(ctx, id, conf, protect, at); err != nil {
		return err
	}
	if protect && !mine {
		if _, err := m.acknowledge(ctx, id, o.protected.Revision, o.conf.ModRevision); err != nil {
			m.dropGroup(ctx, id, protect)
			return err
		}
	}
	p, err := m.startQEMU(ctx, spec)
	if err != nil {
		m.dropGroup(context.WithoutCancel(ctx), id, protect)
		if errors.Is(err, storage.ErrInUse) {
			return &lockedError{err}
		}
		return err
	}
	m.procs.add(id, newProc(p, spec.Incoming))
	return nil
}

// prepareGroup makes the cgroup of a guest: by the guard, if the guest is protected, and by nobody else then.
func (m *member) prepareGroup(ctx context.Context, id model.VMID, conf *pveconf.Guest, protect bool, at term) error {
	if protect {
		return m.guardGuest(ctx, id, conf, at)
	}
	if err := sys.Cgroup(m.agent.opts.Paths.cgroupOf(id.String())).Create(); err != nil {
		return fmt.Errorf("cgroup of guest %s: %w", id, err)
	}
	return nil
}

// dropGroup undoes prepareGroup.
func (m *member) dropGroup(ctx context.Context, id model.VMID, protect bool) {
	if protect {
		m.unguard(ctx, id)
	}
	if err := sys.Cgroup(m.agent.opts.Paths.cgroupOf(id.String())).Remove(); err != nil {
		m.log.Debug("cgroup not removed", "vmid", id, "err", err)
	}
}

// startQEMU makes the taps and starts the process; nothing is left when it fails.
func (m *member) startQEMU(ctx context.Context, spec qemu.Spec) (*qemu.Process, error) {
	for _, n := range spec.NICs {
		if n.Tap == "" {
			continue
		}
		if err := network.EnsureTap(ctx, n.Tap, n.Bridge, n.MTU); err != nil {
			removeTaps(ctx, m, spec)
			return nil, fmt.Errorf("%s: %w", n.ID, err)
		}
	}
	p, err := qemu.Start(ctx, spec, m.agent.opts.Paths.cgroupOf(spec.VMID.String()))
	if err != nil {
		removeTaps(context.WithoutCancel(ctx), m, spec)
		return nil, err
	}
	return p, nil
}

// spec resolves a configuration for this node.
func (m *member) spec(ctx context.Context, id model.VMID, conf *pveconf.Guest) (qemu.Spec, error) {
	accel, _, err := m.agent.host.qemu()
	if err != nil {
		return qemu.Spec{}, err
	}
	for _, n := range conf.Nets() {
		if n.Bridge == "" {
			continue
		}
		if ok, err := network.BridgeExists(ctx, n.Bridge); err != nil || !ok {
			return qemu.Spec{}, model.Errorf(model.ErrNotFound, "%s: bridge '%s' does not exist on node %s", n.Key, n.Bridge, m.name)
		}
	}
	return qemu.FromConfig(ctx, id, conf, m.agent.opts.Paths.qemuRun(), accel.Name, resolver{m})
}

// resolver answers qemu.FromConfig's questions from this node's storages.
type resolver struct{ m *member }

// File implements qemu.Resolver.
func (r resolver) File(ctx context.Context, volid string) (string, storage.Format, error) {
	name, ok := volumeStorage(volid)
	if !ok {
		return "", "", model.Invalidf("volume", "%q is not a volume id", volid)
	}
	d, err := r.m.driver(name)
	if err != nil {
		return "", "", err
	}
	ctx, cancel := context.WithTimeout(ctx, storageDeadline)
	defer cancel()
	return d.File(ctx, volid)
}

// Direct implements qemu.Resolver.
func (r resolver) Direct(path string) bool { return qemu.ProbeDirect(path) }

// Machine implements qemu.Resolver.
func (r resolver) Machine(ctx context.Context, name string) (string, error) {
	return qemu.ResolveMachine(ctx, name)
}

// guardGuest puts a guest's cgroup under the guard, which refuses without a valid lease and for another epoch than the current one.
func (m *member) guardGuest(ctx context.Context, id model.VMID, conf *pveconf.Guest, at term) error {
	if !at.valid {
		return model.Errorf(model.ErrNoQuorum, "guest %s is protected and %s holds no valid lease: it may not run here until the node can renew it (see `sauh cluster status`)", id, m.name)
	}
	g := lease.Group{Name: id.String(), Cgroup: m.agent.opts.Paths.cgroupOf(id.String()), Epoch: at.epoch, OnDeadline: lease.FreezeGroup}
	names, _ := m.volumes(conf)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		d, err := m.driver(name)
		if err != nil {
			return err
		}
		if d.Features().LateWrites {
			g.OnDeadline = lease.ResetMachine
		}
		if pill := d.Pill(m.pillName(m.name)); pill != "" {
			g.Pills = append(g.Pills, pill)
		}
	}
	if err := m.live.Protect(ctx, g); err != nil {
		return fmt.Errorf("put guest %s under the guard: %w", id, err)
	}
	return nil
}

// acknowledge writes that every QEMU of the guest on this node is under the guard.
func (m *member) acknowledge(ctx context.Context, id model.VMID, protectedRev, confRev int64) (int64, error) {
	key := model.ProtectedPrefix + id.String()
	rev, err := m.st.Txn(ctx, store.Txn{
		If:   []store.Cond{{Key: key, Revision: protectedRev}, {Key: model.GuestConfigKey(m.name, id), Revision: confRev}},
		Then: []store.Op{store.Put(key, mustJSON(model.Protected{Node: m.name}))},
	})
	return rev, writeError("protect guest "+id.String(), err)
}

// pillName is a node's name in pills: two clusters may share a storage and the names of their nodes. It is
// a hash, because both together may be longer than a name can be.
func (m *member) pillName(node string) string {
	sum := sha256.Sum256([]byte(m.cluster.UUID + "/" + node))
	return hex.EncodeToString(sum[:16])
}

// pillDeadline bounds the writing of all pills: they only hasten the release of an image's lock, so a storage that
// does not take them must not keep a guest from starting.
const pillDeadline = 2 * time.Second

// writePills tells the guards of nodes that were fenced, through the guest's
// shared storages, to kill what they froze: it may hold the image's lock.
func (m *member) writePills(ctx context.Context, conf *pveconf.Guest, pills []ha.Pill) {
	names, _ := m.volumes(conf)
	slices.Sort(names)
	done := make(chan struct{})
	m.wg.Go(func() {
		defer close(done)
		for _, name := range slices.Compact(names) {
			for _, p := range pills {
				if err := m.writePill(name, p); err != nil {
					m.log.Warn("a fenced node is not told through the storage", "node", p.Node, "storage", name, "err", err)
				}
			}
		}
	})
	select {
	case <-done:
	case <-ctx.Done():
	case <-time.After(pillDeadline):
		m.log.Warn("a storage does not take the pills for fenced nodes", "storages", names)
	}
}

func (m *member) writePill(storageName string, p ha.Pill) error {
	d, err := m.driver(storageName)
	if err != nil {
		return err
	}
	path := d.Pill(m.pillName(p.Node))
	if path == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return sys.WriteFile(path, lease.FormatPill(p.Epoch))
}
