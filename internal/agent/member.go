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
	"sync"
	"sync/atomic"
	"time"

	"sauh.dev/sauh/internal/agent/liveness"
	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/agent/move"
	"sauh.dev/sauh/internal/certs"
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

// member is all that runs while this node belongs to a cluster. openMember
// starts the store and the mirror, activate the rest; close stops everything but the guests.
type member struct {
	agent         *Agent
	name          string
	cluster       model.Cluster
	caFingerprint string
	log           *slog.Logger
	st            memberStore
	mirror        *mirror.Mirror
	live          *liveness.Liveness
	lease         leaseholder
	procs         *procs
	locks         *guestLocks
	moves         *move.Target
	claims        move.Claims
	kicked        chan struct{} // has an element after something of this node changed that the worker looks at
	dialer        network.Dialer
	tlsClient     *tls.Config
	tlsServer     *tls.Config
	addresses     []netip.Addr // cluster network first

	ctx     context.Context //nolint:containedctx // the life of the membership, shorter than the process'
	cancel  context.CancelFunc
	wg      sync.WaitGroup
	servers []*http.Server

	leaving atomic.Bool // nothing may come here any more

	mu         sync.Mutex
	transports map[string]*http.Transport // guarded by mu
	arriving   map[model.VMID]func()      // unlocks guests that are being received; guarded by mu
}

// openMember starts this node's store with the certificates that are on disk, and follows it.
func (a *Agent) openMember(ctx context.Context, ms *Membership) (*member, error) {
	p := a.opts.Paths
	self, err := certs.Load(p.nodeCert(), p.nodeKey())
	if err != nil {
		return nil, fmt.Errorf("load this node's certificate: %w", err)
	}
	ca, err := certs.LoadCert(p.caCert())
	if err != nil {
		return nil, fmt.Errorf("load the cluster's CA: %w", err)
	}
	addrs := []string{ms.Node.Cluster, ms.Node.Mgmt}
	m := &member{
		agent: a, name: ms.Node.Name, cluster: ms.Cluster, caFingerprint: certs.Fingerprint(ca),
		log: a.log, kicked: make(chan struct{}, 1), transports: map[string]*http.Transport{}, arriving: map[model.VMID]func(){},
		tlsClient: certs.Client(self, ca, nil), tlsServer: certs.ServerOptionalClient(self, ca, nil),
	}
	m.tlsServer.VerifyConnection = m.verifyMember
	for _, s := range addrs {
		addr, err := netip.ParseAddr(s)
		if err != nil {
			return nil, fmt.Errorf("address of this node: %w", err)
		}
		m.addresses = append(m.addresses, addr)
	}
	m.ctx, m.cancel = context.WithCancel(context.WithoutCancel(ctx))
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
		Name: m.name, DataDir: p.storeData(), Addresses: addrs,
		TLS: etcd.TLSFiles{CA: p.caCert(), Cert: p.nodeCert(), Key: p.nodeKey()}, Token: ms.Cluster.UUID,
		Initial: ms.Initial, Existing: ms.Existing, Logger: a.log.With("part", "store"),
	})
	if err != nil {
		m.cancel()
		m.wg.Wait()
		return nil, err
	}
	m.st = st
	m.locks = newGuestLocks(m.kick)
	m.live = m.newLiveness(a.opts, a.boot)
	m.lease = m.live
	m.procs = newProcs(m)
	m.mirror = mirror.New(m.st, a.log, m.live.Observe)
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

// leaseholder says whether this node's lease is valid, and its epoch.
type leaseholder interface {
	Valid() (epoch uint64, ok bool)
}

func (m *member) newLiveness(o Options, boot string) *liveness.Liveness {
	return liveness.New(liveness.Config{
		Node: m.name, BootID: boot, Params: o.Lease, Store: m.st, Guard: guard.New(o.Paths.guardSocket()), Clock: sys.BootTime,
		FirstEpoch: func() uint64 {
			kv, _ := m.mirror.Snapshot().Get(model.NodePrefix + m.name)
			return uint64(kv.CreateRevision)
		},
		Changed: m.kick, Log: m.log,
	})
}

