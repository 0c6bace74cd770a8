package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/certs"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/guard"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/store/etcd"
	"sauh.dev/sauh/internal/sys"
)

// clusterAPI is the agent in its role as api.Cluster.
type clusterAPI Agent

// Keys of the cluster CA among the configuration files, as Proxmox VE keeps its own.
const (
	caCertKey = model.ConfigPrefix + "priv/sauh-ca.pem"
	caKeyKey  = model.ConfigPrefix + "priv/sauh-ca.key"
)

func (c *clusterAPI) agent() *Agent { return (*Agent)(c) }

// Version implements api.Cluster.
func (c *clusterAPI) Version() model.Version { return c.opts.Version }

// Info implements api.Cluster.
func (c *clusterAPI) Info(context.Context) (api.NodeInfo, error) {
	info, err := c.host.info()
	if err != nil {
		return info, err
	}
	info.Node, info.Version, info.AgentPID = c.agent().nodeName(), c.opts.Version.Version, os.Getpid()
	if m := c.current.Load(); m != nil {
		info.ClusterMember = true
		info.Guard = guardStatus(m.live.Status())
	}
	return info, nil
}

// guardStatus is what the guard said last.
func guardStatus(s guard.Status, err error) api.GuardStatus {
	if err != nil {
		return api.GuardStatus{Watchdog: err.Error()}
	}
	out := api.GuardStatus{
		Connected: true, Epoch: s.Epoch, LeaseMS: s.LeftMS, WatchdogSec: int(s.TimeoutS),
		Watchdog: strings.TrimSpace(s.Watchdog + " " + s.Identity + " (" + s.Grade + ")"),
	}
	for _, g := range s.Groups {
		if g.State != lease.Running {
			out.Frozen = append(out.Frozen, g.Name)
		}
	}
	return out
}

// Nodes implements api.Cluster.
func (c *clusterAPI) Nodes(context.Context) ([]model.Node, error) {
	m, err := c.agent().member()
	if err != nil {
		return nil, err
	}
	return m.nodes(), nil
}

// Status implements api.Cluster. It answers without quorum.
func (c *clusterAPI) Status(context.Context) (api.ClusterStatus, error) {
	m, err := c.agent().member()
	if err != nil {
		return api.ClusterStatus{}, err
	}
	snap := m.mirror.Snapshot()
	manager, _ := mirror.Get[model.Manager](snap, model.ManagerKey) // what cannot be read is not shown
	s := api.ClusterStatus{
		Name: m.cluster.Name, UUID: m.cluster.UUID, Local: m.name, Quorate: m.st.Quorate(),
		Leader: m.st.LeaderName(), Manager: manager.Value.Node, ConfigVersion: configVersion(snap),
	}
	for _, n := range m.nodes() {
		row := api.NodeStatus{Node: n}
		if l, err := mirror.Get[model.Live](snap, model.LivePrefix+n.Name); err == nil && l.Revision != 0 {
			row.Epoch, row.Fenced = l.Value.Epoch, l.Value.Fenced
			row.Online = n.Name == m.name || m.live.Online(n.Name)
			if row.Online {
				row.OnlineSince = l.Value.Online
			}
		}
		s.ExpectedVotes += n.Votes
		if row.Online {
			s.TotalVotes += n.Votes
		}
		s.Nodes = append(s.Nodes, row)
	}
	s.Quorum = s.ExpectedVotes/2 + 1
	return s, nil
}

