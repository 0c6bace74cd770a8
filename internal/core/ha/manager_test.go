package ha_test

import (
	"testing"
	"time"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

func TestManagerCutsASilentNodeAndMovesItsGuests(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n3", pveconf.HAStarted)
	d.guest(101, "n3", pveconf.HAStopped)
	d.guest(102, "n1", pveconf.HAStarted)
	d.view("wake 2.5s")

	d.now = 3 * time.Second
	d.silent("n3", 3500*time.Millisecond)
	d.view("wake 3.1s")

	d.now = 11 * time.Second
	d.silent("n3", 11*time.Second)
	d.view("cut n3 epoch 5 by n1 [live 30]", "status vm:100 fence on n3", "status vm:101 fence on n3")
	d.reason("cut n3", "n3 is cut off: n3 was silent for a whole lease")

	d.now += 10 * time.Millisecond
	d.done("cut n3", 1001) // the moves wait for a view that shows the cut
	d.fenced("n3", 1001)
	d.view("move vm:100 n3→n2 [live 1001 conf 100 prot 200 node 2]", "move vm:101 n3→n1 [live 1001 conf 101 prot 201 node 1]")
	d.reason("move vm:100", "vm:100 moves from n3 to n2: n3 is fenced (epoch 5); n2 has 0 other guests and would have 12 % of its memory configured, the best of those possible")

	d.done("move vm:100", 1002)
	d.moved(100, "n2", 1002)
	d.view("wake 13.51s") // n2 is watched from now on
	d.done("move vm:101", 1003, "wake 13.51s")
	d.view("wake 13.51s") // an old one: the move is not tried again
	d.moved(101, "n1", 1003)
	d.view("wake 13.51s")
}

func TestManagerNeverCutsBeforeTheLeaseIsOver(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n3", pveconf.HAStarted)
	for _, silence := range []time.Duration{4, 8, 10} {
		d.now += time.Second
		d.silent("n3", silence*time.Second)
		d.view("wake " + (d.now + 100*time.Millisecond).String())
	}
	// A Tick long after the view changes nothing: only the observer of the lease says when.
	d.now += time.Hour
	d.says(ha.Tick{}, "wake "+(d.now+100*time.Millisecond).String())
}

func TestManagerMovesNothingWhenTheNodeRenewsBeforeTheCut(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n3", pveconf.HAStarted)
	d.silent("n3", 11*time.Second)
	d.view("cut n3 epoch 5 by n1 [live 30]", "status vm:100 fence on n3")
	d.failed("cut n3", ha.FailConflict, "changed by someone else", "wake 250ms")
	d.silent("n3", 0)
	d.member("n3").LiveRevision = 1001
	d.view("wake 3s")
}

func TestManagerDecidesNothingWithoutAQuorumOrALeaseAndLooksAgain(t *testing.T) {
	for _, lost := range []string{"quorum", "lease"} {
		t.Run(lost, func(t *testing.T) {
			d := talkToManager(t)
			d.guest(100, "n3", pveconf.HAStarted)
			d.silent("n3", time.Minute)
			d.v.Quorate, d.v.LeaseValid = lost != "quorum", lost != "lease"
			d.view("wake 1s")
			d.now = second
			d.says(ha.Tick{}, "wake 2s")
			d.v.Quorate, d.v.LeaseValid = true, true
			d.view("cut n3 epoch 5 by n1 [live 30]", "status vm:100 fence on n3")
		})
	}
}

// After a reboot ha/manager may still name the node, and its own records are of the boot before: what it said then of its end must not be
// taken for what it does now.
func TestManagerBelievesNothingOfItselfBeforeItHasRegisteredInThisBoot(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n1", pveconf.HAStarted)
	d.v.Policy.Shutdown = ha.ShutdownMigrate
	d.v.Statuses[100] = ha.StatusRecord{Status: ha.Status{State: ha.StatusStarted, Node: "n1"}, Revision: 300}
	self := d.member("n1")
	self.Mode = ha.NodeMode{Ends: ha.EndsShutdown, BootID: self.Live.BootID}
	d.v.LeaseValid = false
	d.view("wake 1s")
	d.v.LeaseValid, self.Live.BootID = true, "boot-n1-again"
	d.view()
}

func TestManagerNeverCutsItsOwnNode(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n1", pveconf.HAStarted)
	d.silent("n1", time.Minute)
	d.view()
}

func TestManagerThatIsFencedItselfDecidesNothing(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n3", pveconf.HAStarted)
	d.silent("n3", time.Minute)
	d.fenced("n1", 1001)
	d.view("wake 1s")
}

func TestManagerLooksAgainWhenWhatWasDisarmedForATimeIsArmed(t *testing.T) {
	tests := map[string]struct {
		mode    ha.Mode
		request ha.NodeRequest
		want    []string
	}{
		"the cluster":         {ha.Mode{Disarm: ha.DisarmFreeze, Until: 1010}, ha.NodeRequest{}, []string{"wake 10s"}},
		"a node":              {ha.Mode{}, ha.NodeRequest{Disarm: ha.DisarmIgnore, Until: 1007}, []string{"wake 7s"}},
		"both: the first":     {ha.Mode{Disarm: ha.DisarmFreeze, Until: 1010}, ha.NodeRequest{Disarm: ha.DisarmIgnore, Until: 1007}, []string{"wake 7s"}},
		"clocks are set":      {ha.Mode{Disarm: ha.DisarmFreeze, Until: 1 << 62}, ha.NodeRequest{}, []string{"wake 1m0s"}},
		"for good":            {ha.Mode{Disarm: ha.DisarmFreeze}, ha.NodeRequest{Disarm: ha.DisarmIgnore}, nil},
		"it is armed already": {ha.Mode{Disarm: ha.DisarmFreeze, Until: 1000}, ha.NodeRequest{}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			d := talkToManager(t)
			d.v.Unix, d.v.Mode = 1000, tt.mode
			d.member("n3").Request = tt.request
			d.view(tt.want...)
			w := talkToWorker(t)
			w.v.Unix, w.v.Mode, w.v.Request = 1000, tt.mode, tt.request
			w.view(tt.want...)
		})
	}
}

