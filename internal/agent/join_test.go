package agent

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/agent/mirror"
	"sauh.dev/sauh/internal/agent/move"
	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/certs"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/store/etcd"
)

func testKey() joinKey {
	return joinKey{Cluster: "test", Fingerprint: "ab", Addresses: []string{"10.0.0.1:8006"}, ID: "id", Secret: "s", Expires: 7}
}

func TestAJoinKeyComesBackAsItWas(t *testing.T) {
	want := testKey()
	got, err := parseJoinKey(" " + want.encode() + "\n")
	must(t, err)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestWhatIsNoJoinKeyIsRefused(t *testing.T) {
	whole := testKey().encode()
	without := func(change func(*joinKey)) string {
		k := testKey()
		change(&k)
		return k.encode()
	}
	for name, text := range map[string]string{
		"nothing":        "",
		"another prefix": strings.Replace(whole, joinKeyPrefix, "sauh2-", 1),
		"no prefix":      strings.TrimPrefix(whole, joinKeyPrefix),
		"cut off":        whole[:len(whole)-9],
		"a foreign sign": whole[:20] + "!" + whole[21:],
		"no JSON":        joinKeyPrefix + "QUJD",
		"no id":          without(func(k *joinKey) { k.ID = "" }),
		"no secret":      without(func(k *joinKey) { k.Secret = "" }),
		"no address":     without(func(k *joinKey) { k.Addresses = nil }),
	} {
		t.Run(name, func(t *testing.T) {
			k, err := parseJoinKey(text)
			refused(t, err, model.ErrInvalid, "key: this is not a join key: copy the whole line that `sauh cluster key` printed on a member, it begins with sauh1-")
			if diff := cmp.Diff(joinKey{}, k); diff != "" {
				t.Error(diff)
			}
		})
	}
}

func TestAKeyIsMadeForOneSecondToSevenDays(t *testing.T) {
	n := newNode(t)
	for _, valid := range []time.Duration{-time.Second, time.Millisecond, 7*24*time.Hour + 1} {
		if _, err := n.a.Key(t.Context(), valid); !errors.Is(err, model.ErrInvalid) {
			t.Errorf("a key valid for %s: %v", valid, err)
		}
	}
	k, err := n.a.Key(t.Context(), 0)
	must(t, err)
	if d := time.Until(time.Unix(k.Expires, 0)); d < 59*time.Minute || d > time.Hour {
		t.Errorf("a key is valid for %s unless the person says otherwise, want an hour", d)
	}
	got, err := parseJoinKey(k.Key)
	must(t, err)
	want := joinKey{
		Cluster: "test", Fingerprint: n.m.caFingerprint, Addresses: []string{"10.0.0.1:8006", "10.0.1.1:8006"},
		ID: got.ID, Secret: got.Secret, Expires: k.Expires,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if strings.Contains(n.get(model.JoinPrefix+got.ID), got.Secret) {
		t.Error("the store holds the secret itself")
	}
}

// request makes a new key and the request with which node number i joins by it.
func (n *node) request(i int, now time.Time) joinRequest {
	n.t.Helper()
	text, err := n.a.Key(n.t.Context(), time.Hour)
	must(n.t, err)
	k, err := parseJoinKey(text.Key)
	must(n.t, err)
	self := model.Node{Name: fmt.Sprintf("n%d", i), Mgmt: fmt.Sprintf("10.0.0.%d", i), Cluster: fmt.Sprintf("10.0.1.%d", i)}
	_, csr, err := certs.NewRequest(self.Name, []string{self.Mgmt, self.Cluster})
	must(n.t, err)
	return joinRequest{ID: k.ID, Secret: k.Secret, Node: self, CSR: string(csr), Time: now.UnixNano()}
}

func TestANodeIsAdmitted(t *testing.T) {
	n := newNode(t)
	now := time.Now()
	r := n.request(2, now)
	reply, err := n.m.membership.admit(t.Context(), r, now)
	must(t, err)
	want := model.Node{Name: "n2", ID: 2, Mgmt: "10.0.0.2", Cluster: "10.0.1.2", Joined: now.Unix()}
	if diff := cmp.Diff(want, reply.Node); diff != "" {
		t.Error(diff)
	}
	urls := map[string][]string{"n1": {"https://10.0.0.1:2380"}, "n2": {"https://10.0.1.2:2380", "https://10.0.0.2:2380"}}
	if diff := cmp.Diff(urls, reply.Initial); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff(n.m.cluster, reply.Cluster); diff != "" {
		t.Error(diff)
	}
	cert, err := certs.ParseCert([]byte(reply.Cert))
	must(t, err)
	ca, err := certs.ParseCert([]byte(reply.CA))
	must(t, err)
	if err := cert.CheckSignatureFrom(ca); err != nil || cert.VerifyHostname("n2") != nil || cert.VerifyHostname("10.0.1.2") != nil {
		t.Errorf("the certificate is not the cluster's for n2: %v", err)
	}
	close(n.st.promote)
	eventually(t, "n2 votes", func() bool {
		rec, err := mirror.Read[model.Node](t.Context(), n.st, model.NodePrefix+"n2")
		return err == nil && rec.Value.Votes == 1 && rec.Value.MemberID == "2"
	})
	second := r
	second.Node.Name, second.Node.Mgmt, second.Node.Cluster = "n3", "10.0.0.3", "10.0.1.3"
	_, err = n.m.membership.admit(t.Context(), second, now)
	refused(t, err, model.ErrInvalid, "the join key is unknown or was used already: make a new one with `sauh cluster key` on a member")
}

func TestARefusedJoinChangesNothing(t *testing.T) {
	now := time.Unix(time.Now().Unix(), 0)
	newKey := ": make a new one with `sauh cluster key` on a member"
	setClock := " against n1: at most 2s is allowed; set it (for example with chrony) and join again"
	for name, c := range map[string]struct {
		change func(*joinRequest)
		later  time.Duration // when the member looks at it
		kind   error
		want   string
	}{
		"the secret is wrong":  {func(r *joinRequest) { r.Secret += "x" }, 0, model.ErrInvalid, "the join key is wrong" + newKey},
		"the key is unknown":   {func(r *joinRequest) { r.ID = newUUID() }, 0, model.ErrInvalid, "the join key is unknown or was used already" + newKey},
		"the clock is ahead":   {func(r *joinRequest) { r.Time += 3e9 }, 0, model.ErrInvalid, "the clock of n2 is off by 3.0 s" + setClock},
		"the clock is behind":  {func(r *joinRequest) { r.Time -= 3e9 }, 0, model.ErrInvalid, "the clock of n2 is off by -3.0 s" + setClock},
		"the request has none": {func(r *joinRequest) { r.Time = 0 }, 0, model.ErrInvalid, fmt.Sprintf("the clock of n2 is off by -%d.0 s", now.Unix()) + setClock},
		"the name is taken": {
			func(r *joinRequest) { r.Node.Name = "n1" }, 0, model.ErrExists,
			"the name n1 is taken in cluster test: choose another with --node-name, or remove the old node with `sauh cluster remove n1`",
		},
		"the management address is taken": {
			func(r *joinRequest) { r.Node.Mgmt = "10.0.0.1" }, 0, model.ErrExists,
			"the addresses 10.0.0.1 and 10.0.1.2 belong to node n1 already: correct /etc/sauh/agent.json on n2",
		},
		"the cluster address is taken": {
			func(r *joinRequest) { r.Node.Cluster = "10.0.1.1" }, 0, model.ErrExists,
			"the addresses 10.0.0.2 and 10.0.1.1 belong to node n1 already: correct /etc/sauh/agent.json on n2",
		},
		"an address is another's in the other network": {
			func(r *joinRequest) { r.Node.Mgmt = "10.0.1.1" }, 0, model.ErrExists,
			"the addresses 10.0.1.1 and 10.0.1.2 belong to node n1 already: correct /etc/sauh/agent.json on n2",
		},
		"the name is none": {
			func(r *joinRequest) { r.Node.Name = "N_2" }, 0, model.ErrInvalid,
			`node: "N_2" is not a node name: use lower-case letters, digits and '-', at most 63 characters`,
		},
	} {
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			good := n.request(2, now)
			before := n.dump()
			r := good
			c.change(&r)
			_, err := n.m.membership.admit(t.Context(), r, now.Add(c.later))
			refused(t, err, c.kind, c.want)
			if diff := cmp.Diff(before, n.dump()); diff != "" {
				t.Errorf("the refusal changed the store:\n%s", diff)
			}
			if _, err := n.m.membership.admit(t.Context(), good, now); err != nil {
				t.Errorf("the key cannot be used any more: %v", err)
			}
		})
	}
}

