package ha_test

import (
	"strings"
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

const second = time.Second

func failStarts(id model.VMID, times int) func(string, ha.Action) string {
	return func(_ string, a ha.Action) string {
		if s, ok := a.(ha.Start); ok && s.VMID == id && times != 0 {
			times--
			return "no image"
		}
		return ""
	}
}

func TestAStartIsRepeatedHereThenElsewhereThenTheGuestIsInError(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n1", pveconf.HAStarted)
	s.fail = failStarts(100, -1)
	s.run(30 * second)
	s.is("vm:100 n2 error")
	s.happened(
		"start vm:100 attempt 1 on n1 failed", "start vm:100 attempt 2 on n1 failed", "vm:100 n1→n2",
		"start vm:100 attempt 1 on n2 failed", "start vm:100 attempt 2 on n2 failed",
	)
	if want := "it did not start on n1, n2, the last time because: start failed: no image"; s.status(100).Reason != want {
		t.Errorf("got %q, want %q", s.status(100).Reason, want)
	}
	// It stays in error until a person disables it.
	s.fail = failStarts(100, 0)
	s.run(5 * time.Minute)
	s.is("vm:100 n2 error")
	s.resources[100] = pveconf.HADisabled
	s.run(second)
	s.is("vm:100 n2 stopped")
	if st := s.status(100); st.Failures != 0 || st.Tried != nil {
		t.Errorf("the counters are still there: %+v", st)
	}
	s.resources[100] = pveconf.HAStarted
	s.run(second)
	s.is("vm:100 n2 started runs")
}

func TestAGuestThatFailedEverywhereIsTriedOnceMoreHereWhileItMayRelocate(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n2", pveconf.HAStarted)
	s.config[100] = ha.Resource{MaxRestart: 0, MaxRelocate: 3}
	s.fail = failStarts(100, 3)
	s.run(30 * second)
	s.is("vm:100 n3 started runs")
	s.happened("start vm:100 attempt 1 on n2 failed", "vm:100 n2→n1", "start vm:100 attempt 1 on n1 failed", "vm:100 n1→n3",
		"start vm:100 attempt 1 on n3 failed", "start vm:100 on n3")
}

func TestTheCountersOutliveAgentAndManager(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n2", pveconf.HAStarted)
	s.config[100] = ha.Resource{MaxRestart: 3, MaxRelocate: 0}
	s.fail = failStarts(100, -1)
	s.run(second)
	for _, a := range s.nodes {
		a.manager, a.worker = ha.New(a.name, ha.DefaultParams()), ha.NewWorker(a.name, ha.DefaultParams())
	}
	s.run(30 * second)
	s.is("vm:100 n2 error")
	if n := len(s.log); n != 4 {
		t.Errorf("%d starts, want 4: %v", n, s.log)
	}
}

func TestAPersonsMigrationIsCarriedOutOnce(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n1", pveconf.HAStarted)
	s.run(second)
	s.asks(100, ha.Command{Kind: ha.CommandMigrate, Target: "n3"})
	s.run(second)
	s.is("vm:100 n3 started runs")
	s.happened("start vm:100 on n1", "vm:100 n1→n3")
	s.asks(100, ha.Command{Kind: ha.CommandRelocate, Target: "n2"})
	s.run(second)
	s.is("vm:100 n2 started runs")
	s.happened("stop vm:100 on n3", "vm:100 n3→n2", "start vm:100 on n2")
}

func TestAContainerIsRelocatedAndItsNameIsItsOwn(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n1", pveconf.HAStarted)
	g := s.guests[100]
	g.Kind = "ct"
	s.guests[100] = g
	s.run(second)
	s.asks(100, ha.Command{Kind: ha.CommandMigrate, Target: "n3"})
	s.run(second)
	s.is("ct:100 n3 started runs")
	s.happened("start ct:100 on n1", "stop ct:100 on n1", "ct:100 n1→n3", "start ct:100 on n3")
}

func TestACommandThatCannotBeCarriedOutIsRefusedWithTheReason(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n1", pveconf.HAStarted)
	s.run(second)
	s.log = nil
	for _, tt := range []struct{ target, want string }{
		{"n1", "it is on n1 already"},
		{"n9", "n9 is no member of the cluster"},
	} {
		s.asks(100, ha.Command{Kind: ha.CommandMigrate, Target: tt.target})
		s.run(second)
		s.happened("refused vm:100: " + tt.want)
	}
	s.die("n3")
	s.run(4 * second)
	s.asks(100, ha.Command{Kind: ha.CommandMigrate, Target: "n3"})
	s.run(second)
	s.happened("refused vm:100: n3 is not online")
}

func TestAStoppedGuestIsHandedOver(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n3", pveconf.HADisabled)
	s.run(second)
	s.asks(100, ha.Command{Kind: ha.CommandRelocate, Target: "n2"})
	s.run(second)
	s.is("vm:100 n2 stopped")
}

func TestAMoveThatFailsLeavesTheGuestRunningAndIsTriedLater(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n1", pveconf.HAStarted)
	s.run(second)
	s.log = nil
	failures := 3
	s.fail = func(_ string, a ha.Action) string {
		if _, ok := a.(ha.Migrate); ok && failures > 0 {
			failures--
			return "no route"
		}
		return ""
	}
	s.store.set(model.HARequestPrefix+"n1", ha.NodeRequest{Maintenance: true})
	s.run(second)
	s.is("vm:100 n1 started runs")
	if st := s.status(100); st.MoveFailures != 1 || st.Reason != "migration failed: no route" {
		t.Errorf("got %+v", st)
	}
	s.run(2 * second) // 2 s later again, then after 4 s, then 8 s
	if failures != 1 {
		t.Errorf("%d failures left, want 1", failures)
	}
	s.run(15 * second)
	s.is("vm:100 n2 started runs")
}

func TestMaintenanceSendsGuestsAwayAndTheyReturn(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n3", pveconf.HAStarted)
	s.guest(101, "n3", pveconf.HAStopped)
	s.run(second)
	s.store.set(model.HARequestPrefix+"n3", ha.NodeRequest{Maintenance: true})
	s.run(second)
	s.is("vm:100 n1 started runs", "vm:101 n3 stopped")
	s.ends("n3", ha.EndsReboot)
	s.run(5 * second)
	s.boot("n3")
	s.run(5 * second)
	s.is("vm:100 n1 started runs", "vm:101 n3 stopped") // it is still in maintenance
	s.store.set(model.HARequestPrefix+"n3", ha.NodeRequest{})
	s.run(second)
	s.is("vm:100 n3 started runs", "vm:101 n3 stopped")
	s.happened("start vm:100 on n3", "vm:100 n3→n1", "n3 left", "vm:100 n1→n3")
}

func TestShutdownPolicies(t *testing.T) {
	tests := []struct {
		policy ha.ShutdownPolicy
		how    ha.NodeEnd
		gone   string // a minute after
		back   string // after it came back within 30 s instead
	}{
		{ha.ShutdownConditional, ha.EndsReboot, "vm:100 n3 freeze", "vm:100 n3 started runs"},
		{ha.ShutdownConditional, ha.EndsShutdown, "vm:100 n1 started runs", "vm:100 n1 started runs"},
		{ha.ShutdownFreeze, ha.EndsReboot, "vm:100 n3 freeze", "vm:100 n3 started runs"},
		{ha.ShutdownFreeze, ha.EndsShutdown, "vm:100 n3 freeze", "vm:100 n3 started runs"},
		{ha.ShutdownFailover, ha.EndsReboot, "vm:100 n1 started runs", "vm:100 n3 started runs"},
		{ha.ShutdownFailover, ha.EndsShutdown, "vm:100 n1 started runs", "vm:100 n1 started runs"},
		{ha.ShutdownMigrate, ha.EndsReboot, "vm:100 n1 started runs", "vm:100 n3 started runs"},
		{ha.ShutdownMigrate, ha.EndsShutdown, "vm:100 n1 started runs", "vm:100 n3 started runs"},
	}
	for _, tt := range tests {
		t.Run(string(tt.policy)+" "+string(tt.how), func(t *testing.T) {
			for _, back := range []bool{false, true} {
				s := newStage(t, "n1", "n2", "n3")
				s.policy.Shutdown = tt.policy
				s.guest(100, "n3", pveconf.HAStarted)
				s.run(second)
				s.ends("n3", tt.how)
				s.run(30 * second)
				if !back {
					s.run(35 * second)
					s.is(tt.gone)
					continue
				}
				s.boot("n3")
				s.run(5 * second)
				s.is(tt.back)
			}
		})
	}
}

func TestGuestsOfANodeThatShutsDownAreTakenWithoutAWait(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n3", pveconf.HAStarted)
	s.run(second)
	s.ends("n3", ha.EndsShutdown)
	s.run(second)
	s.is("vm:100 n1 started runs")
	s.happened("start vm:100 on n3", "stop vm:100 on n3", "n3 left", "cut n3", "vm:100 n3→n1", "start vm:100 on n1")
}

func TestANodeThatCrashesWhileItEndsIsFenced(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.policy.Shutdown = ha.ShutdownFreeze
	s.guest(100, "n3", pveconf.HAStarted)
	s.run(second)
	s.ends("n3", ha.EndsShutdown)
	s.die("n3")
	s.run(15 * second)
	s.is("vm:100 n1 started runs")
}

func TestAnAgentThatRestartsChangesNothing(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n3", pveconf.HAStarted)
	s.run(second)
	live := at[model.Live](s, model.LivePrefix+"n3")
	s.store.set(model.HANodePrefix+"n3", ha.NodeMode{Ends: ha.EndsRestart, BootID: live.BootID})
	s.run(5 * second)
	s.is("vm:100 n3 freeze runs")
	s.actor("n3").worker = ha.NewWorker("n3", ha.DefaultParams())
	s.store.txn([]ha.Compare{{Key: model.HANodePrefix + "n3", Revision: s.store.kv[model.HANodePrefix+"n3"].revision}}, write{model.HANodePrefix + "n3", nil})
	s.run(second)
	s.is("vm:100 n3 started runs")
	s.happened("start vm:100 on n3")
}

func TestDisarmedMeansHandsOff(t *testing.T) {
	for _, how := range []ha.Disarm{ha.DisarmFreeze, ha.DisarmIgnore} {
		s := newStage(t, "n1", "n2", "n3")
		s.guest(100, "n1", pveconf.HAStarted)
		s.guest(101, "n3", pveconf.HAStarted)
		s.run(second)
		s.log = nil
		s.store.set(model.HAModeKey, ha.Mode{Disarm: how, Until: s.unix() + 100})
		s.asks(100, ha.Command{Kind: ha.CommandRelocate, Target: "n2"})
		s.run(second)
		state := " freeze runs"
		if how == ha.DisarmIgnore {
			state = " ignored runs"
		}
		s.is("vm:100 n1"+state, "vm:101 n3"+state)
		s.happened("refused vm:100: HA is disarmed")
		if p, ok := s.store.kv[model.ProtectedPrefix+"100"]; ok {
			t.Errorf("the guest is still under guard: %+v", p)
		}
		s.die("n3")
		s.run(30 * second)
		s.happened() // nobody is fenced
		s.boot("n3")
		s.resources[100] = pveconf.HAStopped
		s.run(second)
		s.happened()
		s.run(100 * second) // it ends by itself
		s.is("vm:100 n1 stopped", "vm:101 n3 started runs")
	}
}

func TestAFileMovedByHandIsFollowedAndNeverRunsTwice(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n3", pveconf.HAStarted)
	s.run(second)
	s.store.set(model.GuestConfigKey("n3", 100), nil)
	s.store.set(model.GuestConfigKey("n1", 100), "conf")
	s.run(2 * second)
	s.is("vm:100 n1 started runs")
}

func TestALockedGuestIsTakenOverAndNotMovedByChoice(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n3", pveconf.HAStarted)
	g := s.guests[100]
	g.Lock = "backup"
	s.guests[100] = g
	s.run(second)
	s.asks(100, ha.Command{Kind: ha.CommandMigrate, Target: "n1"})
	s.run(second)
	s.happened("start vm:100 on n3", "refused vm:100: its configuration is locked (backup)")
	s.store.set(model.HARequestPrefix+"n3", ha.NodeRequest{Maintenance: true})
	s.run(5 * second)
	s.is("vm:100 n3 started runs")
	s.die("n3")
	s.run(15 * second)
	s.is("vm:100 n1 started runs")
}

func TestAGuestInErrorIsNotTakenOver(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n3", pveconf.HAStarted)
	s.config[100] = ha.Resource{}
	s.fail = failStarts(100, -1)
	s.run(10 * second)
	s.is("vm:100 n3 error")
	s.die("n3")
	s.run(30 * second)
	s.is("vm:100 n3 error")
	s.resources[100] = pveconf.HADisabled
	s.run(second)
	s.is("vm:100 n3 stopped")
	s.resources[100] = pveconf.HAStarted
	s.fail = failStarts(100, 0)
	s.run(second)
	s.is("vm:100 n1 started runs")
}

func TestAStopWithATimeLimit(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n1", pveconf.HAStarted)
	s.guest(101, "n2", pveconf.HAStarted)
	s.run(second)
	var stops []ha.Stop
	s.fail = func(_ string, a ha.Action) string {
		if st, ok := a.(ha.Stop); ok {
			stops = append(stops, st)
			if st.VMID == 101 {
				return "it hangs"
			}
		}
		return ""
	}
	for _, id := range []model.VMID{100, 101} {
		s.resources[id] = pveconf.HAStopped
		s.asks(id, ha.Command{Kind: ha.CommandStop, TimeoutSeconds: int(id-100) * 37})
	}
	s.run(30 * second)
	s.is("vm:100 n1 stopped", "vm:101 n2 error runs")
	if !stops[0].Hard || stops[1].Hard || stops[1].Timeout != 37*second {
		t.Errorf("got %+v", stops[:2])
	}
	for _, id := range []model.VMID{100, 101} {
		if _, ok := s.store.kv[model.HACommandPrefix+s.sid(id)]; ok {
			t.Errorf("the command for %s is still there", id)
		}
	}
}

func TestGuestsStartInTheirOrderAndAfterWhatTheyNeed(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n1", pveconf.HAStarted)
	s.guest(101, "n2", pveconf.HAStarted)
	s.guest(102, "n1", pveconf.HAStarted)
	s.config[100] = ha.Resource{After: []ha.Dependency{{VMID: 101, Answers: true}}}
	s.config[101] = ha.Resource{After: []ha.Dependency{{VMID: 102, Delay: 5 * second}}}
	s.run(4 * second)
	s.happened("start vm:102 on n1")
	s.is("vm:100 n1 starting", "vm:101 n2 starting", "vm:102 n1 started runs")
	if want := "it waits for vm:102 to have run for 5s"; s.status(101).Reason != want {
		t.Errorf("got %q, want %q", s.status(101).Reason, want)
	}
	s.run(3 * second)
	s.happened("start vm:101 on n2")
	if want := "it waits for the agent of vm:101"; s.status(100).Reason != want {
		t.Errorf("got %q, want %q", s.status(100).Reason, want)
	}
	s.actor("n2").answers[101] = true
	s.run(second)
	s.happened("start vm:100 on n1")
}

func TestRecoveryGoesInTheOrderOfTheGuests(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	for i, order := range []int{0, 2, 1} {
		id := model.VMID(100 + i)
		s.guest(id, "n3", pveconf.HAStarted)
		s.config[id] = ha.Resource{Order: order}
	}
	s.run(second)
	s.log = nil
	s.die("n3")
	s.run(15 * second)
	if got := strings.Join(s.log[:4], "; "); got != "cut n3; vm:102 n3→n1; vm:101 n3→n2; vm:100 n3→n1" {
		t.Errorf("got %s", got)
	}
}

func TestAGuestWhoseKernelPanickedIsReset(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n1", pveconf.HAStarted)
	s.guest(101, "n1", pveconf.HAStarted)
	s.config[100] = ha.Resource{ResetOn: []ha.Sickness{ha.SickPanicked}}
	s.run(second)
	s.log = nil
	s.actor("n1").sick = map[model.VMID]ha.Sickness{100: ha.SickPanicked, 101: ha.SickPanicked}
	s.run(second)
	s.happened("reset vm:100")
}

func TestGuestsMigrateFromANodeWhoseNetworkIsDownAndStayThere(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n3", pveconf.HAStarted)
	s.run(second)
	s.log = nil
	s.store.set(model.HAHealthPrefix+"n3", ha.NodeHealth{NetworkDown: "vmbr0"})
	s.run(second)
	s.happened("vm:100 n3→n1")
	s.store.set(model.HAHealthPrefix+"n3", ha.NodeHealth{})
	s.run(second)
	s.is("vm:100 n1 started runs")
}

func TestANodeThatFlapsIsNoTarget(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3", "n4")
	s.guest(100, "n4", pveconf.HAStarted)
	s.guest(101, "n2", pveconf.HAStarted)
	s.guest(102, "n3", pveconf.HAStarted)
	s.run(second)
	for range 3 {
		s.actor("n1").up = false
		s.run(5 * second)
		s.actor("n1").up = true
		s.store.set(model.LivePrefix+"n1", at[model.Live](s, model.LivePrefix+"n1"))
		s.run(second)
	}
	s.log = nil
	s.die("n4")
	s.run(12 * second)
	s.is("vm:100 n2 started runs", "vm:101 n2 started runs", "vm:102 n3 started runs")
	s.run(10 * time.Minute)
	s.boot("n4")
	s.run(second)
	s.die("n2")
	s.run(12 * second)
	s.is("vm:100 n1 started runs", "vm:101 n4 started runs", "vm:102 n3 started runs")
}

func TestServicesComeAndGoAtAnyMoment(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n3", pveconf.HAStarted)
	s.run(second)
	s.resources[100] = pveconf.HAIgnored
	s.run(second)
	s.is("vm:100 n3 started runs")
	s.die("n3")
	s.run(30 * second)
	s.happened("start vm:100 on n3") // nobody fences n3 for it
	s.boot("n3")
	s.run(5 * second)
	s.happened()
	s.resources[100] = pveconf.HAStarted
	s.run(second)
	s.happened("start vm:100 on n3")
	delete(s.resources, 100)
	s.asks(100, ha.Command{Kind: ha.CommandMigrate, Target: "n1"})
	s.run(second)
	s.happened("refused vm:100: it is no HA resource")
}

func TestTheRecordKeepsTheLastDecisionsWithTheirReasons(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n1", pveconf.HAStarted)
	for i := range 6 {
		s.asks(100, ha.Command{Kind: ha.CommandMigrate, Target: []string{"n2", "n1"}[i%2]})
		s.run(second)
	}
	log := s.status(100).Log
	if len(log) != ha.MaxLog {
		t.Fatalf("%d decisions, want %d", len(log), ha.MaxLog)
	}
	d := log[len(log)-2]
	if d.State != ha.StatusMigrate || d.Target != "n1" || d.Reason != "a person asked for it" || d.By != "n1" || d.Unix == 0 {
		t.Errorf("got %+v", d)
	}
}

func TestWhatIsTheNodesFaultIsNotCountedAgainstTheGuest(t *testing.T) {
	d := talkToWorker(t)
	d.guest(100, pveconf.HAStarted)
	d.v.Config = map[model.VMID]ha.Resource{100: {MaxRestart: 1}}
	d.statuses = true
	d.view("status vm:100 starting on n1", "start vm:100 attempt 1")
	d.done("status", 1001)
	d.v.Revision = 1001
	d.v.Statuses[100] = ha.StatusRecord{Status: ha.Status{State: ha.StatusStarting, Node: "n1"}, Revision: 1001}
	d.view()
	d.failed("start", ha.FailUnready, "the guard does not answer", "status vm:100 starting on n1", "wake 250ms")
	if st := d.given("status").(ha.SetStatus).Status; st.Failures != 0 || st.Reason != "start waits: the guard does not answer" {
		t.Errorf("got %+v", st)
	}
}

func TestANodeThatLeavesByMigrationWaitsForItsGuestsAndKeepsThemRunning(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.policy.Shutdown = ha.ShutdownMigrate
	s.guest(100, "n3", pveconf.HAStarted)
	s.guest(101, "n3", pveconf.HAStarted)
	g := s.guests[101]
	g.Local = "scsi0"
	s.guests[101] = g
	g = s.guests[100]
	g.NoLive = "it has a device of the host"
	s.guests[100] = g
	s.run(second)
	s.log = nil
	failures := 2
	s.fail = func(_ string, a ha.Action) string {
		if _, ok := a.(ha.Handover); ok && failures > 0 {
			failures--
			return "no route"
		}
		return ""
	}
	s.ends("n3", ha.EndsShutdown)
	s.run(second)
	s.is("vm:100 n3 started runs", "vm:101 n3 started") // what only n3 has is stopped
	s.run(20 * second)
	s.is("vm:100 n1 started runs", "vm:101 n3 recovery")
	if s.actor("n3").up {
		t.Errorf("n3 is still there: %q", s.log)
	}
}

func TestAFileMovedByHandFromADeadNodeIsStartedWhenTheNodeIsCut(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n3", pveconf.HAStarted)
	s.run(second)
	s.die("n3")
	s.run(second)
	s.store.set(model.GuestConfigKey("n3", 100), nil)
	s.store.set(model.GuestConfigKey("n1", 100), "conf")
	s.run(5 * second)
	s.is("vm:100 n1 starting")
	if want := "it waits until n3 gives it up"; s.status(100).Reason != want {
		t.Errorf("got %q, want %q", s.status(100).Reason, want)
	}
	s.run(10 * second)
	s.is("vm:100 n1 started runs")
}

func TestGuestsThatWaitForEachOtherStartInTheEnd(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.guest(100, "n1", pveconf.HAStarted)
	s.guest(101, "n2", pveconf.HAStarted)
	s.config[100] = ha.Resource{After: []ha.Dependency{{VMID: 101}}}
	s.config[101] = ha.Resource{After: []ha.Dependency{{VMID: 100}}}
	s.run(4 * time.Minute)
	s.happened()
	s.run(2 * time.Minute)
	s.is("vm:100 n1 started runs", "vm:101 n2 started runs")
}

func TestAWorkerThatDoesNotUnderstandMovesIsNotFloodedWithThem(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n3", pveconf.HAStarted)
	d.member("n3").Request.Maintenance = true
	started := ha.StatusRecord{Status: ha.Status{State: ha.StatusStarted, Node: "n3"}, Revision: 900}
	d.v.Statuses[100] = started
	d.view("status vm:100 migrate on n3", "wake 2.5s")
	d.done("status", 1001, "wake 2.5s")
	d.v.Revision, started.Revision = 1002, 1002 // written over, with no word about a failure
	d.v.Statuses[100] = started
	d.view("wake 2s")
	d.now = 2 * second
	d.view("status vm:100 migrate on n3", "wake 4.5s")
}