// verifyMember refuses the certificate of a node that is no member any more.
// Who shows none may still ask to join.
func (m *member) verifyMember(cs tls.ConnectionState) error {
	if name := certs.PeerName(&cs); name != "" {
		_, err := m.node(name)
		return err
	}
	return nil
}

// kick makes the HA worker look again.
func (m *member) kick() {
	select {
	case m.kicked <- struct{}{}:
	default:
	}
}

// startMember runs the membership that was recorded at an earlier start. A node that was removed while it was off is none after it.
func (a *Agent) startMember(ctx context.Context, ms *Membership) error {
	m, err := a.openMember(ctx, ms)
	if errors.Is(err, etcd.ErrRemoved) {
		a.log.Warn("this node was removed from the cluster", "cluster", ms.Cluster.Name)
		a.wipeMembership()
		return nil
	}
	if err != nil {
		return fmt.Errorf("start as %s of cluster %s: %w", ms.Node.Name, ms.Cluster.Name, err)
	}
	return a.activate(m)
}

// activate starts what a member does: adopt its guests, renew its lease, serve its peers, mind HA.
func (a *Agent) activate(m *member) error {
	m.moves = m.newMoveTarget()
	m.procs.adoptAll(m.ctx)
	if err := m.serve(); err != nil {
		m.close()
		return err
	}
	m.resolveInterrupted(m.ctx)
	m.wg.Go(func() { m.live.Run(m.ctx) })
	m.wg.Go(func() { m.runManager(m.ctx) })
	m.wg.Go(func() { m.runWorker(m.ctx) })
	m.wg.Go(func() { m.publishSelf(m.ctx) })
	m.wg.Go(func() { m.startOnBoot(m.ctx) })
	a.current.Store(m)
	a.wg.Go(func() { a.watchMembership(m) })
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
			a.log.Warn("this node was removed from the cluster", "cluster", m.cluster.Name)
			a.dissolve(m)
		}
	} else if err != nil {
		// Without its store the node cannot renew: the guard does what is needed, and a restart begins anew.
		select {
		case a.fatal <- fmt.Errorf("the store stopped: %w", err):
		default:
		}
	}
}

// dissolve ends a membership for good.
func (a *Agent) dissolve(m *member) {
	a.current.Store(nil)
	m.live.KillAll(context.WithoutCancel(m.ctx))
	m.close()
	a.wipeMembership()
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
	if m.moves != nil {
		m.moves.Close()
	}
	m.wg.Wait()
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
func (m *member) serve() error {
	for _, addr := range m.addresses {
		var lc net.ListenConfig
		ln, err := lc.Listen(m.ctx, "tcp", net.JoinHostPort(addr.String(), apiPort))
		if err != nil {
			return fmt.Errorf("serve the API: %w", err)
		}
		srv := m.agent.httpServer()
		m.servers = append(m.servers, srv)
		m.wg.Go(func() {
			if err := srv.Serve(tls.NewListener(ln, m.tlsServer)); !errors.Is(err, http.ErrServerClosed) {
				m.log.Error("the API stopped", "address", ln.Addr(), "err", err)
			}
		})
	}
	return nil
}

// publishSelf records what this node found out about itself, whenever that differs from its record.
func (m *member) publishSelf(ctx context.Context) {
	for ctx.Err() == nil {
		if m.publishOnce(ctx) {
			return
		}
		sleep(ctx, time.Second)
	}
}

// publishOnce reports whether the record says what it should.
func (m *member) publishOnce(ctx context.Context) bool {
	key := model.NodePrefix + m.name
	rec, err := mirror.Read[model.Node](ctx, m.st, key)
	if err != nil || rec.Revision == 0 {
		return false
	}
	n := rec.Value
	n.Version, n.MemberID = m.agent.opts.Version.Version, m.st.MemberID()
	m.agent.host.describe(&n)
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
