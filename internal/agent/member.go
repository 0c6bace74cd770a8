package agent

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"sauh.dev/sauh/internal/agent/liveness"
	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/agent/move"
	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/certs"
	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/guard"
	"sauh.dev/sauh/internal/network"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/store/etcd"
	"sauh.dev/sauh/internal/sys"
)

// memberStore is this node's store as the membership uses it: the cluster's
// memory, and the part in keeping it. *etcd.Server is one; its methods say what they do.
type memberStore interface {
	store.Store
	storeMembers
	Quorate() bool
	LeaderName() string
	TransferLeadership(ctx context.Context) error
	Done() <-chan struct{}
	Err() error
	Close() error
}

// storeMembers says and changes who keeps the store.
type storeMembers interface {
	MemberID() string
	Members(ctx context.Context) ([]etcd.Member, error)
	AddLearner(ctx context.Context, name string, peerURLs []string) (id string, err error)
	Promote(ctx context.Context, id string) error
	RemoveMember(ctx context.Context, id string) error
}

// member is all that runs while this node belongs to a cluster. It only makes the parts, starts them and ends them;
// who is given what stands in wire. openMember starts the store and the mirror, activate the rest; close stops
// everything but the guests.
type member struct {
	identity
	log        *slog.Logger
	st         memberStore
	mirror     *mirror.Mirror
	roster     roster
	live       *liveness.Liveness
	procs      *procs
	starter    *starter
	operations *operations
	arrivals   *arrivals
	manager    *haManager
	worker     *haWorker
	book       *rulebook
	fencing    *fencing
	ending     *ending
	beacons    *beacons
	health     *nodeHealth
	load       *nodeLoad
	idle       *nodeIdle
	membership *membership
	roles      api.Backend
	handler    http.Handler  // the API with these roles
	kicked     chan struct{} // has an element after something of this node changed that the worker looks at
	quorum     chan struct{} // has an element after the quorum came or went, for the manager
	servers    []*http.Server

	ctx    context.Context //nolint:containedctx // the life of the membership, shorter than the process'
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// identity is who a member is, and how it proves it.
type identity struct {
	name          string
	cluster       model.Cluster
	caFingerprint string
	addresses     []netip.Addr // cluster network first
	client        *tls.Config
	server        *tls.Config
}

func (p Paths) identity(ms *Membership) (identity, error) {
	self, err := certs.Load(p.nodeCert(), p.nodeKey())
	if err != nil {
		return identity{}, fmt.Errorf("load this node's certificate: %w", err)
	}
	ca, err := certs.LoadCert(p.caCert())
	if err != nil {
		return identity{}, fmt.Errorf("load the cluster's CA: %w", err)
	}
	id := identity{
		name: ms.Node.Name, cluster: ms.Cluster, caFingerprint: certs.Fingerprint(ca),
		client: certs.Client(self, ca, nil), server: certs.ServerOptionalClient(self, ca, nil),
	}
	for _, s := range []string{ms.Node.Cluster, ms.Node.Mgmt} {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return identity{}, fmt.Errorf("address of this node: %w", err)
		}
		id.addresses = append(id.addresses, addr)
	}
	return id, nil
}

// newMember is a member of which nothing runs and nothing is made yet.
func newMember(id identity, log *slog.Logger) *member {
	m := &member{identity: id, log: log, kicked: make(chan struct{}, 1), quorum: make(chan struct{}, 1)}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	return m
}

