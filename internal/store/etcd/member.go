package etcd

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/etcdserver/api/membership"

	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/store"
)

// memberPoll is how often an operation looks again for a condition that etcd gives no notice of.
const memberPoll = 100 * time.Millisecond

// Member is one member of the store's cluster.
type Member struct {
	ID       string // hexadecimal
	Name     string // "" until it was started
	PeerURLs []string
	Learner  bool // has no vote yet
}

// MemberID is this member's number in hexadecimal.
func (s *Server) MemberID() string { return s.etcd.Server.MemberID().String() }

// Leader is the member id of the leader that this member knows, "" without one.
func (s *Server) Leader() string {
	lead := s.etcd.Server.Leader()
	if lead == 0 {
		return ""
	}
	return lead.String()
}

// LeaderName is the name of that leader, "" without one.
func (s *Server) LeaderName() string {
	if m := s.etcd.Server.Cluster().Member(s.etcd.Server.Leader()); m != nil {
		return m.Name
	}
	return ""
}

// Quorate reports whether this member knows a leader. It follows a loss within
// two election timeouts (2 s).
func (s *Server) Quorate() bool { return s.etcd.Server.Leader() != 0 && s.ctx.Err() == nil }

// Term is raft's: it rises with every election.
func (s *Server) Term() uint64 { return s.etcd.Server.Term() }

// Members lists the members by name as this one knows them, also without quorum.
func (s *Server) Members(ctx context.Context) ([]Member, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("list members: %w", err)
	}
	var members []Member
	for _, m := range s.etcd.Server.Cluster().Members() {
		members = append(members, memberOf(m))
	}
	slices.SortFunc(members, func(a, b Member) int { return strings.Compare(a.Name+"/"+a.ID, b.Name+"/"+b.ID) })
	return members, nil
}

func memberOf(m *membership.Member) Member {
	return Member{ID: m.ID.String(), Name: m.Name, PeerURLs: slices.Clone(m.PeerURLs), Learner: m.IsLearner}
}

// InitialMembers makes the Initial of a member that joins: members are those that Members
// returned after AddLearner, name and peerURLs are the joining node's.
func InitialMembers(members []Member, name string, peerURLs []string) map[string][]string {
	initial := map[string][]string{name: peerURLs}
	for _, m := range members {
		switch {
		case sameURLs(m.PeerURLs, peerURLs):
		case m.Name == "": // added and never started: etcd wants it listed under any name
			initial["member-"+m.ID] = m.PeerURLs
		default:
			initial[m.Name] = m.PeerURLs
		}
	}
	return initial
}

func sameURLs(a, b []string) bool {
	return slices.Equal(slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b)))
}

// AddLearner announces a new member without a vote. It is idempotent until the new member was started.
// etcd refuses changes of the membership until all voters were connected for 5 s; AddLearner
// waits for that until ctx is done. Errors: model.ErrExists if a member of that name or with one of
// these URLs is there, model.ErrBusy if too many are joining or the wait was in vain, model.ErrNoQuorum.
func (s *Server) AddLearner(ctx context.Context, name string, peerURLs []string) (string, error) {
	if id, err := s.known(ctx, name, peerURLs); err != nil || id != "" {
		return id, err
	}
	var id string
	err := s.poll(ctx, func(ctx context.Context) error {
		resp, err := s.client.MemberAddAsLearner(ctx, peerURLs)
		if err == nil {
			id = strconv.FormatUint(resp.Member.ID, 16)
		}
		return err
	}, rpctypes.ErrUnhealthy)
	if errors.Is(err, model.ErrExists) { // an attempt whose answer was lost
		return s.known(ctx, name, peerURLs)
	}
	if err != nil {
		return "", fmt.Errorf("add member %s: %w", name, err)
	}
	return id, nil
}

// known finds the member among those that are there: its id if it was added and never started.
func (s *Server) known(ctx context.Context, name string, peerURLs []string) (string, error) {
	members, err := s.Members(ctx)
	if err != nil {
		return "", err
	}
	for _, m := range members {
		if m.Name == "" && sameURLs(m.PeerURLs, peerURLs) {
			return m.ID, nil
		}
		if m.Name == name {
			return "", model.Errorf(model.ErrExists, "the store has a member %s already: remove that node first", name)
		}
		for _, u := range peerURLs {
			if slices.Contains(m.PeerURLs, u) {
				return "", model.Errorf(model.ErrExists, "the store's member %s uses %s already: give the new node an address of its own", m.Name, u)
			}
		}
	}
	return "", nil
}