func TestAClockThatIsTwoSecondsOffIsAllowed(t *testing.T) {
	n := newNode(t)
	now := time.Now()
	r := n.request(2, now.Add(2*time.Second))
	if _, err := n.m.membership.admit(t.Context(), r, now); err != nil {
		t.Error(err)
	}
}

func TestAKeyEndsAtItsSecond(t *testing.T) {
	n := newNode(t)
	r := n.request(2, time.Now())
	rec, err := mirror.Read[joinSecret](t.Context(), n.st, model.JoinPrefix+r.ID)
	must(t, err)
	end := time.Unix(rec.Value.Expires, 0)
	r.Time = end.UnixNano()
	before := n.dump()
	_, err = n.m.membership.admit(t.Context(), r, end)
	refused(t, err, model.ErrInvalid, "the join key expired at "+end.UTC().Format("2006-01-02 15:04:05 UTC")+": make a new one with `sauh cluster key` on a member")
	if diff := cmp.Diff(before, n.dump()); diff != "" {
		t.Error(diff)
	}
	if _, err := n.m.membership.admit(t.Context(), r, end.Add(-time.Nanosecond)); err != nil {
		t.Errorf("a moment before its end the key is refused: %v", err)
	}
}

func TestASixthNodeIsRefused(t *testing.T) {
	n := newNode(t)
	close(n.st.promote)
	now := time.Now()
	for i := 2; i <= 5; i++ {
		reply, err := n.m.membership.admit(t.Context(), n.request(i, now), now)
		must(t, err)
		if reply.Node.ID != i {
			t.Errorf("n%d has the number %d", i, reply.Node.ID)
		}
	}
	r := n.request(6, now)
	_, err := n.m.membership.admit(t.Context(), r, now)
	refused(t, err, model.ErrBusy, "cluster test has 5 nodes: this version of Sauh takes no more")
	if n.get(model.JoinPrefix+r.ID) == "" || n.get(model.NodePrefix+"n6") != "" {
		t.Error("the refusal used the key or left a record")
	}
}

