package ha_test

import (
	"maps"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/place"
	"sauh.dev/sauh/internal/core/pveconf"
	"sauh.dev/sauh/internal/core/rules"
)

// ruled compiles the text of ha/rules.cfg for the stage's nodes.
func (s *stage) ruled(text string) {
	s.t.Helper()
	parsed, err := pveconf.ParseHARules([]byte(text))
	if err != nil {
		s.t.Fatal(err)
	}
	var nodes []rules.Node
	for _, a := range s.nodes {
		nodes = append(nodes, rules.Node{Name: a.name})
	}
	s.rules = rules.Compile(parsed, nodes)
}

const onlyN2N3 = "node-affinity: rule\n\tresources vm:100\n\tnodes n2:2,n3:1\n\tstrict 1\n"

func TestAStoppedGuestStartsWhereARuleWantsIt(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n1", pveconf.HAStarted)
	s.ruled(onlyN2N3)
	s.run(second)
	s.is("vm:100 n2 started runs")
	s.happened("vm:100 n1→n2", "start vm:100 on n2")
}

func TestARuleThatChangesMovesTheGuestLive(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n1", pveconf.HAStarted)
	s.run(second)
	s.ruled(onlyN2N3)
	s.run(second)
	s.happened("start vm:100 on n1", "vm:100 n1→n2")
}

func TestFailback(t *testing.T) {
	for _, no := range []bool{false, true} {
		s := newStage(t, "n1", "n2", "n3")
		s.guest(100, "n2", pveconf.HAStarted)
		s.config[100] = ha.Resource{MaxRestart: 1, MaxRelocate: 1, NoFailback: no}
		s.ruled(onlyN2N3)
		s.run(second)
		s.die("n2")
		s.run(15 * second)
		s.is("vm:100 n3 started runs")
		s.boot("n2")
		s.run(second)
		if no {
			s.is("vm:100 n3 started runs")
		} else {
			s.is("vm:100 n2 started runs")
		}
	}
}

func TestAGuestWithoutAPlaceWaitsInRecoveryForItsNode(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n3", pveconf.HAStarted)
	s.ruled("node-affinity: rule\n\tresources vm:100\n\tnodes n3\n\tstrict 1\n")
	s.run(second)
	s.die("n3")
	s.run(30 * second)
	s.is("vm:100 n3 recovery")
	s.boot("n3")
	s.run(second)
	s.is("vm:100 n3 started runs")
}

func TestACommandTakesThoseAlongThatMustBeTogetherAndRespectsThoseApart(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	for _, id := range []model.VMID{100, 101} {
		s.guest(id, "n1", pveconf.HAStarted)
	}
	s.guest(102, "n2", pveconf.HAStarted)
	s.ruled("resource-affinity: together\n\tresources vm:100,vm:101\n\taffinity positive\n\nresource-affinity: apart\n\tresources vm:100,vm:102\n\taffinity negative\n")
	s.run(second)
	s.asks(101, ha.Command{Kind: ha.CommandMigrate, Target: "n3"})
	s.run(second)
	s.is("vm:100 n3 started runs", "vm:101 n3 started runs", "vm:102 n2 started runs")
	s.log = nil
	s.asks(102, ha.Command{Kind: ha.CommandMigrate, Target: "n3"})
	s.run(second)
	if len(s.log) != 1 || !strings.HasPrefix(s.log[0], "refused vm:102: ") || !strings.Contains(s.log[0], "vm:100") {
		t.Errorf("got %q", s.log)
	}
}

func TestAStartThatTheClusterCouldNotBearIsRefusedOrWarnedOf(t *testing.T) {
	for _, warn := range []bool{false, true} {
		s := newStage(t, "n1", "n2", "n3")
		s.policy.Tolerate, s.policy.WarnOnly = 1, warn
		for i, node := range []string{"n1", "n2", "n3"} {
			id := model.VMID(100 + i)
			s.guest(id, node, pveconf.HAStarted)
			g := s.guests[id]
			g.MemoryMiB = 9000
			s.guests[id] = g
			s.resources[id] = pveconf.HADisabled
		}
		s.run(second) // the cluster learns that they are stopped
		s.resources[100] = pveconf.HAStarted
		s.run(second)
		s.happened("start vm:100 on n1")
		s.resources[101], s.resources[102] = pveconf.HAStarted, pveconf.HAStarted
		s.run(20 * second)
		if warn {
			s.is("vm:100 n1 started runs", "vm:101 n2 started runs", "vm:102 n3 started runs")
			continue
		}
		held := s.status(102)
		if held.State != ha.StatusStopped || held.Hold == "" || held.Hold != held.Reason {
			t.Errorf("got %+v", held)
		}
		s.resources[100], s.resources[101] = pveconf.HADisabled, pveconf.HADisabled
		s.run(20 * second)
		s.is("vm:100 n1 stopped", "vm:101 n2 stopped", "vm:102 n3 started runs")
	}
}