func TestManagerLeavesANodeWithoutHAGuestsAlone(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n3", pveconf.HADisabled)
	d.guest(101, "n3", pveconf.HAIgnored)
	d.v.Guests = append(d.v.Guests, ha.Guest{VMID: 102, Node: "n3", Revision: 102, MemoryMiB: 512})
	d.silent("n3", time.Minute)
	d.view()
	d.fenced("n3", 1001)
	d.view()
}

func TestManagerReportsAGuestThatIsNotUnderGuard(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n3", pveconf.HAStarted)
	d.guest(101, "n3", pveconf.HAStarted)
	d.guest(102, "n3", pveconf.HAStarted)
	delete(d.v.Protected, 101)
	d.v.Protected[102] = ha.Protected{Protected: model.Protected{Node: "n2"}, Revision: 202}
	d.silent("n3", time.Minute)
	d.fenced("n3", 1001)
	d.view("move vm:100 n3→n1 [live 1001 conf 100 prot 200 node 1]", "status vm:101 recovery on n3", "status vm:102 recovery on n3")
	d.reason("status vm:101", "vm:101 is recovery: vm:101 cannot be taken over: not under guard on n3")
}

func TestManagerDoesNotCutForGuestsThatItCouldNotPlace(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n3", pveconf.HAStarted)
	d.v.Guests[0].MemoryMiB = 20000
	d.silent("n3", time.Minute)
	d.view("status vm:100 recovery on n3")
	d.reason("status vm:100", "vm:100 is recovery: no node can take it: "+
		"n1 has 15360 MiB free of 16384 MiB (0 MiB configured, 1024 MiB reserved), the guest needs 20000 MiB; "+
		"n2 has 15360 MiB free of 16384 MiB (0 MiB configured, 1024 MiB reserved), the guest needs 20000 MiB; n3 is silent")
}

