package agent

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/store/etcd"
)

// ofTwo is a member n1 of a cluster that n2 belongs to, too, with its membership on the disk.
func ofTwo(t *testing.T) *node {
	t.Helper()
	n := newNode(t)
	n.startGuard()
	n.put(model.NodePrefix+"n2", string(mustJSON(model.Node{Name: "n2", ID: 2, Votes: 1})))
	n.st.members = append(n.st.members, etcd.Member{ID: "2", Name: "n2"})
	must(t, saveJSON(n.paths.membership(), Membership{Node: model.Node{Name: "n1"}, Cluster: n.m.cluster}))
	return n
}

// isOut waits until nothing of the membership is left, and checks that the others are complete.
func (n *node) isOut() {
	n.t.Helper()
	eventually(n.t, "the node is out", func() bool { return n.a.current.Load() == nil })
	n.a.joining.Lock() // whoever took it out has wiped by now
	defer n.a.joining.Unlock()
	n.closed = true
	d := n.dump()
	for _, key := range []string{model.NodePrefix + "n1", model.LivePrefix + "n1"} {
		if v, there := d.Keys[key]; there {
			n.t.Errorf("%s is left: %s", key, v)
		}
	}
	if _, there := d.Keys[model.NodePrefix+"n2"]; !there || len(d.Members) != 1 || d.Members[0].Name != "n2" {
		n.t.Errorf("the others have %v, the store's members are %v", d.Keys, d.Members)
	}
	if _, err := os.Stat(n.paths.membership()); !errors.Is(err, os.ErrNotExist) {
		n.t.Errorf("the membership is still on the disk: %v", err)
	}
	if err := n.a.noMember(); !strings.Contains(err.Error(), "this node belongs to no cluster (it left cluster test at 20") {
		n.t.Errorf("nobody is told how that came: %v", err)
	}
}

// marked writes a record that says n1 is leaving.
func (n *node) marked() {
	self := model.Node{Name: "n1", ID: 1, Votes: 1, MemberID: "1", Leaving: true}
	n.put(model.NodePrefix+"n1", string(mustJSON(self)))
}

func TestALeaveGoesOnWithoutItsClient(t *testing.T) {
	n := ofTwo(t)
	ctx, hangUp := context.WithCancel(t.Context())
	n.st.onTxn(func(store.Txn) error { hangUp(); return nil }) // as the first write of all begins
	if err := n.a.Leave(ctx, ""); !errors.Is(err, context.Canceled) {
		t.Errorf("the client was answered with %v", err)
	}
	n.isOut()
}

// What a crash after the mark, and one after the deletion of the records, leaves is completed by the next agent.
func TestALeaveThatBrokeOffIsCompleted(t *testing.T) {
	for name, crash := range map[string]func(*node){
		"after the mark":              (*node).marked,
		"after the records' deletion": func(n *node) { n.delete(model.NodePrefix + "n1") },
		"and the others have no quorum": func(n *node) {
			n.marked()
			n.st.setQuorum(false)
			time.AfterFunc(1500*time.Millisecond, func() { n.st.setQuorum(true) })
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := ofTwo(t)
			crash(n)
			var wg sync.WaitGroup
			wg.Go(func() { n.a.watchLeaving(n.m) })
			n.isOut()
			wg.Wait()
		})
	}
}

func TestAMemberThatStaysIsNotTakenOut(t *testing.T) {
	n := ofTwo(t)
	if err := n.m.membership.takeOut(t.Context()); !errors.Is(err, errStays) || n.m.arrivals.leaving.Load() {
		t.Error(err)
	}
}

// HA, or another node's migration, brought a guest after the first look and before the mark.
func TestAGuestThatCameBeforeTheMarkKeepsTheNode(t *testing.T) {
	n := ofTwo(t)
	first := true
	n.st.onTxn(func(store.Txn) error {
		if first {
			first = false
			putKey(t, n.other, model.GuestConfigKey("n1", 100), "name: arrived\n")
		}
		return nil
	})
	err := n.a.Leave(t.Context(), "")
	refused(t, err, model.ErrBusy, "this node got a guest while it was about to leave, and stays a member: migrate or destroy guest 100 first")
	n.follow()
	if n.m.membership.standing() != nil || n.m.arrivals.leaving.Load() || n.a.current.Load() == nil {
		t.Errorf("it is not the member that it was: %v", n.m.membership.standing())
	}
}