// Create implements api.Cluster.
func (c *clusterAPI) Create(ctx context.Context, r api.CreateClusterRequest) error {
	a := c.agent()
	a.joining.Lock()
	defer a.joining.Unlock()
	if err := a.refuseIfMember(); err != nil {
		return err
	}
	if err := validateClusterName(r.Name); err != nil {
		return err
	}
	node, err := a.selfNode(ctx, r.NodeName, r.Mgmt, r.Cluster)
	if err != nil {
		return err
	}
	node.ID, node.Votes = 1, 1
	now := time.Now()
	cluster := model.Cluster{Name: r.Name, UUID: newUUID(), Created: now.Unix()}
	ca, err := certs.NewCA(r.Name, now)
	if err != nil {
		return fmt.Errorf("make the cluster's CA: %w", err)
	}
	undo := a.wipeMembership
	defer func() {
		if undo != nil {
			undo()
		}
	}()
	if err := a.issueOwnCert(ca, node, now); err != nil {
		return err
	}
	ms := &Membership{Node: node, Cluster: cluster, Initial: map[string][]string{node.Name: peerURLs(node)}}
	m, err := a.openMember(ctx, ms)
	if err != nil {
		return fmt.Errorf("start the cluster: %w", err)
	}
	if err := m.seed(ctx, cluster, node, ca); err != nil {
		m.close()
		return fmt.Errorf("write the first records: %w", err)
	}
	ms.Existing = true
	if err := saveJSON(a.opts.Paths.membership(), ms); err != nil {
		m.close()
		return err
	}
	if err := a.activate(m); err != nil {
		return err
	}
	undo = nil
	return nil
}

// seed writes what a new cluster begins with.
func (m *member) seed(ctx context.Context, cluster model.Cluster, node model.Node, ca certs.Pair) error {
	node.MemberID = m.st.MemberID()
	keyPEM, err := certs.EncodeKey(ca.Key)
	if err != nil {
		return err
	}
	values := map[string][]byte{
		model.ClusterKey:                   mustJSON(cluster),
		model.NodePrefix + node.Name:       mustJSON(node),
		caCertKey:                          certs.EncodeCert(ca.Cert),
		caKeyKey:                           keyPEM,
		model.ConfigPrefix + "storage.cfg": {},
	}
	var t store.Txn
	for k, v := range values {
		t.If = append(t.If, store.Cond{Key: k})
		t.Then = append(t.Then, store.Put(k, v))
	}
	// A fresh store has to elect itself before it takes a write.
	return retryNoQuorum(ctx, 15*time.Second, func() error {
		_, err := m.st.Txn(ctx, t)
		return err
	})
}

// Key implements api.Cluster.
func (c *clusterAPI) Key(ctx context.Context, valid time.Duration) (api.JoinKey, error) {
	m, err := c.agent().member()
	if err != nil {
		return api.JoinKey{}, err
	}
	if valid == 0 {
		valid = time.Hour
	}
	if valid < time.Second || valid > 7*24*time.Hour {
		return api.JoinKey{}, model.Invalidf("valid", "%s is not a time for which a key can be valid: use one second to seven days", valid)
	}
	secret, stored := newSecret()
	stored.Expires, stored.By = time.Now().Add(valid).Unix(), m.name
	k := joinKey{Cluster: m.cluster.Name, Fingerprint: m.caFingerprint, ID: newUUID(), Secret: secret, Expires: stored.Expires}
	for _, n := range m.nodes() {
		k.Addresses = append(k.Addresses, net.JoinHostPort(n.Mgmt, apiPort), net.JoinHostPort(n.Cluster, apiPort))
	}
	key := model.JoinPrefix + k.ID
	_, err = m.st.Txn(ctx, store.Txn{If: []store.Cond{{Key: key}}, Then: []store.Op{store.Put(key, mustJSON(stored))}})
	if err != nil {
		return api.JoinKey{}, writeError("make a join key", err)
	}
	return api.JoinKey{Key: k.encode(), Fingerprint: k.Fingerprint, Addresses: k.Addresses, Expires: k.Expires}, nil
}

// Leave implements api.Cluster.
func (c *clusterAPI) Leave(ctx context.Context) error {
	a := c.agent()
	a.joining.Lock()
	defer a.joining.Unlock()
	m, err := a.member()
	if err != nil {
		return err
	}
	if nodes := m.nodes(); len(nodes) == 1 && nodes[0].Name == m.name {
		return model.Errorf(model.ErrBusy, "%s is the last node of cluster %s: there is nobody left to keep it", m.name, m.cluster.Name)
	}
	if err := m.dropNode(ctx, m.name); err != nil {
		return err
	}
	a.log.Info("left the cluster", "cluster", m.cluster.Name)
	a.dissolve(m)
	return nil
}

