package ha_test

import (
	"slices"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

// loses lets nodes say what they have lost from now on.
func (s *stage) loses(storage string, nodes ...string) {
	for _, n := range nodes {
		s.store.set(model.HAHealthPrefix+n, ha.NodeHealth{Lost: []string{storage}})
	}
}

// regains lets nodes say that they are well.
func (s *stage) regains(nodes ...string) {
	for _, n := range nodes {
		s.store.set(model.HAHealthPrefix+n, ha.NodeHealth{})
	}
}

// onEach is a cluster of three nodes with a guest that runs on each.
func onEach(t *testing.T) *stage {
	s := newStage(t, "n1", "n2", "n3")
	for id, node := range map[model.VMID]string{101: "n1", 102: "n2", 103: "n3"} {
		s.guest(id, node, pveconf.HAStarted)
	}
	s.run(second)
	s.log = nil
	return s
}

func (s *stage) reason(id model.VMID, want string) {
	s.t.Helper()
	if got := s.status(id).Reason; got != want {
		s.t.Errorf("at %s: the reason of %s is %q, want %q", s.now, s.sid(id), got, want)
	}
}

func TestGuestsLeaveANodeThatLostTheirStorageOnceTheOthersHadTheTimeToSayTheSame(t *testing.T) {
	s := onEach(t)
	s.guest(104, "n3", pveconf.HAStarted)
	g := s.guests[104]
	g.Storages = nil
	s.guests[104] = g
	s.run(second)
	s.log = nil
	s.loses("nas", "n3")
	s.run(ha.DefaultParams().FleeAfter)
	s.happened()
	s.run(second)
	s.is("vm:101 n1 started runs", "vm:102 n2 started runs", "vm:103 n1 started runs", "vm:104 n3 started runs")
	s.happened("stop vm:103 on n3", "vm:103 n3→n1", "start vm:103 on n1")
	s.run(5 * time.Minute)
	s.happened()
}

func TestNobodyMovesWhenAllNodesLoseTheStorage(t *testing.T) {
	s := onEach(t)
	s.loses("nas", "n2")
	s.run(3 * second)
	s.loses("nas", "n3")
	s.run(2900 * time.Millisecond)
	s.loses("nas", "n1")
	s.run(5 * time.Minute)
	s.happened()
	s.is("vm:101 n1 started runs", "vm:102 n2 started runs", "vm:103 n3 started runs")
	for id := range s.guests {
		s.reason(id, "every node that may run it has lost the storage nas")
	}
	if n := len(s.status(102).Log); n > 4 {
		t.Errorf("%d decisions: %+v", n, s.status(102).Log)
	}
	s.regains("n2") // the end, too, is found by one before the other
	s.run(3 * second)
	s.regains("n1")
	s.run(2900 * time.Millisecond)
	s.regains("n3")
	s.run(time.Minute)
	s.happened()
	for id := range s.guests {
		s.reason(id, "")
	}
}

func TestGuestsOfTwoNodesThatLoseTheStorageGoToTheThird(t *testing.T) {
	s := onEach(t)
	s.loses("nas", "n1")
	s.run(4 * second)
	s.loses("nas", "n2")
	s.run(8 * second)
	s.is("vm:101 n3 started runs", "vm:102 n3 started runs", "vm:103 n3 started runs")
	s.happened("stop vm:101 on n1", "vm:101 n1→n3", "start vm:101 on n3", "stop vm:102 on n2", "vm:102 n2→n3", "start vm:102 on n3")
}

// A node that was away, or has a fault that began later, says so before it is sure that the storage is lost.
func TestNoGuestIsSentToANodeThatDoubtsThatItHasTheStorage(t *testing.T) {
	s := onEach(t)
	for _, n := range []string{"n2", "n3"} {
		s.store.set(model.HAHealthPrefix+n, ha.NodeHealth{Doubt: []string{"nas"}})
	}
	s.loses("nas", "n1")
	s.run(time.Minute)
	s.happened()
	s.is("vm:101 n1 started runs", "vm:102 n2 started runs", "vm:103 n3 started runs")
	s.regains("n3")
	s.run(second)
	s.is("vm:101 n3 started runs", "vm:102 n2 started runs", "vm:103 n3 started runs")
	s.die("n3") // those who come back go there all the same if there is no other
	s.run(time.Minute)
	s.is("vm:101 n2 started runs", "vm:102 n2 started runs", "vm:103 n2 started runs")
}

func TestGuestsGoToTheNodeThatAloneRegainsTheStorage(t *testing.T) {
	s := onEach(t)
	s.loses("nas", "n1", "n2", "n3")
	s.run(time.Minute)
	s.regains("n2")
	s.run(ha.DefaultParams().FleeAfter)
	s.happened()
	s.run(second)
	s.is("vm:101 n2 started runs", "vm:102 n2 started runs", "vm:103 n2 started runs")
}

func TestALossThatEndsInTimeMovesNobody(t *testing.T) {
	s := onEach(t)
	for range 3 {
		s.loses("nas", "n1")
		s.run(5 * second)
		s.regains("n1")
		s.run(second)
	}
	s.happened()
	s.reason(101, "")
}

func TestAManagerThatIsNewWaitsItself(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n3", pveconf.HAStarted)
	d.v.Statuses[100] = ha.StatusRecord{Status: ha.Status{State: ha.StatusStarted, Node: "n3"}, Revision: 300}
	d.member("n3").Health = ha.NodeHealth{Lost: []string{"nas"}}
	d.now = time.Minute
	d.view("wake 1m2.5s") // of which the silence of the others is the cause
	d.now += ha.DefaultParams().FleeAfter
	d.v.Revision++
	d.view("status vm:100 relocate on n3", "wake 1m8.5s")
	d.reason("status", "vm:100 is relocate: n3 has lost the storage nas")
}

func TestAMoveThatHasNotBegunIsTakenBackWhenItsTargetLosesTheStorageToo(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n3", pveconf.HAStarted)
	d.v.Statuses[100] = ha.StatusRecord{Status: ha.Status{State: ha.StatusRelocate, Node: "n3", Target: "n1"}, Revision: 300}
	d.member("n3").Health = ha.NodeHealth{Lost: []string{"nas"}}
	d.now = time.Minute
	d.view("wake 1m2.5s")
	d.member("n1").Health = ha.NodeHealth{Lost: []string{"nas"}}
	d.now += 100 * time.Millisecond
	d.v.Revision++
	d.view("status vm:100 starting on n3", "wake 1m2.6s")
	d.reason("status", "vm:100 is starting: it stays on n3: n1 has lost the storage nas")
}

// Where it goes because it did not start, no other node has been tried then.
func TestAMoveThatIsTakenBackIsNoNodeTried(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n3", pveconf.HAStarted)
	d.v.Statuses[100] = ha.StatusRecord{Status: ha.Status{State: ha.StatusRelocate, Node: "n3", Target: "n1", Tried: []string{"n2", "n3"}}, Revision: 300}
	d.member("n1").Health = ha.NodeHealth{Lost: []string{"nas"}}
	d.now = time.Minute
	d.view("status vm:100 starting on n3", "wake 1m2.5s")
	if got := d.given("status").(ha.SetStatus).Status.Tried; !slices.Equal(got, []string{"n2"}) {
		t.Errorf("tried: %v", got)
	}
}

func TestNoRuleAndNoMaintenanceSendsAGuestToWhereItsStorageIsLost(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n2", pveconf.HAStarted)
	s.ruled("node-affinity: near\n\tresources vm:100\n\tnodes n2:2,n3:1\n")
	s.run(second)
	s.log = nil
	s.loses("nas", "n2")
	s.run(5 * time.Minute)
	s.is("vm:100 n3 started runs")
	s.happened("stop vm:100 on n2", "vm:100 n2→n3", "start vm:100 on n3")
	s.store.set(model.HARequestPrefix+"n3", ha.NodeRequest{Maintenance: true})
	s.run(second)
	s.is("vm:100 n1 started runs")
	s.store.set(model.HARequestPrefix+"n3", ha.NodeRequest{})
	s.loses("nas", "n2", "n3")
	s.run(time.Minute)
	s.is("vm:100 n1 started runs")
	s.die("n1")
	s.run(time.Minute)
	s.is("vm:100 n1 recovery")
	s.regains("n2")
	s.run(second)
	s.is("vm:100 n2 started runs")
}

func TestAGuestThatAStrictRuleKeepsFromTheNodesThatAreWellIsToldWhy(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n2", pveconf.HAStarted)
	s.ruled(onlyN2N3)
	s.run(second)
	s.log = nil
	s.loses("nas", "n2", "n3")
	s.run(time.Minute)
	s.happened()
	s.reason(100, "n2 has lost the storage nas, and no node can take it: n1 is not among the nodes of rule rule; n2 has no storage nas; n3 has no storage nas")
}

// withoutNAS has each start on these nodes fail.
func (s *stage) withoutNAS(nodes ...string) {
	s.kind = ha.FailAway
	s.fail = func(node string, a ha.Action) string {
		if _, start := a.(ha.Start); start && slices.Contains(nodes, node) {
			return "virtio0: storage nas is not available: stat /srv/nas: transport endpoint is not connected"
		}
		return ""
	}
}

func TestAStartWithoutTheStorageIsRepeatedMoreAndMoreSeldomAndNeverCounted(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n1", pveconf.HAStarted)
	s.withoutNAS("n1", "n2", "n3")
	s.run(20 * second)
	s.loses("nas", "n1", "n2", "n3")
	s.run(5 * time.Minute)
	s.is("vm:100 n1 starting")
	s.reason(100, "start waits: virtio0: storage nas is not available: stat /srv/nas: transport endpoint is not connected")
	if st := s.status(100); st.Failures != 0 || st.Tried != nil || len(s.log) > 18 {
		t.Errorf("%+v %q", st, s.log)
	}
	s.fail = func(string, ha.Action) string { return "" }
	s.regains("n1", "n2", "n3")
	s.run(30 * second)
	s.is("vm:100 n1 started runs")
}

func TestAGuestThatDoesNotStartWithoutTheStorageGoesToANodeThatHasIt(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n1", pveconf.HAStarted)
	s.withoutNAS("n1")
	s.run(15 * second)
	s.is("vm:100 n1 starting")
	s.loses("nas", "n1")
	s.run(7 * second) // whatever its worker waits for
	s.is("vm:100 n2 started runs")
}

// Its probe passes, and the images are not there: the directory is, and what belongs on it is not mounted.
func TestAGuestDoesNotWaitForEverOnANodeThatMissesAStorageWithoutKnowing(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n1", pveconf.HAStarted)
	s.withoutNAS("n1")
	s.run(40 * second)
	s.is("vm:100 n1 starting")
	if st := s.status(100); st.Failures != 0 {
		t.Errorf("%+v", st)
	}
	s.run(time.Minute)
	s.is("vm:100 n2 started runs")
}

func TestAnyFailureOfAStartOnANodeThatLostTheStorageIsTheNodes(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n1", pveconf.HAStarted)
	s.loses("nas", "n1", "n2", "n3")
	s.fail = failStarts(100, -1)
	s.run(5 * time.Minute)
	s.is("vm:100 n1 starting")
	if st := s.status(100); st.Failures != 0 || st.Tried != nil {
		t.Errorf("%+v", st)
	}
}

func TestAGuestThatWasGivenUpIsInErrorForWhatItFailedAtAndNotForAStorage(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n1", pveconf.HAStarted)
	s.actor("n2").member.Storages, s.actor("n3").member.Storages = nil, nil
	s.fail = failStarts(100, -1)
	s.run(30 * second)
	s.is("vm:100 n1 error")
	s.reason(100, "it did not start on n1, the last time because: start failed: no image") // tried twice, named once
}