// wire makes all parts of the membership on an open store. Nothing runs yet.
func (m *member) wire(a *Agent, st memberStore, times lease.Params) {
	paths, log, node, quorate := a.opts.Paths, m.log, m.name, st.Quorate
	m.st = st
	m.live = liveness.New(liveness.Config{
		Node: node, BootID: a.boot, Params: times, Store: st, Guard: guard.New(paths.guardSocket()), Clock: sys.BootTime,
		FirstEpoch: m.firstEpoch, Changed: m.leaseChanged, Log: log,
	})
	m.mirror = mirror.New(st, log, m.live.Observe)
	m.roster = roster{m.mirror}
	m.procs = newProcs(paths, log, m.live, m.kick)
	files := guestFiles{node: node, mirror: m.mirror}
	tasks := guestTasks{locks: newGuestLocks(m.kick), list: a.tasks}
	stores := &storages{node: node, st: st, mirror: m.mirror, files: files, quorate: quorate}
	res := &resources{log: log, st: st, mirror: m.mirror, roster: m.roster, files: files, storages: stores, live: m.live, quorate: quorate}
	m.starter = &starter{
		node: node, cluster: m.cluster.UUID, paths: paths, log: log, st: st, host: a.host, storages: stores,
		lease: m.live, guard: m.live, procs: m.procs,
	}
	m.operations = &operations{
		node: node, paths: paths, boot: a.boot, log: log, st: st, quorate: quorate, files: files, resources: res,
		procs: m.procs, tasks: tasks, starter: m.starter,
		creation: &creation{node: node, log: log, st: st, host: a.host, storages: stores, starter: m.starter, procs: m.procs},
	}
	both := &moving{node: node, dir: paths.qemuRun(), st: st, procs: m.procs, claims: &move.Claims{}}
	m.arrivals = newArrivals(&arrivals{
		moving: both, log: log, files: files, mirror: m.mirror, quorate: quorate, locks: tasks.locks, starter: m.starter,
	}, m.addresses)
	m.membership = &membership{
		node: node, cluster: m.cluster, caFingerprint: m.caFingerprint, log: log, st: st, roster: m.roster, files: files,
		locks: tasks.locks, live: m.live, leaving: &m.arrivals.leaving, ctx: m.ctx,
	}
	others := newPeers(node, log, m.roster, m.client)
	seen := &inventory{node: node, paths: paths, log: log, files: files, resources: res, roster: m.roster, live: m.live, procs: m.procs, peers: others}
	m.answer(others, seen)
	leaving := &departures{
		moving: both, files: files, roster: m.roster, quorate: quorate, live: m.live, tasks: tasks, starter: m.starter, peers: others,
		allowed: res.notFrozen,
	}
	m.wireHA(a, files, tasks, leaving, times)
	m.roles = api.Backend{
		Cluster: a, Tasks: a.tasks, Storages: stores, Peers: others, ReadOnly: m.membership.standing, Guests: guests{seen, m.operations, leaving},
	}
	m.offerHA(res)
	m.handler = api.NewServer(m.roles, api.Options{Logger: log})
}

// offerHA makes what a person may see and change of HA.
func (m *member) offerHA(res *resources) {
	st, mirror, roster, seen := m.st, m.mirror, m.roster, sight{m.name, m.manager.params, m.manager.view}
	rules := &haRules{st: st, mirror: mirror, roster: roster, known: res.known, view: m.manager.view}
	fencing := &haFencing{st: st, mirror: mirror, roster: roster, drivers: m.fencing}
	configured := &haResources{resources: res, purge: rules.purgeRules}
	m.roles.HA = haView{configured, &haStatus{
		sight: seen, mirror: mirror, roster: roster, live: m.live, quorate: st.Quorate, beacons: m.beacons, configured: configured, methods: fencing.methodsOf,
	}}
	m.roles.Rules, m.roles.Fencing, m.roles.Alarms = rules, fencing, m.beacons
	m.roles.Services = &haServices{res, seen}
	m.roles.Nodes = &haNodes{st: st, roster: roster, end: m.ending.EndNode, drain: m.ending.DrainNode}
	m.roles.Options = &haOptions{st: st, mirror: mirror}
}