// Remove implements api.Cluster.
func (c *clusterAPI) Remove(ctx context.Context, node string) error {
	m, err := c.agent().member()
	if err != nil {
		return err
	}
	if node == m.name {
		return model.Invalidf("node", "%s is this node: use `sauh cluster leave`", node)
	}
	if _, err := m.node(node); err != nil {
		// An earlier try may have got as far as the records; the store's voters are still to be changed then.
		if id, merr := m.memberID(ctx, node); merr != nil || id == "" {
			return err
		}
	}
	if m.live.Online(node) {
		return model.Errorf(model.ErrBusy, "%s is online: run `sauh cluster leave` on it, or switch it off first", node)
	}
	return m.dropNode(ctx, node)
}

// dropNode takes a node without guests out of the store's membership and deletes its records.
func (m *member) dropNode(ctx context.Context, node string) error {
	if ids := m.guestsOf(node); len(ids) > 0 {
		return model.Errorf(model.ErrBusy, "%s still owns guests (%s): migrate or destroy them first", node, joinIDs(ids))
	}
	self := node == m.name
	if self {
		m.leaving.Store(true)
		defer m.leaving.Store(false)
		if busy := m.locks.holders(); len(busy) > 0 {
			return model.Errorf(model.ErrBusy, "guests are being worked on here (%v): wait until that is done", busy)
		}
		m.live.Pause() // no renewal may cross the transaction below
		defer m.live.Resume()
		if m.st.LeaderName() == m.name {
			if err := m.st.TransferLeadership(ctx); err != nil {
				m.log.Warn("leadership not handed over before leaving", "err", err)
			}
		}
	}
	if err := m.deleteRecords(ctx, node); err != nil {
		return writeError("remove "+node, err)
	}
	id, err := m.memberID(ctx, node)
	if err != nil || id == "" {
		return err
	}
	if err := m.st.RemoveMember(ctx, id); err != nil {
		return fmt.Errorf("%s is out of the cluster, but not yet out of the store's voters (run the command again): %w", node, err)
	}
	return nil
}

// deleteRecords deletes what says that node is a member, unless it changes meanwhile.
func (m *member) deleteRecords(ctx context.Context, node string) error {
	var t store.Txn
	for _, key := range []string{model.NodePrefix + node, model.LivePrefix + node} {
		kv, err := m.st.Get(ctx, key, store.Linearizable)
		if errors.Is(err, store.ErrNotFound) {
			t.If = append(t.If, store.Cond{Key: key})
			continue
		}
		if err != nil {
			return err
		}
		t.If = append(t.If, store.Cond{Key: key, Revision: kv.ModRevision})
		t.Then = append(t.Then, store.Delete(key))
	}
	if len(t.Then) == 0 {
		return nil
	}
	_, err := m.st.Txn(ctx, t)
	return err
}

func (m *member) memberID(ctx context.Context, node string) (string, error) {
	members, err := m.st.Members(ctx)
	if err != nil {
		return "", writeError("look up "+node, err)
	}
	for _, x := range members {
		if x.Name == node {
			return x.ID, nil
		}
	}
	return "", nil
}

func (a *Agent) refuseIfMember() error {
	if m := a.current.Load(); m != nil {
		return model.Errorf(model.ErrExists, "this node is already a member of cluster %s as %s: leave it first with `sauh cluster leave`", m.cluster.Name, m.name)
	}
	return a.refuseWhileStarting() // or the store of a membership that is about to run would be wiped
}