func TestManagerTriesAgainWhenAPlaceIsFound(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n3", pveconf.HAStarted)
	d.fenced("n3", 1001)
	d.v.Members[0].Storages, d.v.Members[1].Storages = nil, nil
	d.view("status vm:100 recovery on n3")
	d.done("status vm:100", 1002)
	d.now = time.Minute
	d.view() // the record is on its way: not written twice
	d.v.Revision = 1002
	d.v.Statuses[100] = ha.StatusRecord{Revision: 1002, Status: ha.Status{
		State: ha.StatusRecovery, Node: "n3", Reason: "no node can take it: n1 has no storage nas; n2 has no storage nas; n3 is fenced",
	}}
	d.view() // and it says what it should
	d.v.Members[1].Storages = []string{"nas"}
	d.view("move vm:100 n3→n2 [live 1001 conf 100 prot 200 node 2]")
}

func TestManagerLetsARegisteredNodeKeepTheRest(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n3", pveconf.HAStarted)
	d.guest(101, "n3", pveconf.HAStarted)
	d.fenced("n3", 1001)
	d.view("move vm:100 n3→n1 [live 1001 conf 100 prot 200 node 1]", "move vm:101 n3→n2 [live 1001 conf 101 prot 201 node 2]")
	d.done("move vm:100", 1002)
	d.failed("move vm:101", ha.FailConflict, "changed by someone else", "wake 250ms")
	d.moved(100, "n1", 1002)
	m := d.member("n3")
	m.Live.Fenced, m.LiveRevision, m.Silence = false, 1003, 0
	d.v.Revision = 1003
	d.now = time.Second
	d.view("wake 4s") // vm:101 stays where it is; n3 is watched as before
}

func TestManagerGivesOutOneMoveAtATimeForAGuest(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n3", pveconf.HAStarted)
	d.fenced("n3", 1001)
	d.view("move vm:100 n3→n1 [live 1001 conf 100 prot 200 node 1]")
	d.guest(101, "n1", pveconf.HAStarted) // n2 would be the better place now
	d.view()
	d.says(ha.Tick{})
	d.failed("move vm:100", ha.FailOther, "no quorum", "wake 250ms")
	d.now = 250 * time.Millisecond
	d.says(ha.Tick{}, "move vm:100 n3→n2 [live 1001 conf 100 prot 200 node 2]")
}

func TestManagerCountsMovesUnderWayWhenItPlaces(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n3", pveconf.HAStarted)
	d.v.Guests[0].MemoryMiB = 10000
	d.fenced("n3", 1001)
	d.view("move vm:100 n3→n1 [live 1001 conf 100 prot 200 node 1]")
	d.guest(101, "n3", pveconf.HAStarted)
	d.view("move vm:101 n3→n2 [live 1001 conf 101 prot 201 node 2]")
}

func TestManagerDecidesAMigrationWhoseSourceWasFenced(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n3", pveconf.HAStarted)
	d.v.Intents[100] = ha.Intent{Revision: 300, Intent: model.Intent{VMID: 100, Source: "n3", Target: "n2", SourceEpoch: 4, TargetEpoch: 4}}
	d.silent("n3", 8*time.Second)
	d.view("wake 100ms") // silence alone decides nothing: the target may still commit
	d.silent("n3", 11*time.Second)
	d.view("cut n3 epoch 5 by n1 [live 30]", "status vm:100 fence on n3")
	d.done("cut n3", 1001)
	d.fenced("n3", 1001)
	d.view("clear intent vm:100 [intent 300]")
	d.reason("clear intent", "the migration of vm:100 ends: its source n3 was fenced (epoch 5)")
	d.done("clear intent", 1002)
	delete(d.v.Intents, 100)
	d.v.Revision = 1002
	d.view("move vm:100 n3→n1 [live 1001 conf 100 prot 200 node 1]")
}

