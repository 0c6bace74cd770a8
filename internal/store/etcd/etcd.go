// Package etcd is store.Store on an etcd member that runs inside this process.
//
// It configures and starts the member, talks to it by function calls (no client
// port exists, not even on loopback), and turns etcd's behaviour into the contract of
// package store: an answer within a second, retries that happen once, typed errors. It
// decides nothing about who is a member; that is its caller's business.
//
// Invariant: a transaction is committed at most once, however many of its attempts reach the
// log and however late. Start reading with [Start] and [Server.Txn]; the argument stands in
// DESIGN.md of package store.
package etcd

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/embed"
	"go.etcd.io/etcd/server/v3/etcdserver/api/rafthttp"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3client"
	"go.etcd.io/etcd/server/v3/storage/wal"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/store"
)

// DefaultPeerPort is the port that members talk to each other on.
const DefaultPeerPort = 2380

const (
	heartbeat       = 100 * time.Millisecond  // etcd's default
	electionTimeout = 1000 * time.Millisecond // etcd's default: a leader is replaced 1 to 2 s after it fell silent

	// The keys are small and change slowly: a renewal a second and node. These
	// bounds keep a member's disk at a few tens of megabytes.
	snapshotEvery    = 5000       // raft entries between two snapshots
	catchUpEntries   = 2000       // entries kept in memory for a follower that lags
	keepRevisions    = "10000"    // history for watches; compaction looks every 5 minutes
	walSegmentBytes  = 8 << 20    // etcd preallocates two of them
	maxWALFiles      = 3          // beyond those that the last snapshot still needs
	quotaBytes       = 1 << 30    // the member refuses writes above it
	maxTxnOps        = 1024       // operations in one transaction
	maxLearners      = 5          // nodes that can be joining at the same time
	maxRequestBytes  = 1536 << 10 // etcd's default
	slowRequestAfter = time.Second
)

// PeerSilence is how long members' connections may be silent before they are made anew, by the other network if
// need be: 15 heartbeats. See TunePeers.
const PeerSilence = 1500 * time.Millisecond

// TunePeers sets, for the whole process, how soon members give up a silent connection. etcd's own 5 s would
// come on top of every network cut that is longer, and leave nothing of a lease. It must be called
// before the first Start: etcd keeps the times in variables of its package.
func TunePeers() {
	rafthttp.ConnReadTimeout, rafthttp.ConnWriteTimeout = PeerSilence, PeerSilence
}

// TLSFiles are PEM files. Members accept only peers with a certificate of CA.
type TLSFiles struct {
	CA, Cert, Key string
}

// Config says what a member is called, where it keeps its data and whom it talks to.
type Config struct {
	Name string
	// DataDir is created with mode 0700. If it holds a member already, Initial and Existing have no effect.
	DataDir string
	// Addresses are the node's IPs, one in each network. The member listens on all of them.
	Addresses []string
	PeerPort  int // 0 means DefaultPeerPort
	TLS       TLSFiles
	// Token tells clusters apart that were made with the same names and addresses: the cluster's UUID.
	// All members that are in Initial without Existing give the same one.
	Token string
	// Initial are the members by name, this one included, with their peer URLs. See InitialMembers.
	Initial map[string][]string
	// Existing: this member was added to a running cluster with AddLearner.
	Existing bool
	Logger   *slog.Logger // nil discards
}

// PeerURLs returns the URLs under which a node with these addresses is reached by other members.
func PeerURLs(addresses []string, port int) []string {
	if port == 0 {
		port = DefaultPeerPort
	}
	urls := make([]string, len(addresses))
	for i, a := range addresses {
		urls[i] = "https://" + net.JoinHostPort(a, strconv.Itoa(port))
	}
	return urls
}