// Both joins have read the same list of nodes before either writes.
func TestOfTwoJoinsAtOnceOneStartsOver(t *testing.T) {
	n := newNode(t)
	now := time.Now()
	requests := []joinRequest{n.request(2, now), n.request(3, now)}
	var both sync.WaitGroup
	both.Add(2)
	n.st.onTxn(func(tx store.Txn) error {
		if strings.HasPrefix(tx.If[0].Key, model.JoinPrefix) {
			both.Done()
			both.Wait()
		}
		return nil
	})
	errs := make([]error, 2)
	var wg sync.WaitGroup
	for i, r := range requests {
		wg.Go(func() { _, errs[i] = n.m.membership.admit(t.Context(), r, now) })
	}
	wg.Wait()
	n.st.onTxn(nil)
	winner, loser := 0, 1
	if errs[0] != nil {
		winner, loser = 1, 0
	}
	if errs[winner] != nil {
		t.Fatal("both were refused:", errs)
	}
	name := requests[loser].Node.Name
	refused(t, errs[loser], model.ErrConflict, "admit "+name+": someone else changed it at the same moment: look again and repeat")
	if n.get(model.NodePrefix+name) != "" {
		t.Error("the refused node has a record")
	}
	reply, err := n.m.membership.admit(t.Context(), requests[loser], now)
	must(t, err)
	if reply.Node.ID != 3 {
		t.Errorf("started over, the second node has the number %d, want 3", reply.Node.ID)
	}
}