// stopped puts guests of that size on the nodes in turn, and has the cluster learn that they are stopped.
func (s *stage) stopped(mib int64, ids ...model.VMID) {
	for i, id := range ids {
		s.guest(id, s.nodes[i%len(s.nodes)].name, pveconf.HADisabled)
		g := s.guests[id]
		g.MemoryMiB = mib
		s.guests[id] = g
	}
	s.run(second)
}

func TestAStartThatIsRefusedKeepsNobodyElseWaiting(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.policy.Tolerate = 1
	s.stopped(64<<10, 100)
	s.stopped(512, 101, 102)
	s.resources[100] = pveconf.HAStarted
	s.run(second)
	s.resources[101], s.resources[102] = pveconf.HAStarted, pveconf.HAStarted
	s.run(second)
	s.is("vm:100 n1 stopped", "vm:101 n1 started runs", "vm:102 n2 started runs")
}

func TestOfManyStartsAtOnceAsManyAreAdmittedAsTheClusterCanBear(t *testing.T) {
	for _, rebalance := range []bool{false, true} {
		s := newStage(t, "n1", "n2", "n3")
		s.policy.Tolerate, s.policy.RebalanceOnStart = 1, rebalance
		ids := []model.VMID{100, 101, 102, 103, 104, 105, 106, 107, 108, 109}
		s.stopped(4096, ids...) // a node has room for three, so two nodes for six
		for _, id := range ids {
			s.resources[id] = pveconf.HAStarted
		}
		s.run(30 * second)
		runs := 0
		for _, id := range ids {
			switch st := s.status(id); {
			case st.State == ha.StatusStarted:
				runs++
			case st.Hold == "":
				t.Errorf("rebalancing %v: %s waits without a reason: %+v", rebalance, s.sid(id), st)
			}
		}
		if runs != 6 {
			t.Errorf("rebalancing %v: %d guests run, want 6: %v", rebalance, runs, s.words())
		}
	}
}

// A failover must not wait for hundreds of starts to be admitted: the others wait for the next look, and are told so.
func TestOneLookAdmitsOnlySomeOfManyStarts(t *testing.T) {
	v := big(0)
	v.Policy.Tolerate = 1
	for id := model.VMID(100); id < 130; id++ {
		v.Statuses[id] = ha.StatusRecord{Status: ha.Status{State: ha.StatusStopped, Node: v.Statuses[id].Node}, Revision: 9}
	}
	for round := range 2 { // a new manager, which knows no more than the records say
		_, actions := ha.New("n255", ha.DefaultParams()).Step(0, v)
		v.Statuses = maps.Clone(v.Statuses)
		admitted, queued := 0, 0
		for _, a := range actions {
			switch st, ok := a.(ha.SetStatus); {
			case !ok:
			case st.Status.Hold != "":
				queued++
				v.Statuses[st.VMID] = ha.StatusRecord{Status: st.Status, Revision: 10}
			default:
				admitted++
				v.Statuses[st.VMID] = ha.StatusRecord{Status: st.Status, Revision: 10}
			}
		}
		if wake, ok := actions[len(actions)-1].(ha.Wake); !ok || wake.At > ha.DefaultParams().Poll || admitted == 0 || admitted > 2 || round == 0 && queued != 30-admitted {
			t.Errorf("round %d: %d admitted, %d queued, then %+v", round, admitted, queued, actions[len(actions)-1])
		}
	}
}

func TestRebalanceOnStart(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.policy.RebalanceOnStart = true
	for i := range 3 {
		s.guest(model.VMID(100+i), "n1", pveconf.HAStarted)
	}
	s.run(second)
	on := map[string]int{}
	for i := range 3 {
		node, _ := s.store.owner(model.VMID(100 + i))
		on[node]++
	}
	if len(on) != 3 {
		t.Errorf("got %v, want one on each", on)
	}
}

func TestAutomaticRebalancingComesToRest(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.policy.Rebalance, s.policy.Placing, s.policy.Balance = true, place.Static, place.DefaultBalanceParams()
	for i := range 6 {
		s.guest(model.VMID(100+i), "n1", pveconf.HAStarted)
	}
	s.run(second)
	s.log = nil
	s.run(20 * 60 * second)
	moves := len(s.log)
	on := map[string]int{}
	for i := range 6 {
		node, _ := s.store.owner(model.VMID(100 + i))
		on[node]++
	}
	if on["n1"] > 3 || moves > 4 {
		t.Errorf("got %v after %d moves: %q", on, moves, s.log)
	}
}

func TestMeasuredLoadIsLookedAtEvenIfNothingIsTold(t *testing.T) {
	s := newStage(t, "n1")
	s.policy.Rebalance, s.policy.Balance = true, place.DefaultBalanceParams()
	s.run(second)
	for mode, want := range map[place.Mode][]ha.Action{place.Static: nil, place.Dynamic: {ha.Wake{At: s.now + 10*second}}} {
		v := s.view(s.nodes[0])
		v.Policy.Placing = mode
		s.nodes[0].manager, _ = s.nodes[0].manager.Step(s.now, v)
		_, got := s.nodes[0].manager.Step(s.now, v)
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s: %s", mode, diff)
		}
	}
}