// wireHA makes what minds the HA resources.
func (m *member) wireHA(a *Agent, files guestFiles, tasks guestTasks, moves *departures, times lease.Params) {
	log, node, quorate := m.log, m.name, m.st.Quorate
	params := haParams(times)
	m.book = &rulebook{}
	m.beacons = &beacons{
		node: node, log: log, mirror: m.mirror, roster: m.roster, procs: m.procs, lease: m.live, mute: map[model.VMID]time.Time{},
	}
	m.health = newNodeHealth(&nodeHealth{
		node: node, log: log, st: m.st, mirror: m.mirror, live: m.live, clock: sys.BootTime, bridge: a.cfg.Bridge, run: filepath.Join(a.opts.Paths.Run, "probe"),
		command: a.opts.Probe, mark: m.starter.pillName(node), held: m.held(tasks.locks), kick: m.kick,
		notes: panicNotes{a.opts.Paths.qemuRun()},
	})
	m.procs.watch = m.health.guest
	m.load = &nodeLoad{
		node: node, boot: a.boot, log: log, st: m.st, mirror: m.mirror, procs: m.procs,
		machine: sys.Cgroup(a.opts.Paths.CgroupRoot), memory: memory, clock: sys.BootTime,
	}
	m.idle = &nodeIdle{node: node, boot: a.boot, log: log, st: m.st, mirror: m.mirror, procs: m.procs, locks: tasks.locks}
	m.fencing = newFencing(&fencing{node: node, log: log, st: m.st, mirror: m.mirror, live: m.live, beacon: m.beacons.heard, quorate: quorate})
	m.manager = &haManager{
		node: node, log: log, st: m.st, quorate: quorate, mirror: m.mirror, live: m.live, book: m.book, fencing: m.fencing,
		params: params, kicked: m.quorum,
	}
	m.worker = &haWorker{
		node: node, boot: a.boot, log: log, st: m.st, quorate: quorate, mirror: m.mirror, files: files, lease: m.live, guard: m.live,
		procs: m.procs, locks: tasks.locks, tasks: a.tasks, starter: m.starter, moves: moves, book: m.book, params: params, kicked: m.kicked,
		found: m.beacons.found,
	}
	m.operations.awaits = m.worker.awaits
	m.ending = &ending{
		ctx: m.ctx, node: node, boot: a.boot, log: log, st: m.st, worker: m.worker, procs: m.procs, locks: tasks.locks, tasks: a.tasks,
		starter: m.starter, live: m.live, closing: m.arrivals.leaving.Store, kick: m.kick, power: endMachine, stop: stopGuest,
		goesDown: machineGoesDown, patience: standPatience, noteFile: a.opts.Paths.ending(),
	}
}

// held says why a guest's silence does not count: it is frozen, or something is being done with it.
func (m *member) held(locks *guestLocks) func(model.VMID) string {
	return func(id model.VMID) string {
		if what := locks.holders()[id]; what != "" {
			return what
		}
		if m.procs.frozen(id) {
			return "frozen"
		}
		return ""
	}
}

// answer says which part answers what other agents ask.
func (m *member) answer(p *peers, seen *inventory) {
	answer(p, joinPath, func(ctx context.Context, _ string, r joinRequest) (joinReply, error) {
		return m.membership.admit(ctx, r, time.Now())
	})
	answer(p, "peer/migrate/check", m.arrivals.check)
	answer(p, "peer/migrate/prepare", m.arrivals.prepare)
	answer(p, "peer/migrate/abort", m.arrivals.abort)
	answer(p, "peer/migrate/panicked", m.arrivals.panicked)
	answer(p, "peer/guests", func(ctx context.Context, _ string, _ struct{}) ([]model.Guest, error) { return seen.ListLocal(ctx) })
}

// firstEpoch is above the epochs of every earlier membership of this name: it is when the node's record was made.
func (m *member) firstEpoch() uint64 {
	kv, _ := m.mirror.Snapshot().Get(model.NodePrefix + m.name)
	return uint64(kv.CreateRevision)
}

// openMember starts this node's store with the certificates that are on disk, and follows it.
func (a *Agent) openMember(ctx context.Context, ms *Membership) (*member, error) {
	p := a.opts.Paths
	times, err := a.leaseOf(ms.Cluster)
	if err != nil {
		return nil, err
	}
	id, err := p.identity(ms)
	if err != nil {
		return nil, err
	}
	m := newMember(id, a.log)
	// Sockets take their times over when they are made, so this comes before the store listens.
	if err := network.EnableMultipath(ctx, m.addresses); err != nil {
		a.log.Warn("connections cannot use both networks yet", "err", err)
	}
	m.wg.Go(func() {
		if err := network.KeepMultipath(m.ctx, m.addresses, a.log.With("part", "network")); err != nil {
			a.log.Warn("the two networks are not used together: a cut link interrupts connections", "err", err)
		}
	})
	st, err := etcd.Start(ctx, etcd.Config{
		Name: m.name, DataDir: p.storeData(), Addresses: []string{ms.Node.Cluster, ms.Node.Mgmt},
		TLS: etcd.TLSFiles{CA: p.caCert(), Cert: p.nodeCert(), Key: p.nodeKey()}, Token: ms.Cluster.UUID,
		Initial: ms.Initial, Existing: ms.Existing, Logger: a.log.With("part", "store"),
	})
	if err != nil {
		m.cancel()
		m.wg.Wait()
		return nil, err
	}
	m.wire(a, st, times)
	m.server.VerifyConnection = m.verifyMember
	m.wg.Go(func() { m.mirror.Run(m.ctx) })
	select {
	case <-m.mirror.Loaded():
		return m, nil
	case <-m.st.Done():
		err = fmt.Errorf("the store ended: %w", m.st.Err())
	case <-ctx.Done():
		err = ctx.Err()
	}
	m.close()
	return nil, err
}