// Server is a running member. It is safe for concurrent use.
type Server struct {
	name   string
	etcd   *embed.Etcd
	client *clientv3.Client
	commit commitFunc // one attempt of a transaction; tests put faults in front of it
	idBase string     // prefix of this process' transaction ids
	slots  chan *slot
	// peerTLS is what this member shows to others and demands of them.
	peerTLS transport.TLSInfo

	done     chan struct{} // closed when the member stopped
	cancel   context.CancelFunc
	ctx      context.Context // ends with Close or the member's end
	routines sync.WaitGroup  // watches and supervise

	mu      sync.Mutex
	closing bool
	err     error // why done is closed; nil after Close
	nextID  uint64
}

var _ store.Store = (*Server)(nil)

// Start runs a member and returns when it answers Local reads. It does not wait
// for a quorum (see Ready), so it succeeds while the other members are off. A member that
// joins (Existing, no data yet) asks the others for the cluster first and needs one of them
// to answer: with one network dead that takes about 2 s for each dead address.
func Start(ctx context.Context, cfg Config) (*Server, error) {
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("start store: %w", err)
	}
	ec, err := cfg.embed()
	if err != nil {
		return nil, fmt.Errorf("start store: %w", err)
	}
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start store: %w", err)
	}
	e, err := embed.StartEtcd(ec)
	if err != nil {
		return nil, fmt.Errorf("start store in %s: %w", cfg.DataDir, err)
	}
	s := newServer(cfg.Name, e)
	s.peerTLS = ec.PeerTLSInfo
	s.routines.Add(1)
	go s.supervise()
	return s, nil
}

func newServer(name string, e *embed.Etcd) *Server {
	ctx, cancel := context.WithCancel(context.Background())
	s := &Server{
		name:   name,
		etcd:   e,
		client: v3client.New(e.Server),
		idBase: newIDBase(),
		slots:  newSlots(name),
		done:   make(chan struct{}),
		ctx:    ctx,
		cancel: cancel,
	}
	s.commit = s.commitOnce
	return s
}

func (c *Config) validate() error {
	switch {
	case c.Name == "" || c.DataDir == "":
		return model.Invalidf("store", "a member needs a name and a data directory")
	case len(c.Addresses) == 0:
		return model.Invalidf("store", "member %s has no address", c.Name)
	case len(c.Initial[c.Name]) == 0 && !hasData(c.DataDir):
		return model.Invalidf("store", "member %s is not among the initial members", c.Name)
	}
	for _, u := range slices.Concat(slices.Collect(maps.Values(c.Initial))...) {
		if err := checkPeerURL(u); err != nil {
			return err
		}
	}
	return nil
}

// checkPeerURL refuses what is no URL, and a proxy in the environment, which
// etcd's transport would send the members' traffic through.
func checkPeerURL(peer string) error {
	req, err := http.NewRequest(http.MethodGet, peer, nil) //nolint:noctx // never sent
	if err != nil {
		return model.Invalidf("store", "peer URL %q: %v", peer, err)
	}
	if proxy, err := http.ProxyFromEnvironment(req); err != nil || proxy != nil {
		return model.Invalidf("store", "the environment sends %s through a proxy: unset HTTPS_PROXY for this program or add the host to NO_PROXY", peer)
	}
	return nil
}

func hasData(dir string) bool {
	return wal.Exist(filepath.Join(dir, "member", "wal"))
}

// embed translates the configuration into etcd's.
func (c *Config) embed() (*embed.Config, error) {
	if err := os.MkdirAll(c.DataDir, 0o700); err != nil {
		return nil, err
	}
	setWALSegmentSize()
	own := PeerURLs(c.Addresses, c.PeerPort)
	urls, err := parseURLs(own)
	if err != nil {
		return nil, err
	}
	ec := embed.NewConfig()
	ec.Name, ec.Dir = c.Name, c.DataDir
	ec.ListenPeerUrls, ec.AdvertisePeerUrls = urls, urls
	ec.ListenClientUrls, ec.AdvertiseClientUrls = nil, nil
	ec.EnableGRPCGateway = false
	ec.PeerTLSInfo = transport.TLSInfo{
		CertFile: c.TLS.Cert, KeyFile: c.TLS.Key, TrustedCAFile: c.TLS.CA, ClientCertAuth: true,
		// The CA vouches for a peer, not the address that it dials from: with two
		// networks that is any of several, and a reverse look-up would only stall.
		SkipClientSANVerify: true,
	}
	ec.InitialCluster = initialCluster(c.Initial, c.Name, own)
	ec.InitialClusterToken = "sauh-" + c.Token
	ec.ClusterState = embed.ClusterStateFlagNew
	if c.Existing {
		ec.ClusterState = embed.ClusterStateFlagExisting
	}
	tune(ec)
	ec.ZapLoggerBuilder = embed.NewZapLoggerBuilder(newZap(c.Logger))
	return ec, nil
}