func TestOfTwoNodesThatLeaveAtOnceOneStays(t *testing.T) {
	n := ofTwo(t)
	n.put(model.NodePrefix+"n2", string(mustJSON(model.Node{Name: "n2", ID: 2, Leaving: true})))
	if err := n.a.Leave(t.Context(), ""); !errors.Is(err, model.ErrBusy) {
		t.Error(err)
	}
	// The other's mark comes between this one's look and its write.
	n.put(model.NodePrefix+"n2", string(mustJSON(model.Node{Name: "n2", ID: 2})))
	first := true
	n.st.onTxn(func(store.Txn) error {
		if first {
			first = false
			putKey(t, n.other, model.ClusterKey, n.get(model.ClusterKey))
			putKey(t, n.other, model.NodePrefix+"n2", string(mustJSON(model.Node{Name: "n2", ID: 2, Leaving: true})))
		}
		return nil
	})
	if err := n.a.Leave(t.Context(), ""); !errors.Is(err, model.ErrBusy) {
		t.Error(err)
	}
}

func TestNothingIsChangedThroughANodeThatIsOutOrOnItsWay(t *testing.T) {
	n := ofTwo(t)
	now := time.Now()
	request := n.request(3, now)
	if n.m.roles.ReadOnly() != nil {
		t.Error(n.m.roles.ReadOnly())
	}
	rev := n.put(model.LivePrefix+"n1", `{"boot_id":"b","epoch":1}`)
	if !slices.ContainsFunc(n.m.manager.view().Members, isTarget("n1", rev)) {
		t.Error("HA does not know the node as a target")
	}
	n.marked()
	leaving := "n1 is leaving cluster test: nothing can be changed through it; `sauh cluster leave` waits until it is out"
	refused(t, n.m.roles.ReadOnly(), model.ErrUnavailable, leaving)
	_, err := n.m.membership.admit(t.Context(), request, now)
	refused(t, err, model.ErrUnavailable, leaving)
	if targets := n.m.manager.view().Members; !slices.ContainsFunc(targets, isTarget("n1", 0)) {
		t.Errorf("HA may still move guests here: %+v", targets)
	}
	n.delete(model.NodePrefix + "n1")
	refused(t, n.m.roles.ReadOnly(), model.ErrUnavailable, "n1 is no member of cluster test any more and takes itself out: nothing can be changed through it")
}

func TestTheLastNodeEndsItsClusterByName(t *testing.T) {
	n := ofTwo(t)
	end := func(name string) error { return n.a.Leave(t.Context(), name) }
	refused(t, end("test"), model.ErrBusy, "cluster test has other nodes (n2): run `sauh cluster leave` on each of them first")
	n.delete(model.NodePrefix + "n2")
	refused(t, end("other"), model.ErrInvalid, "clustername: this node's cluster is test, not other")
	n.put(model.GuestConfigKey("n1", 100), "name: mine\n")
	refused(t, end("test"), model.ErrBusy, "n1 still owns guests (100): migrate or destroy them first")
	n.delete(model.GuestConfigKey("n1", 100))
	must(t, end("test"))
	n.closed = true
	if _, err := os.Stat(n.paths.membership()); !errors.Is(err, os.ErrNotExist) || n.a.current.Load() != nil {
		t.Errorf("the membership is still there: %v", err)
	}
}

// A store that catches up shows the past first.
func TestAVoteOfAnEarlierMembershipIsNone(t *testing.T) {
	n := newNode(t)
	old := model.Node{Name: "n1", ID: 1, Votes: 1, MemberID: "of old"}
	n.put(model.NodePrefix+"n1", string(mustJSON(old)))
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	if err := n.m.membership.awaitVote(ctx); err == nil {
		t.Error("the node took its old record for its vote")
	}
	old.MemberID = n.st.MemberID()
	n.put(model.NodePrefix+"n1", string(mustJSON(old)))
	must(t, n.m.membership.awaitVote(t.Context()))
}

func TestANodeThatJoinedHasCaughtUp(t *testing.T) {
	n := newNode(t)
	for i := range 50 {
		putKey(t, n.other, model.GuestConfigKey("n2", model.VMID(100+i)), "name: x\n")
	}
	must(t, n.m.membership.catchUp(t.Context()))
	if got := len(n.m.membership.files.of("n2")); got != 50 {
		t.Errorf("the mirror shows %d of 50 guests", got)
	}
}

func isTarget(name string, liveRevision int64) func(ha.Member) bool {
	return func(m ha.Member) bool { return m.Name == name && m.LiveRevision == liveRevision }
}