// verifyMember refuses the certificate of a node that is no member any more.
// Who shows none may still ask to join.
func (m *member) verifyMember(cs tls.ConnectionState) error {
	if name := certs.PeerName(&cs); name != "" {
		_, err := m.roster.node(name)
		return err
	}
	return nil
}

// kick makes the HA worker look again.
func (m *member) kick() {
	nudge(m.kicked)
}

// leaseChanged makes manager and worker look again.
func (m *member) leaseChanged() {
	m.kick()
	nudge(m.quorum)
}

func nudge(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// ablePace is how soon it is noticed that the quorum or the lease came or went, of which nothing in the store tells.
const ablePace = 100 * time.Millisecond

// watchAble has manager and worker look when that happens.
func (m *member) watchAble(ctx context.Context) {
	var quorate, leased bool
	for ctx.Err() == nil {
		_, valid := m.live.Valid()
		if q := m.st.Quorate(); q != quorate || valid != leased {
			quorate, leased = q, valid
			m.leaseChanged()
		}
		sleep(ctx, ablePace)
	}
}

// startMember runs the membership that was recorded at an earlier start. A node that was removed while it was off is none after it.
func (a *Agent) startMember(ctx context.Context, ms *Membership) error {
	m, err := a.openMember(ctx, ms)
	if errors.Is(err, etcd.ErrRemoved) {
		a.wipeMembership()
		a.noteEnd("was removed from cluster " + ms.Cluster.Name)
		return nil
	}
	if err != nil {
		return fmt.Errorf("start as %s of cluster %s: %w", ms.Node.Name, ms.Cluster.Name, err)
	}
	return a.activate(m)
}

// activate starts what a member does: adopt its guests, renew its lease, serve its peers, mind HA.
func (a *Agent) activate(m *member) error {
	m.procs.adoptAll(m.ctx)
	if err := m.serve(a.httpServer); err != nil {
		m.close()
		return err
	}
	m.arrivals.resolveInterrupted(m.ctx)
	m.ending.goOn() // before the worker: an end that goes on starts no guest
	m.wg.Go(func() { m.live.Run(m.ctx) })
	m.wg.Go(func() { m.manager.run(m.ctx) })
	m.wg.Go(func() { m.manager.keepReadable(m.ctx) })
	m.wg.Go(func() { m.worker.run(m.ctx) })
	m.wg.Go(func() { m.watchAble(m.ctx) })
	m.wg.Go(func() { m.fencing.run(m.ctx) })
	m.wg.Go(func() { m.health.start(m.ctx) })
	m.wg.Go(func() { m.load.start(m.ctx) })
	m.wg.Go(func() { m.idle.start(m.ctx) })
	m.beacons.start(m.ctx, a.boot, a.opts.Paths.State, m.addresses)
	m.wg.Go(func() { m.publishSelf(m.ctx, a.opts.Version.Version, a.host) })
	m.wg.Go(func() { m.operations.startOnBoot(m.ctx) })
	a.current.Store(m)
	a.wg.Go(func() { a.watchMembership(m) })
	a.wg.Go(func() { a.watchLeaving(m) })
	return nil
}

// watchMembership notices that the cluster removed this node.
func (a *Agent) watchMembership(m *member) {
	select {
	case <-m.ctx.Done():
		return
	case <-m.st.Done():
	}
	if err := m.st.Err(); errors.Is(err, etcd.ErrRemoved) {
		a.joining.Lock()
		defer a.joining.Unlock()
		if a.current.Load() == m {
			a.dissolve(m, "was removed from cluster "+m.cluster.Name)
		}
	} else if err != nil {
		// Without its store the node cannot renew: the guard does what is needed, and a restart begins anew.
		select {
		case a.fatal <- fmt.Errorf("the store stopped: %w", err):
		default:
		}
	}
}

// dissolve ends a membership for good, unless the agent is ending it already: then the next one does.
func (a *Agent) dissolve(m *member, how string) {
	if !a.current.CompareAndSwap(m, nil) {
		return
	}
	m.live.KillAll(context.WithoutCancel(m.ctx))
	m.close()
	a.wipeMembership()
	a.noteEnd(how)
}

// noteEnd keeps how the last membership ended, for whoever wonders why this node has none.
func (a *Agent) noteEnd(how string) {
	a.log.Warn("this node " + how)
	line := fmt.Sprintf("%s at %s\n", how, time.Now().UTC().Format("2006-01-02 15:04:05 UTC"))
	if err := sys.WriteFile(a.opts.Paths.former(), []byte(line)); err != nil {
		a.log.Warn("the end of the membership is not noted", "err", err)
	}
}

// former says how the last membership ended, "" if there was none.
func (a *Agent) former() string {
	line, err := os.ReadFile(a.opts.Paths.former())
	if err != nil {
		return ""
	}
	return " (it " + strings.TrimSpace(string(line)) + ")"
}

// stopMember ends the membership's routines at the agent's end; guests run on.
func (a *Agent) stopMember() {
	if m := a.current.Swap(nil); m != nil {
		m.close()
	}
}

func (m *member) close() {
	m.cancel()
	for _, s := range m.servers {
		m.endServer(s)
	}
	m.arrivals.wait()
	m.membership.wait()
	m.wg.Wait()
	m.ending.wait()
	m.fencing.wait()
	m.beacons.wait()
	m.starter.wait()
	m.procs.release()
	if err := m.st.Close(); err != nil {
		m.log.Warn("store not closed in order", "err", err)
	}
}

// endServer lets requests end for a moment, and then ends them.
func (m *member) endServer(s *http.Server) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.ctx), time.Second)
	defer cancel()
	if err := s.Shutdown(ctx); err != nil {
		_ = s.Close() // whoever still waits sees the connection end
	}
}