func tune(ec *embed.Config) {
	ec.TickMs = uint(heartbeat.Milliseconds())
	ec.ElectionMs = uint(electionTimeout.Milliseconds())
	ec.PreVote = true
	ec.StrictReconfigCheck = true
	ec.SnapshotCount = snapshotEvery
	ec.SnapshotCatchUpEntries = catchUpEntries
	ec.MaxSnapFiles = 2
	ec.MaxWalFiles = maxWALFiles
	ec.AutoCompactionMode = embed.CompactorModeRevision
	ec.AutoCompactionRetention = keepRevisions
	ec.QuotaBackendBytes = quotaBytes
	ec.MaxTxnOps = maxTxnOps
	ec.MaxRequestBytes = maxRequestBytes
	ec.MaxLearners = maxLearners
	ec.WarningApplyDuration = slowRequestAfter
	ec.WarningUnaryRequestDuration = slowRequestAfter
}

// setWALSegmentSize makes etcd preallocate less. The size is a variable of etcd's
// package, so it is set once a process and before the first member reads it.
//
//nolint:gochecknoglobals // guards a global of etcd's
var setWALSegmentSize = sync.OnceFunc(func() { wal.SegmentSizeBytes = walSegmentBytes })

// initialCluster prints the members as etcd wants them. Of a member with data the list means nothing,
// but etcd wants to find the member's own URLs in it.
func initialCluster(initial map[string][]string, name string, own []string) string {
	if len(initial[name]) == 0 {
		initial = map[string][]string{name: own}
	}
	var parts []string
	for _, member := range slices.Sorted(maps.Keys(initial)) {
		for _, u := range initial[member] {
			parts = append(parts, member+"="+u)
		}
	}
	return strings.Join(parts, ",")
}

func parseURLs(raw []string) ([]url.URL, error) {
	urls := make([]url.URL, len(raw))
	for i, r := range raw {
		u, err := url.Parse(r)
		if err != nil {
			return nil, model.Invalidf("store", "peer URL %q: %v", r, err)
		}
		urls[i] = *u
	}
	return urls, nil
}

// supervise notices the member's end.
func (s *Server) supervise() {
	defer s.routines.Done()
	var err error
	select {
	case <-s.etcd.Server.StopNotify():
	case err = <-s.etcd.Err():
	case <-s.ctx.Done():
		return // Close
	}
	reason := s.endReason(err)
	s.mu.Lock()
	if !s.closing {
		s.err = reason
		close(s.done)
	}
	s.mu.Unlock()
	s.cancel()
}

// Done is closed when the member has stopped: by Close, because it was removed, or because it could
// not go on. The caller still calls Close.
func (s *Server) Done() <-chan struct{} { return s.done }

// Err says why Done is closed: nil after Close, ErrRemoved, or what happened.
func (s *Server) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.err
}

// Ready is closed once the member took part in a quorum since it started.
func (s *Server) Ready() <-chan struct{} { return s.etcd.Server.ReadyNotify() }

// Close stops the member, after it handed its leadership to another one, and
// ends all watches with store.ErrClosed. It can be called twice.
func (s *Server) Close() error {
	s.mu.Lock()
	first := !s.closing
	s.closing = true
	s.mu.Unlock()
	s.cancel()
	s.routines.Wait()
	if !first {
		<-s.done
		return nil
	}
	err := s.client.Close()
	s.etcd.Close()
	select {
	case <-s.done:
	default:
		close(s.done)
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close store: %w", err)
	}
	return nil
}