// selfNode describes this machine as a node.
func (a *Agent) selfNode(ctx context.Context, name, mgmt, cluster string) (model.Node, error) {
	n := model.Node{Name: a.cfg.Node, Mgmt: a.cfg.Mgmt, Cluster: a.cfg.Cluster, Joined: time.Now().Unix(), Version: a.opts.Version.Version}
	if name != "" {
		n.Name = name
	}
	if mgmt != "" {
		n.Mgmt = mgmt
	}
	if cluster != "" {
		n.Cluster = cluster
	}
	if err := model.ValidateNodeName(n.Name); err != nil {
		return n, err
	}
	for param, addr := range map[string]string{"mgmt": n.Mgmt, "cluster": n.Cluster} {
		if net.ParseIP(addr) == nil {
			return n, model.Invalidf(param, "%q is not an IP address", addr)
		}
		if err := localAddress(ctx, addr); err != nil {
			return n, model.Invalidf(param, "%s is not an address of this machine: set it on an interface first, or correct %s", addr, a.opts.Paths.Config)
		}
	}
	a.host.describe(&n)
	return n, nil
}

func localAddress(ctx context.Context, addr string) error {
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "tcp", net.JoinHostPort(addr, "0"))
	if err != nil {
		return err
	}
	return ln.Close()
}

func validateClusterName(s string) error {
	if len(s) == 0 || len(s) > 15 || strings.Trim(strings.ToLower(s), "abcdefghijklmnopqrstuvwxyz0123456789-") != "" || strings.HasPrefix(s, "-") {
		return model.Invalidf("clustername", "%q is not a cluster name: use 1 to 15 letters, digits and '-'", s)
	}
	return nil
}

// issueOwnCert writes the certificates of a node that holds the CA.
func (a *Agent) issueOwnCert(ca certs.Pair, n model.Node, now time.Time) error {
	pair, err := ca.Issue(n.Name, []string{n.Mgmt, n.Cluster}, now)
	if err != nil {
		return fmt.Errorf("issue the certificate of %s: %w", n.Name, err)
	}
	return a.saveCerts(pair, ca.Cert)
}

func (a *Agent) saveCerts(pair certs.Pair, ca *x509.Certificate) error {
	p := a.opts.Paths
	if err := os.MkdirAll(filepath.Dir(p.caCert()), 0o700); err != nil {
		return fmt.Errorf("certificate directory: %w", err)
	}
	return errors.Join(pair.Save(p.nodeCert(), p.nodeKey()), sys.WriteFile(p.caCert(), certs.EncodeCert(ca)))
}

// wipeMembership removes everything that made this machine a member.
func (a *Agent) wipeMembership() {
	p := a.opts.Paths
	for _, path := range []string{p.membership(), p.storeData(), filepath.Dir(p.caCert())} {
		if err := os.RemoveAll(path); err != nil {
			a.log.Error("membership not wiped", "path", path, "err", err)
		}
	}
}

func peerURLs(n model.Node) []string {
	return etcd.PeerURLs([]string{n.Cluster, n.Mgmt}, etcd.DefaultPeerPort)
}

// configVersion is the highest revision of a configuration file.
func configVersion(s mirror.Snapshot) int64 {
	var v int64
	for kv := range s.All(model.ConfigPrefix) {
		v = max(v, kv.ModRevision)
	}
	return v
}

// nodes lists the members from the mirror, by number.
func (m *member) nodes() []model.Node {
	var out []model.Node
	nodes, _ := mirror.List[model.Node](m.mirror.Snapshot(), model.NodePrefix) // what cannot be read is in the log
	for _, r := range nodes {
		out = append(out, r.Value)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].ID < out[j].ID })
	return out
}

func (m *member) node(name string) (model.Node, error) {
	r, err := mirror.Get[model.Node](m.mirror.Snapshot(), model.NodePrefix+name)
	if err != nil {
		return model.Node{}, err
	}
	if r.Revision == 0 {
		var names []string
		for _, n := range m.nodes() {
			names = append(names, n.Name)
		}
		return model.Node{}, model.Errorf(model.ErrNotFound, "node '%s' does not exist: the nodes are %s", name, strings.Join(names, ", "))
	}
	return r.Value, nil
}