func TestAGuestThatRunsAndIsNotMeasuredYetCountsAsWhatItMayUse(t *testing.T) {
	s := newStage(t, "n1", "n2")
	s.guest(100, "n1", pveconf.HAStarted)
	s.guest(101, "n1", pveconf.HAStopped)
	s.run(second)
	v := s.view(s.nodes[0])
	starting := func() (out []bool) {
		for _, g := range ha.Look("n1", ha.DefaultParams(), v).Cluster().Guests {
			out = append(out, g.Starting)
		}
		return out
	}
	if diff := cmp.Diff([]bool{false, false}, starting()); diff != "" {
		t.Error(diff)
	}
	for i := range v.Guests {
		v.Guests[i].Unmeasured = true
	}
	if diff := cmp.Diff([]bool{true, false}, starting()); diff != "" {
		t.Errorf("not measured yet: %s", diff)
	}
}

func TestAGuestThatWasStoppedWaitsForTheManagersWordAndNotForEver(t *testing.T) {
	d := talkToWorker(t)
	d.guest(100, pveconf.HAStarted)
	d.v.AwaitManager = true
	d.view("wake 5s")
	d.now = 5 * second
	d.says(ha.Tick{}, "start vm:100 attempt 1")
}

func TestAGuestThatRanDoesNotWaitForTheManagersWord(t *testing.T) {
	d := talkToWorker(t)
	d.guest(100, pveconf.HAStarted)
	d.v.AwaitManager = true
	d.v.Statuses[100] = ha.StatusRecord{Status: ha.Status{State: ha.StatusStarted, Node: "n1"}, Revision: 9}
	d.view("start vm:100 attempt 1")
}

func TestGuestsThatARuleTiesTogetherAreNotChasedAround(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	for _, id := range []model.VMID{101, 103, 201, 203} {
		s.guest(id, "n1", pveconf.HAStarted)
	}
	for _, id := range []model.VMID{102, 202} {
		s.guest(id, "n2", pveconf.HAStarted)
	}
	s.ruled("resource-affinity: together-100\n\tresources vm:101,vm:102,vm:103\n\taffinity positive\n\n" +
		"resource-affinity: together-200\n\tresources vm:201,vm:202,vm:203\n\taffinity positive\n\n" +
		"resource-affinity: apart\n\tresources vm:101,vm:201\n\taffinity negative\n")
	s.run(30 * second)
	s.is("vm:101 n3 started runs", "vm:102 n3 started runs", "vm:103 n3 started runs", "vm:201 n2 started runs", "vm:202 n2 started runs", "vm:203 n2 started runs")
	moves := 0
	for _, l := range s.log {
		if strings.Contains(l, "→") {
			moves++
		}
	}
	if moves != 5 {
		t.Errorf("%d moves, want 5: %q", moves, s.log)
	}
}

func TestAManagerThatHasJustBegunWaitsForThoseThatBoot(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n1", pveconf.HAStarted)
	s.ruled("node-affinity: rule\n\tresources vm:100\n\tnodes n3:2,n1:1\n")
	s.actor("n3").up = false
	s.actor("n3").renewed = -100 * second
	s.run(second)
	s.happened()
	s.boot("n3")
	s.run(second)
	s.happened("vm:100 n1→n3", "start vm:100 on n3")
}

func TestAManagerDoesNotWaitForEver(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n1", pveconf.HAStarted)
	s.ruled("node-affinity: rule\n\tresources vm:100\n\tnodes n3:2,n1:1\n")
	s.actor("n3").up = false
	s.actor("n3").renewed = -100 * second
	s.run(4 * second)
	s.happened("start vm:100 on n1")
}

func TestANodeThatEndsWithoutAQuorumIsWokenWhenItMayGo(t *testing.T) {
	w := ha.NewWorker("n1", ha.DefaultParams())
	v := ha.LocalView{Quorate: true, LeaseValid: true, NodeMode: ha.NodeMode{Ends: ha.EndsShutdown, BootID: "b"}}
	w, _ = w.Step(0, v)
	v.Quorate = false
	for now, want := range map[time.Duration]string{second: "wake 2s", 11 * second: "wake 11.52s", 12 * second: "wake 13s"} {
		talk := ha.NewWorker("n1", ha.DefaultParams())
		talk, _ = talk.Step(second, v)
		if _, actions := talk.Step(now, v); len(actions) != 1 || line(actions[0]) != want {
			t.Errorf("at %s: got %v, want %s", now, actions, want)
		}
	}
	w, _ = w.Step(second, v)
	if ok, why := w.MayLeave(5 * second); ok || why != "there is no quorum" {
		t.Errorf("got %v %q", ok, why)
	}
	if ok, _ := w.MayLeave(11520 * second / 1000); !ok {
		t.Error("it may not go after a lease without a quorum")
	}
}