func TestAJoinThatTheStoreRefusesIsTakenBack(t *testing.T) {
	n := newNode(t)
	now := time.Now()
	r := n.request(2, now)
	before := n.dump()
	n.st.setAddErr(model.Errorf(model.ErrBusy, "the store is busy"))
	_, err := n.m.membership.admit(t.Context(), r, now)
	refused(t, err, model.ErrBusy, "add n2 to the store (is another node joining right now? then try again): the store is busy")
	if diff := cmp.Diff(before, n.dump()); diff != "" {
		t.Errorf("not everything was taken back:\n%s", diff)
	}
	n.st.setAddErr(nil)
	if _, err := n.m.membership.admit(t.Context(), r, now); err != nil {
		t.Errorf("the key that was given back is refused: %v", err)
	}
}

// A learner that has not started yet has no name in the store; the joining node's own list must have one for it.
func TestTheListOfMembersNamesOneThatHasNotStarted(t *testing.T) {
	n := newNode(t)
	now := time.Now()
	_, err := n.m.membership.admit(t.Context(), n.request(2, now), now)
	must(t, err)
	reply, err := n.m.membership.admit(t.Context(), n.request(3, now), now)
	must(t, err)
	want := map[string][]string{
		"n1": {"https://10.0.0.1:2380"}, "member-2": {"https://10.0.1.2:2380", "https://10.0.0.2:2380"},
		"n3": {"https://10.0.1.3:2380", "https://10.0.0.3:2380"},
	}
	if diff := cmp.Diff(want, reply.Initial); diff != "" {
		t.Error(diff)
	}
}

func TestAJoinIsTakenBackWhenTheMemberEndsBeforeTheVote(t *testing.T) {
	n := newNode(t)
	now := time.Now()
	r := n.request(2, now)
	_, err := n.m.membership.admit(t.Context(), r, now)
	must(t, err)
	n.m.cancel()
	eventually(t, "the join is taken back", func() bool {
		d := n.dump()
		_, there := d.Keys[model.NodePrefix+"n2"]
		return !there && len(d.Members) == 1
	})
}

func TestANodeThatIsOutOfTheRecordsCanStillBeTakenOutOfTheStore(t *testing.T) {
	n := newNode(t)
	n.put(model.NodePrefix+"n2", string(mustJSON(model.Node{Name: "n2", ID: 2})))
	n.st.members = append(n.st.members, etcd.Member{ID: "2", Name: "n2"})
	n.delete(model.NodePrefix + "n2") // an earlier try got this far
	must(t, n.a.Remove(t.Context(), "n2"))
	if members, _ := n.st.Members(t.Context()); len(members) != 1 {
		t.Errorf("the store still has %v", members)
	}
	if err := n.a.Remove(t.Context(), "n9"); !errors.Is(err, model.ErrNotFound) {
		t.Errorf("a node that never was: %v", err)
	}
}

func TestTheLastNodeDoesNotLeave(t *testing.T) {
	n := newNode(t)
	err := n.a.Leave(t.Context(), "")
	refused(t, err, model.ErrBusy, "n1 is the last node of cluster test: there is nobody left to keep it; `sauh cluster destroy test` ends it for good")
}

