package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
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

// starter is the one path that leads to a QEMU process. It takes no lock of a guest: its callers hold it.
type starter struct {
	node     string
	cluster  string // UUID
	paths    Paths
	log      *slog.Logger
	st       store.Store
	host     *hostInfo
	storages *storages
	lease    leaseholder
	guard    groupGuard
	procs    *procs
	wg       sync.WaitGroup // pills that a storage has not taken yet
	closed   atomic.Bool    // the node ends in order and its guests are gone: none starts any more
}

// open says why no guest may start here any more.
func (s *starter) open() error {
	if s.closed.Load() {
		return &unreadyError{model.Errorf(model.ErrUnavailable, "node %s is going down: no guest starts there any more", s.node)}
	}
	return nil
}

// leaseholder says whether this node's lease is valid, and its epoch.
type leaseholder interface {
	Valid() (epoch uint64, ok bool)
}

// ownership is what the store says of a guest, read linearizably.
type ownership struct {
	conf      store.KV // this node's file
	protected mirror.Record[model.Protected]
	intent    mirror.Record[model.Intent]
	state     pveconf.HAState // "" for a guest that is no HA resource
	storages  storageSet
}

// readOwnership reads everything that decides whether this node may start a
// guest. owner is under whose path the file must be.
func (s *starter) readOwnership(ctx context.Context, id model.VMID, owner string) (ownership, error) {
	var o ownership
	what := "look up guest " + id.String()
	kv, err := s.st.Get(ctx, model.GuestConfigKey(owner, id), store.Linearizable)
	if errors.Is(err, store.ErrNotFound) {
		return o, model.Errorf(model.ErrNotFound, "Configuration file '%s' does not exist: the guest is not on %s", model.GuestConfigPath(owner, id), owner)
	}
	if err != nil {
		return o, writeError(what, err)
	}
	o.conf = kv
	if o.protected, err = mirror.Read[model.Protected](ctx, s.st, model.ProtectedPrefix+id.String()); err != nil {
		return o, writeError(what, err)
	}
	if o.intent, err = mirror.Read[model.Intent](ctx, s.st, model.IntentPrefix+id.String()); err != nil {
		return o, writeError(what, err)
	}
	all, err := readInForce(ctx, s.st, haResourcesKey, pveconf.ParseHAResources)
	if err != nil {
		return o, writeError(what, err)
	}
	o.state = statesOf(all)[id]
	o.storages, err = s.storages.read(ctx)
	return o, err
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

// start is the one way to a running guest: its file is under this node's
// path, no migration has it, and if it is protected the guard has it first, which takes a
// valid lease with the current epoch. The caller holds the guest's lock.
func (s *starter) start(ctx context.Context, r startRequest) error {
	ctx, cancel := context.WithTimeout(ctx, startDeadline)
	defer cancel()
	if err := s.open(); err != nil {
		return err
	}
	if p := s.procs.get(r.id); p != nil {
		return model.Errorf(model.ErrBusy, "guest %s runs already (pid %d)", r.id, p.PID())
	}
	if err := s.procs.unadopted(r.id); err != nil {
		return unready(err)
	}
	if err := s.host.awaitAccel(ctx); err != nil {
		return err
	}
	// The epoch first: if the node is fenced after this, the guard refuses it, so what is read below still holds
	// when the guard has taken the guest.
	epoch, leased := s.lease.Valid()
	o, err := s.readOwnership(ctx, r.id, s.node)
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
		return fmt.Errorf("%s: %w", model.GuestConfigPath(s.node, r.id), err)
	}
	if lock := conf.Lock(); lock != "" {
		return model.Errorf(model.ErrBusy, "VM is locked (%s)", lock)
	}
	spec, err := s.spec(ctx, r.id, conf, o.storages)
	if err != nil {
		return err
	}
	for _, key := range pveconf.Unsupported(conf) {
		r.log("WARN: %s is kept but has no effect in this version", key)
	}
	s.writePills(ctx, conf, o.storages, r.pills)
	return s.launch(ctx, conf, spec, o, term{epoch, leased})
}

// term is the node's lease as it was at one moment.
type term struct {
	epoch uint64
	valid bool
}

