package etcd

import (
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	"go.etcd.io/etcd/server/v3/etcdserver"
)

// askTimeout bounds the connection to a member that is asked for the list of members.
const askTimeout = time.Second

// ErrRemoved means that the member was removed from the cluster, for ever.
var ErrRemoved = errors.New("this node was removed from the store's members")

// endReason says why the member stopped by itself. etcd stops when the others refuse it, which they do for ever once it was
// removed; a member that was off then has not read that in its own log, so it asks.
func (s *Server) endReason(err error) error {
	id := s.etcd.Server.MemberID()
	if s.etcd.Server.IsIDRemoved(uint64(id)) || s.othersRemovedIt() {
		return ErrRemoved
	}
	if err != nil {
		return fmt.Errorf("store stopped: %w", err)
	}
	return errors.New("store stopped: the other members refused this one or it could not write its log")
}

// othersRemovedIt asks the other members, which have to show a certificate of the CA, whether this one is not in their list.
func (s *Server) othersRemovedIt() bool {
	var urls []string
	for _, m := range s.etcd.Server.Cluster().Members() {
		if m.ID != s.etcd.Server.MemberID() {
			urls = append(urls, m.PeerURLs...)
		}
	}
	rt, err := transport.NewTransport(s.peerTLS, askTimeout)
	if err != nil {
		return false
	}
	defer rt.CloseIdleConnections()
	theirs, err := etcdserver.GetClusterFromRemotePeers(nil, urls, rt)
	return err == nil && theirs.ID() == s.etcd.Server.Cluster().ID() && theirs.Member(s.etcd.Server.MemberID()) == nil
}