// serve opens the API to the members and to who wants to join, on both addresses.
func (m *member) serve(newServer func() *http.Server) error {
	for _, addr := range m.addresses {
		var lc net.ListenConfig
		ln, err := lc.Listen(m.ctx, "tcp", net.JoinHostPort(addr.String(), apiPort))
		if err != nil {
			return fmt.Errorf("serve the API: %w", err)
		}
		srv := newServer()
		m.servers = append(m.servers, srv)
		m.wg.Go(func() {
			if err := srv.Serve(tls.NewListener(ln, m.server)); !errors.Is(err, http.ErrServerClosed) {
				m.log.Error("the API stopped", "address", ln.Addr(), "err", err)
			}
		})
	}
	return nil
}

// publishSelf records what this node found out about itself, whenever that differs from its record.
func (m *member) publishSelf(ctx context.Context, version string, host *hostInfo) {
	for ctx.Err() == nil {
		if m.publishOnce(ctx, version, host) {
			return
		}
		sleep(ctx, time.Second)
	}
}

// publishOnce reports whether the record says what it should.
func (m *member) publishOnce(ctx context.Context, version string, host *hostInfo) bool {
	key := model.NodePrefix + m.name
	rec, err := mirror.Read[model.Node](ctx, m.st, key)
	if err != nil || rec.Revision == 0 {
		return false
	}
	n := rec.Value
	n.Version, n.MemberID, n.Level = version, m.st.MemberID(), ha.Level
	host.describe(&n)
	if n.Accel == "" {
		return false // the probe is not done yet
	}
	if n == rec.Value {
		return true
	}
	_, err = m.st.Txn(ctx, store.Txn{
		If:   []store.Cond{{Key: key, Revision: rec.Revision}},
		Then: []store.Op{store.Put(key, mustJSON(n))},
	})
	return err == nil
}

func newUUID() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // crypto/rand never fails on Linux
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:])
}