// launch protects the guest if it must be, makes its network ready and starts QEMU. at is the lease from before o was read.
func (s *starter) launch(ctx context.Context, conf *pveconf.Guest, spec qemu.Spec, o ownership, at term) error {
	id := spec.VMID
	mine := o.protected.Revision != 0 && o.protected.Value.Node == s.node
	protect := mine || o.state != "" && o.storages.localReason(conf.Disks()) == ""
	if err := s.prepareGroup(ctx, id, conf.Disks(), o.storages, protect, at); err != nil {
		return err
	}
	if protect && !mine {
		if _, err := s.acknowledge(ctx, id, o.protected.Revision, o.conf.ModRevision); err != nil {
			s.dropGroup(ctx, id, protect)
			return err
		}
	}
	p, err := s.startQEMU(ctx, spec)
	if err != nil {
		s.dropGroup(context.WithoutCancel(ctx), id, protect)
		if errors.Is(err, storage.ErrInUse) {
			return &lockedError{err}
		}
		return err
	}
	s.procs.add(id, newProc(p, spec.Incoming))
	return nil
}

// prepareGroup makes the cgroup of a guest: by the guard, if the guest is protected, and by nobody else then.
func (s *starter) prepareGroup(ctx context.Context, id model.VMID, disks []pveconf.Disk, set storageSet, protect bool, at term) error {
	if protect {
		return s.protectDisks(ctx, id, disks, set, at)
	}
	if err := sys.Cgroup(s.paths.cgroupOf(id.String())).Create(); err != nil {
		return fmt.Errorf("cgroup of guest %s: %w", id, err)
	}
	return nil
}

// dropGroup undoes prepareGroup.
func (s *starter) dropGroup(ctx context.Context, id model.VMID, protect bool) {
	if protect {
		s.procs.unguard(ctx, id)
	}
	if err := sys.Cgroup(s.paths.cgroupOf(id.String())).Remove(); err != nil {
		s.log.Debug("cgroup not removed", "vmid", id, "err", err)
	}
}

// startQEMU makes the taps and starts the process; nothing is left when it fails.
func (s *starter) startQEMU(ctx context.Context, spec qemu.Spec) (*qemu.Process, error) {
	for _, n := range spec.NICs {
		if n.Tap == "" {
			continue
		}
		if err := network.EnsureTap(ctx, n.Tap, n.Bridge, n.MTU); err != nil {
			removeTaps(ctx, s.log, spec)
			return nil, fmt.Errorf("%s: %w", n.ID, err)
		}
	}
	p, err := qemu.Start(ctx, spec, s.paths.cgroupOf(spec.VMID.String()))
	if err != nil {
		removeTaps(context.WithoutCancel(ctx), s.log, spec)
		return nil, err
	}
	return p, nil
}

// spec resolves a configuration for this node.
func (s *starter) spec(ctx context.Context, id model.VMID, conf *pveconf.Guest, set storageSet) (qemu.Spec, error) {
	accel, _, err := s.host.qemu()
	if err != nil {
		return qemu.Spec{}, err
	}
	for _, n := range conf.Nets() {
		if err := s.bridgeThere(ctx, n.Key, n.Bridge); err != nil {
			return qemu.Spec{}, err
		}
	}
	return qemu.FromConfig(ctx, id, conf, s.paths.qemuRun(), accel.Name, resolver{set})
}

// arriving is the Spec with which a guest that runs elsewhere arrives here; machine is what the source says of it.
func (s *starter) arriving(ctx context.Context, id model.VMID, machine []byte, set storageSet) (qemu.Spec, error) {
	var runs qemu.Spec
	if err := json.Unmarshal(machine, &runs); err != nil || runs.VMID != id {
		return runs, model.Errorf(model.ErrInvalid, "the source does not say what guest %s runs as: is its program the same version?", id)
	}
	accel, _, err := s.host.qemu()
	if err != nil {
		return runs, err
	}
	for _, n := range runs.NICs {
		if err := s.bridgeThere(ctx, n.ID, n.Bridge); err != nil {
			return runs, err
		}
	}
	return qemu.Relocate(ctx, runs, s.paths.qemuRun(), accel.Name, resolver{set})
}

// bridgeThere refuses a card's bridge that this node does not have; "" is none.
func (s *starter) bridgeThere(ctx context.Context, key, bridge string) error {
	if bridge == "" {
		return nil
	}
	if ok, err := network.BridgeExists(ctx, bridge); err != nil || !ok {
		return model.Errorf(model.ErrNotFound, "%s: bridge '%s' does not exist on node %s", key, bridge, s.node)
	}
	return nil
}

// resolver answers qemu.FromConfig's questions from this node's storages.
type resolver struct{ set storageSet }