func TestManagerLetsTheTargetThatWasFasterKeepTheGuest(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n3", pveconf.HAStarted)
	d.v.Intents[100] = ha.Intent{Revision: 300, Intent: model.Intent{VMID: 100, Source: "n3", Target: "n2", SourceEpoch: 4, TargetEpoch: 4}}
	d.fenced("n3", 1001)
	d.view("clear intent vm:100 [intent 300]")
	d.failed("clear intent", ha.FailConflict, "changed by someone else", "wake 250ms")
	delete(d.v.Intents, 100)
	d.moved(100, "n2", 1002)
	d.now = time.Second
	d.view("wake 3.5s")
}

func TestManagerDecidesAMigrationWhoseTargetWasFenced(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n2", pveconf.HAStarted)
	d.v.Intents[100] = ha.Intent{Revision: 300, Intent: model.Intent{VMID: 100, Source: "n2", Target: "n3", SourceEpoch: 4, TargetEpoch: 4}}
	d.fenced("n3", 1001)
	d.view("clear intent vm:100 [intent 300]", "wake 2.5s")
	d.reason("clear intent", "the migration of vm:100 ends: its target n3 was fenced (epoch 5)")
}

func TestManagerDecidesAMigrationWhoseTargetWasFencedAndCameBack(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n2", pveconf.HAStarted)
	d.v.Intents[100] = ha.Intent{Revision: 300, Intent: model.Intent{VMID: 100, Source: "n2", Target: "n3", SourceEpoch: 4, TargetEpoch: 3}}
	d.view("clear intent vm:100 [intent 300]", "wake 2.5s")
}

func TestManagerLeavesAHealthyMigrationAlone(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n2", pveconf.HAStarted)
	d.v.Intents[100] = ha.Intent{Revision: 300, Intent: model.Intent{VMID: 100, Source: "n2", Target: "n3", SourceEpoch: 4, TargetEpoch: 4}}
	d.view("wake 2.5s")
}

func TestAgentTakesTheManagersKeyWhenItsNodeIsSilent(t *testing.T) {
	d := talkToManager(t)
	d.v.Manager.Node = "n3"
	d.guest(100, "n3", pveconf.HAStarted)
	d.view("wake 2.5s")
	d.now = 2500 * time.Millisecond
	d.says(ha.Tick{}, "take manager as n1 term 2 [manager 5]")
	d.reason("take manager", "n1 becomes the HA manager: n3, the last one, has been silent for 3s")
	// The new manager goes on at once: n3's lease is over, so it is cut.
	d.now = 11 * time.Second
	d.silent("n3", 11*time.Second)
	d.view()
	d.done("take manager", 1001, "wake "+d.now.String())
	d.v.Manager, d.v.ManagerRevision, d.v.Revision = model.Manager{Node: "n1", Term: 2}, 1001, 1001
	d.view("cut n3 epoch 5 by n1 [live 30]", "status vm:100 fence on n3")
}

func TestANewManagerGoesOnWithHalfMovedGuests(t *testing.T) {
	d := talkToManager(t)
	d.v.Manager.Node = "n3"
	d.guest(100, "n2", pveconf.HAStarted) // moved by the old manager
	d.guest(101, "n3", pveconf.HAStarted) // not yet
	d.fenced("n3", 990)
	d.view("take manager as n1 term 2 [manager 5]")
	d.done("take manager", 1001, "wake 1ns")
	d.v.Manager, d.v.ManagerRevision, d.v.Revision = model.Manager{Node: "n1", Term: 2}, 1001, 1001
	d.view("move vm:101 n3→n1 [live 990 conf 101 prot 201 node 1]", "wake 2.5s")
}