func TestANodeLeavesOnlyWithoutGuestsAndWithoutWorkInHand(t *testing.T) {
	n := newNode(t)
	g := n.startGuard()
	n.put(model.NodePrefix+"n2", string(mustJSON(model.Node{Name: "n2", ID: 2})))
	leave := func() error { return n.a.Leave(t.Context(), "") }
	n.put(model.GuestConfigKey("n1", 100), "name: mine\n")
	before := n.dump()
	refused(t, leave(), model.ErrBusy, "n1 still owns guests (100): migrate or destroy them first")
	if diff := cmp.Diff(before, n.dump()); diff != "" {
		t.Error(diff)
	}
	n.delete(model.GuestConfigKey("n1", 100))
	unlock, err := n.m.worker.locks.tryLock(101, "create")
	must(t, err)
	before = n.dump()
	if err := leave(); !errors.Is(err, model.ErrBusy) {
		t.Errorf("with a guest in hand: %v", err)
	}
	if diff := cmp.Diff(before, n.dump()); diff != "" {
		t.Error(diff)
	}
	unlock()
	n.m.arrivals.leaving.Store(true)
	_, err = n.m.arrivals.prepare(t.Context(), "n2", move.PrepareRequest{VMID: 200})
	refused(t, err, model.ErrUnavailable, "node n1 is leaving the cluster")
	must(t, leave())
	n.closed = true
	if members, _ := n.st.Members(t.Context()); len(members) != 0 || n.get(model.NodePrefix+"n1") != "" || n.get(model.NodePrefix+"n2") == "" {
		t.Errorf("after it: %v, %v", members, n.dump().Keys)
	}
	if len(g.calls("fence")) == 0 {
		t.Error("the guard still has what was protected here")
	}
	if _, err := n.a.member(); !errors.Is(err, model.ErrUnavailable) {
		t.Errorf("the node still is a member: %v", err)
	}
}

func TestAMemberCreatesAndJoinsNoOtherCluster(t *testing.T) {
	n := newNode(t)
	want := "this node is already a member of cluster test as n1: leave it first with `sauh cluster leave`"
	refused(t, n.a.Create(t.Context(), api.CreateClusterRequest{Name: "two"}), model.ErrExists, want)
	refused(t, n.a.Join(t.Context(), testKey().encode(), ""), model.ErrExists, want)
}

// The store took the learner in and its answer was lost: the learner has no name by which anybody could remove it.
func TestALearnerWhoseAnswerWasLostIsTakenBack(t *testing.T) {
	n := newNode(t)
	now := time.Now()
	r := n.request(2, now)
	before := n.dump()
	n.st.addLost = true
	n.st.setAddErr(store.ErrNoQuorum)
	if _, err := n.m.membership.admit(t.Context(), r, now); !errors.Is(err, model.ErrNoQuorum) {
		t.Error(err)
	}
	if diff := cmp.Diff(before, n.dump()); diff != "" {
		t.Errorf("not everything was taken back:\n%s", diff)
	}
}

// The joining node writes its own record as soon as it has started, and no vote may be lost by that.
func TestAVoteIsRecordedAlthoughTheRecordChangesMeanwhile(t *testing.T) {
	n := newNode(t)
	now := time.Now()
	_, err := n.m.membership.admit(t.Context(), n.request(2, now), now)
	must(t, err)
	key := model.NodePrefix + "n2"
	times := 3
	n.st.onTxn(func(tx store.Txn) error {
		if len(tx.Then) == 1 && tx.Then[0].Key == key && times > 0 {
			times--
			var x model.Node
			must(t, json.Unmarshal([]byte(n.get(key)), &x))
			x.CPUs++
			putKey(t, n.other, key, string(mustJSON(x)))
		}
		return nil
	})
	close(n.st.promote)
	eventually(t, "n2 votes", func() bool {
		rec, err := mirror.Read[model.Node](t.Context(), n.other, key)
		return err == nil && rec.Value.Votes == 1 && rec.Value.CPUs == 3
	})
	if members, _ := n.st.Members(t.Context()); len(members) != 2 {
		t.Errorf("the store's members are %v", members)
	}
}