// File implements qemu.Resolver.
func (r resolver) File(ctx context.Context, volid string) (string, storage.Format, error) {
	name, ok := volumeStorage(volid)
	if !ok {
		return "", "", model.Invalidf("volume", "%q is not a volume id", volid)
	}
	d, err := r.set.driver(name)
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

// protect puts the cgroup of a guest that may run under the guard, with the storages that its file names and
// those that its process writes to: the file may have changed since the start.
func (s *starter) protect(ctx context.Context, id model.VMID, conf *pveconf.Guest, set storageSet, at term) error {
	disks := conf.Disks()
	if p := s.procs.get(id); p != nil {
		disks = append(disks, disksOf(p.Spec())...)
	}
	return s.protectDisks(ctx, id, disks, set, at)
}

// disksOf are the disks of a process, as far as they say where it writes.
func disksOf(s qemu.Spec) []pveconf.Disk {
	out := make([]pveconf.Disk, len(s.Disks))
	for i, d := range s.Disks {
		out[i] = pveconf.Disk{Key: d.ID, Volume: d.Volume}
	}
	return out
}

// protectDisks asks the guard, which refuses without a valid lease and for another epoch than the current one.
func (s *starter) protectDisks(ctx context.Context, id model.VMID, disks []pveconf.Disk, set storageSet, at term) error {
	if !at.valid {
		return model.Errorf(model.ErrNoQuorum, "guest %s is protected and %s holds no valid lease: it may not run here until the node can renew it (see `sauh cluster status`)", id, s.node)
	}
	g := lease.Group{Name: id.String(), Cgroup: s.paths.cgroupOf(id.String()), Epoch: at.epoch, OnDeadline: lease.FreezeGroup}
	for _, name := range set.of(disks) {
		d, err := set.driver(name)
		if err != nil {
			return err
		}
		if d.Features().LateWrites {
			g.OnDeadline = lease.ResetMachine
		}
		if pill := d.Pill(s.pillName(s.node)); pill != "" {
			g.Pills = append(g.Pills, pill)
		}
	}
	if err := s.guard.Protect(ctx, g); err != nil {
		return unready(fmt.Errorf("put guest %s under the guard: %w", id, err))
	}
	return nil
}

// acknowledge writes that every QEMU of the guest on this node is under the guard.
func (s *starter) acknowledge(ctx context.Context, id model.VMID, protectedRev, confRev int64) (int64, error) {
	key := model.ProtectedPrefix + id.String()
	rev, err := s.st.Txn(ctx, store.Txn{
		If:   []store.Cond{{Key: key, Revision: protectedRev}, {Key: model.GuestConfigKey(s.node, id), Revision: confRev}},
		Then: []store.Op{store.Put(key, mustJSON(model.Protected{Node: s.node}))},
	})
	return rev, writeError("protect guest "+id.String(), err)
}

// pillName is a node's name in pills: two clusters may share a storage and the names of their nodes. It is
// a hash, because both together may be longer than a name can be.
func (s *starter) pillName(node string) string {
	sum := sha256.Sum256([]byte(s.cluster + "/" + node))
	return hex.EncodeToString(sum[:16])
}

// pillDeadline bounds the writing of all pills: they only hasten the release of an image's lock, so a storage that
// does not take them must not keep a guest from starting.
const pillDeadline = 2 * time.Second

// writePills tells the guards of nodes that were fenced, through the guest's
// shared storages, to kill what they froze: it may hold the image's lock.
func (s *starter) writePills(ctx context.Context, conf *pveconf.Guest, set storageSet, pills []ha.Pill) {
	names := set.of(conf.Disks())
	done := make(chan struct{})
	s.wg.Go(func() {
		defer close(done)
		for _, name := range names {
			for _, p := range pills {
				if err := s.writePill(set, name, p); err != nil {
					s.log.Warn("a fenced node is not told through the storage", "node", p.Node, "storage", name, "err", err)
				}
			}
		}
	})
	select {
	case <-done:
	case <-ctx.Done():
	case <-time.After(pillDeadline):
		s.log.Warn("a storage does not take the pills for fenced nodes", "storages", names)
	}
}

func (s *starter) writePill(set storageSet, storageName string, p ha.Pill) error {
	d, err := set.driver(storageName)
	if err != nil {
		return err
	}
	path := d.Pill(s.pillName(p.Node))
	if path == "" {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	return sys.WriteFile(path, lease.FormatPill(p.Epoch))
}

// term is the lease as it is now, for those whose transaction compares the epoch.
func (s *starter) term() term {
	epoch, ok := s.lease.Valid()
	return term{epoch, ok}
}

// wait returns when nothing of the starter runs any more.
func (s *starter) wait() { s.wg.Wait() }
