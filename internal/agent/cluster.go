package agent

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"time"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/certs"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/guard"
	"sauh.dev/sauh/internal/store/etcd"
	"sauh.dev/sauh/internal/sys"
)

// Keys of the cluster CA among the configuration files, as Proxmox VE keeps its own.
const (
	caCertKey = model.ConfigPrefix + "priv/sauh-ca.pem"
	caKeyKey  = model.ConfigPrefix + "priv/sauh-ca.key"
)

// Version implements api.Cluster.
func (a *Agent) Version() model.Version { return a.opts.Version }

// Info implements api.Cluster.
func (a *Agent) Info(ctx context.Context) (api.NodeInfo, error) {
	info, err := a.host.info()
	if err != nil {
		return info, err
	}
	info.Node, info.Version, info.AgentPID = a.nodeName(), a.opts.Version.Version, os.Getpid()
	if m := a.current.Load(); m != nil {
		info.ClusterMember = true
		info.Guard = guardStatus(m.live.Status())
	} else {
		info.Guard = a.askGuard(ctx)
	}
	return info, nil
}

// askGuard is for a node that is no member: nothing has asked its guard before.
func (a *Agent) askGuard(ctx context.Context) api.GuardStatus {
	ctx, cancel := context.WithTimeout(ctx, guardAnswer)
	defer cancel()
	return guardStatus(guard.New(a.opts.Paths.guardSocket()).Status(ctx))
}

// guardAnswer is how long a person waits for what the guard says; it takes microseconds.
const guardAnswer = time.Second

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
func (a *Agent) Nodes(context.Context) ([]model.Node, error) {
	m, err := a.member()
	if err != nil {
		return nil, err
	}
	return m.roster.nodes(), nil
}

// Status implements api.Cluster. It answers without quorum.
func (a *Agent) Status(context.Context) (api.ClusterStatus, error) {
	m, err := a.member()
	if err != nil {
		return api.ClusterStatus{}, err
	}
	snap := m.mirror.Snapshot()
	manager, _ := mirror.Get[model.Manager](snap, model.ManagerKey) // what cannot be read is not shown
	s := api.ClusterStatus{
		Name: m.cluster.Name, UUID: m.cluster.UUID, Local: m.name, Quorate: m.st.Quorate(),
		Leader: m.st.LeaderName(), Manager: manager.Value.Node, ConfigVersion: configVersion(snap),
	}
	for _, n := range m.roster.nodes() {
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
func (a *Agent) Create(ctx context.Context, r api.CreateClusterRequest) error {
	a.joining.Lock()
	defer a.joining.Unlock()
	if err := a.refuseIfMember(); err != nil {
		return err
	}
	if err := validateClusterName(r.Name); err != nil {
		return err
	}
	if _, err := lease.Profile(r.HAProfile); err != nil {
		return err
	}
	node, err := a.selfNode(ctx, r.NodeName, r.Mgmt, r.Cluster)
	if err != nil {
		return err
	}
	node.ID, node.Votes = 1, 1
	now := time.Now()
	cluster := model.Cluster{Name: r.Name, UUID: newUUID(), Created: now.Unix(), HAProfile: r.HAProfile}
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
	if err := m.membership.seed(ctx, cluster, node, ca); err != nil {
		m.close()
		return fmt.Errorf("write the first records: %w", err)
	}
	if err := m.membership.catchUp(ctx); err != nil {
		m.close()
		return err
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

// Key implements api.Cluster.
func (a *Agent) Key(ctx context.Context, valid time.Duration) (api.JoinKey, error) {
	m, err := a.member()
	if err != nil {
		return api.JoinKey{}, err
	}
	return m.membership.key(ctx, valid)
}

// Remove implements api.Cluster.
func (a *Agent) Remove(ctx context.Context, node string) error {
	m, err := a.member()
	if err != nil {
		return err
	}
	if node == m.name {
		return model.Invalidf("node", "%s is this node: use `sauh cluster leave`", node)
	}
	if _, err := m.roster.node(node); err != nil {
		// An earlier try may have got as far as the records; the store's voters are still to be changed then.
		if id, merr := m.membership.memberID(ctx, node); merr != nil || id == "" {
			return err
		}
	}
	if m.live.Online(node) {
		return model.Errorf(model.ErrBusy, "%s is online: run `sauh cluster leave` on it, or switch it off first", node)
	}
	return m.membership.dropNode(ctx, node)
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
	for _, path := range []string{p.membership(), p.storeData(), filepath.Dir(p.caCert()), p.ending()} {
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