func TestAnAgentThatLosesTheRaceForTheKeyWatches(t *testing.T) {
	d := talkToManager(t)
	d.v.Manager.Node = "n3"
	d.silent("n3", 4*time.Second)
	d.view("take manager as n1 term 2 [manager 5]")
	d.failed("take manager", ha.FailConflict, "changed by someone else", "wake 250ms")
	d.v.Manager, d.v.ManagerRevision = model.Manager{Node: "n2", Term: 2}, 1001
	d.view("wake 2.5s")
	d.now = 2500 * time.Millisecond
	d.silent("n2", 3*time.Second)
	d.view("take manager as n1 term 3 [manager 1001]")
}

func TestTheKeyIsTakenFromManagersThatCannotManage(t *testing.T) {
	tests := []struct {
		name   string
		change func(d *managerTalk)
		want   string
	}{
		{"no record", func(d *managerTalk) { d.v.Manager, d.v.ManagerRevision = model.Manager{}, 0 }, "n1 becomes the HA manager: there is none"},
		{"removed", func(d *managerTalk) { d.v.Members = d.v.Members[:2] }, "n1 becomes the HA manager: n3, the last one, is no member of the cluster"},
		{"fenced", func(d *managerTalk) { d.fenced("n3", 1000) }, "n1 becomes the HA manager: n3, the last one, is fenced"},
		{"left", func(d *managerTalk) { d.member("n3").Live.Left = true }, "n1 becomes the HA manager: n3, the last one, has left"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			d := talkToManager(t)
			d.v.Manager.Node = "n3"
			tt.change(d)
			d.step(0, ha.View{}) // an empty view is none
			d.dialogue.last = d.step(0, d.v)
			d.reason("take manager", tt.want)
		})
	}
}

func TestManagerReportsAGuestOfANodeThatWasRemoved(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n9", pveconf.HAStarted)
	d.view("status vm:100 recovery on n9")
	d.reason("status vm:100", "vm:100 is recovery: vm:100 cannot be taken over: n9 is no member of the cluster, so its file must be moved by hand")
}

func TestManagerMovesNothingToNodesThatAreNotWell(t *testing.T) {
	d := talkToManager(t)
	d.v.Members = append(d.v.Members, member("n4", 4, 40), member("n5", 5, 0))
	d.guest(100, "n3", pveconf.HAStarted)
	d.guest(101, "n1", pveconf.HAStarted) // n1 has the most
	d.fenced("n3", 1001)
	d.silent("n2", 3*time.Second)
	d.member("n4").Live.Left = true
	d.view("move vm:100 n3→n1 [live 1001 conf 100 prot 200 node 1]")
}

func TestManagerMovesTheGuestsOfANodeThatLeft(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n3", pveconf.HAStarted)
	m := d.member("n3")
	m.Live.Left, m.MayTake, m.Why = true, true, "it left in good order, with no guest running"
	d.view("cut n3 epoch 5 by n1 [live 30]", "status vm:100 fence on n3")
	cut := d.given("cut n3").(ha.Cut)
	if want := (model.Live{BootID: "boot-n3", Epoch: 5, Seq: 7, Fenced: true, By: "n1"}); cut.NewLive != want {
		t.Errorf("got %+v, want %+v", cut.NewLive, want)
	}
}

func TestAGuestOutsideHAThatDoesNotRunTakesNoRoom(t *testing.T) {
	d := talkToManager(t)
	d.guest(100, "n3", pveconf.HAStarted)
	for i, node := range []string{"n1", "n2"} {
		d.v.Guests = append(d.v.Guests, ha.Guest{VMID: model.VMID(200 + i), Node: node, Revision: 300, MemoryMiB: 15360})
	}
	d.silent("n3", time.Minute)
	d.view("status vm:100 recovery on n3") // they may run, for all that is known
	d.done("status vm:100", 1002)
	d.v.Revision = 1002
	d.v.Guests[2].Idle = true
	d.view("cut n3 epoch 5 by n1 [live 30]", "status vm:100 fence on n3")
}