// Promote gives a learner its vote, waiting until it has caught up or ctx is done. A voter stays one.
// Errors: model.ErrNotFound, model.ErrBusy if it had not caught up when ctx was done, model.ErrNoQuorum.
func (s *Server) Promote(ctx context.Context, id string) error {
	n, err := parseID(id)
	if err != nil {
		return err
	}
	err = s.poll(ctx, func(ctx context.Context) error {
		_, err := s.client.MemberPromote(ctx, n)
		if errors.Is(clientError(err), rpctypes.ErrMemberNotLearner) {
			return nil
		}
		return err
	}, rpctypes.ErrMemberLearnerNotReady, rpctypes.ErrUnhealthy)
	if err != nil {
		return fmt.Errorf("promote member %s: %w", id, err)
	}
	return nil
}

// RemoveMember takes a member out, this one included. A member that is gone already is no error.
// Voters must have been connected for 5 s, which it waits for. Errors: model.ErrBusy if the rest would
// not have a connected majority then, model.ErrNoQuorum.
func (s *Server) RemoveMember(ctx context.Context, id string) error {
	n, err := parseID(id)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, healthWait)
	defer cancel()
	err = s.poll(ctx, func(ctx context.Context) error {
		_, err := s.client.MemberRemove(ctx, n)
		if errors.Is(clientError(err), rpctypes.ErrMemberNotFound) {
			return nil
		}
		return err
	}, rpctypes.ErrUnhealthy)
	if errors.Is(err, store.ErrClosed) && id == s.MemberID() && s.stoppedAsRemoved(ctx) {
		return nil // the others refused it before it heard the answer
	}
	if err != nil {
		return fmt.Errorf("remove member %s: %w", id, err)
	}
	return nil
}

// stoppedAsRemoved waits for the end of the member and says whether it was removed.
func (s *Server) stoppedAsRemoved(ctx context.Context) bool {
	select {
	case <-s.done:
		return errors.Is(s.Err(), ErrRemoved)
	case <-ctx.Done():
		return false
	}
}

func parseID(id string) (uint64, error) {
	n, err := strconv.ParseUint(id, 16, 64)
	if err != nil {
		return 0, model.Invalidf("member", "%q is not a member id", id)
	}
	return n, nil
}

// changeTimeout bounds one attempt to change the membership, which a promotion forwards to the leader.
const changeTimeout = 2 * time.Second

// healthWait is longer than the 5 s for which etcd wants voters to have been connected.
const healthWait = 6 * time.Second

// poll calls change until it succeeds, fails for good, or ctx is done. Errors of waitFor mean: not yet; the last
// one is returned when time is up.
func (s *Server) poll(ctx context.Context, change func(context.Context) error, waitFor ...error) error {
	for {
		attempt, cancel := context.WithTimeout(ctx, changeTimeout)
		err := change(attempt)
		cancel()
		if err == nil {
			return nil
		}
		if !slices.ContainsFunc(waitFor, func(w error) bool { return errors.Is(clientError(err), w) }) {
			return memberError(err)
		}
		timer := time.NewTimer(memberPoll)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return memberError(err)
		}
	}
}

func memberError(err error) error {
	switch e := clientError(err); {
	case errors.Is(e, rpctypes.ErrMemberNotFound):
		return fmt.Errorf("member %w", model.ErrNotFound)
	case errors.Is(e, rpctypes.ErrMemberExist), errors.Is(e, rpctypes.ErrPeerURLExist):
		return fmt.Errorf("member %w", model.ErrExists)
	case errors.Is(e, rpctypes.ErrTooManyLearners):
		return model.Errorf(model.ErrBusy, "%d nodes are joining at this moment: try again when they are done", maxLearners)
	case errors.Is(e, rpctypes.ErrMemberNotEnoughStarted):
		return model.Errorf(model.ErrBusy, "too few members are running for this change: start the others first")
	case errors.Is(e, rpctypes.ErrUnhealthy):
		return model.Errorf(model.ErrBusy, "without this member the others would have no connected majority: bring them up first, and wait 5 s")
	case errors.Is(e, rpctypes.ErrMemberLearnerNotReady):
		return model.Errorf(model.ErrBusy, "the new member has not caught up yet")
	case isTransient(err):
		return model.ErrNoQuorum
	}
	return translate(err)
}

// TransferLeadership hands the leadership to the voter that has been connected longest. It does nothing on a
// member that does not lead.
func (s *Server) TransferLeadership(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("transfer leadership: %w", err)
	}
	if err := s.etcd.Server.TryTransferLeadershipOnShutdown(); err != nil {
		return fmt.Errorf("transfer leadership: %w", memberError(err))
	}
	return nil
}
