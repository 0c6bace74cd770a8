package ha_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/ha"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/core/pveconf"
)

var bmc = []ha.FenceMethod{{Name: "ipmi", Rehearsed: true}}

func TestANodeThatItsBMCSaysIsOffIsTakenInSeconds(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.fencing, s.bmc = bmc, func(node string) bool { return !s.actor(node).up }
	s.guest(100, "n3", pveconf.HAStarted)
	s.run(second)
	s.die("n3")
	s.run(3 * second)
	s.is("vm:100 n1 started runs")
	s.happened("start vm:100 on n3", "cut n3", "vm:100 n3→n1", "start vm:100 on n1")
}

func TestANodeThatHangsIsSwitchedOffAndVerified(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.fencing, s.bmc = bmc, func(string) bool { return len(s.actor("n3").runs) == 0 }
	s.guest(100, "n3", pveconf.HAStarted)
	s.run(second)
	s.actor("n3").up = false // it hangs: its guest runs
	s.run(5900 * time.Millisecond)
	s.happened("start vm:100 on n3")
	s.run(1500 * time.Millisecond)
	s.happened("shoot n3 by ipmi", "cut n3", "vm:100 n3→n1", "start vm:100 on n1")
}

func TestANodeWithoutGuestsToBringBackIsNeitherAskedNorShot(t *testing.T) {
	s := newStage(t, "n1", "n2", "n3")
	s.fencing, s.bmc = bmc, func(string) bool { t.Error("asked"); return false }
	s.guest(100, "n3", pveconf.HADisabled)
	s.run(second)
	s.actor("n3").up = false
	s.run(20 * second)
	s.happened()
}

// fenceTalk is a dialogue with a manager about n3, which has the methods given and one guest.
func fenceTalk(t *testing.T, methods ...ha.FenceMethod) *managerTalk {
	d := talkToManager(t)
	d.guest(100, "n3", pveconf.HAStarted)
	for i := range d.v.Members {
		d.v.Members[i].Heard, d.v.Members[i].Beacons = 500*time.Millisecond, true
	}
	d.member("n3").Fencing = methods
	return d
}

// quiet lets n3 be silent on all paths by now.
func (d *managerTalk) quiet(silence time.Duration) {
	d.now = silence
	d.silent("n3", silence)
	d.member("n3").Heard = silence
}

func (d *managerTalk) says3(off bool, want ...string) {
	d.t.Helper()
	d.says(ha.FenceResult{Action: d.given("ask n3").(ha.AskFence), Off: off}, want...)
}

// refused says that a blocklist entry of n3 was confirmed, for these guests.
func (d *managerTalk) refused(guests []model.VMID, want ...string) {
	d.t.Helper()
	d.says(ha.FenceResult{Action: d.given("shoot n3"), Guests: guests}, want...)
}

func TestOffIsReadTwiceAndApart(t *testing.T) {
	d := fenceTalk(t, bmc...)
	d.quiet(2 * second)
	d.view("ask n3 ipmi", "wake 3s")
	d.says3(true, "wake 2.5s") // half a second later
	d.now = 2500 * time.Millisecond
	d.says(ha.Tick{}, "ask n3 ipmi", "wake 3s")
	d.says3(true, "wake 2.5s")
	d.quiet(2500 * time.Millisecond)
	d.view("cut n3 epoch 5 by n1 [live 30]", "status vm:100 fence on n3")
	d.reason("cut n3", "n3 is cut off: ipmi says that n3 has no power")
}

func TestAnOnBetweenTwoOffsBeginsAnew(t *testing.T) {
	d := fenceTalk(t, bmc...)
	d.quiet(2 * second)
	d.view("ask n3 ipmi", "wake 3s")
	d.says3(true, "wake 2.5s")
	d.now = 2500 * time.Millisecond
	d.says(ha.Tick{}, "ask n3 ipmi", "wake 3s")
	d.says3(false, "wake 2.75s")
	d.now = 2750 * time.Millisecond
	d.says(ha.Tick{}, "ask n3 ipmi", "wake 3s")
	d.says3(true, "wake 3s")
	d.quiet(3250 * time.Millisecond)
	d.view("ask n3 ipmi", "wake 3.35s")
	d.says3(true, "wake 3.25s")
	d.view("cut n3 epoch 5 by n1 [live 30]", "status vm:100 fence on n3")
}

func TestASignOfLifeVoidsAProof(t *testing.T) {
	d := fenceTalk(t, bmc...)
	d.quiet(2 * second)
	d.view("ask n3 ipmi", "wake 3s")
	d.says3(true, "wake 2.5s")
	d.quiet(2500 * time.Millisecond)
	d.member("n3").Heard = 100 * time.Millisecond // a beacon, though it does not renew
	d.view("wake 3s")
	d.quiet(4500 * time.Millisecond)
	d.member("n3").Heard = 2100 * time.Millisecond
	d.view("ask n3 ipmi", "wake 4.6s")
	d.says3(true, "wake 4.6s") // the first one again
}

func TestARenewalVoidsAProof(t *testing.T) {
	d := fenceTalk(t, bmc...)
	d.quiet(2 * second)
	d.view("ask n3 ipmi", "wake 3s")
	d.says3(true, "wake 2.5s")
	d.now = 2500 * time.Millisecond
	d.says(ha.Tick{}, "ask n3 ipmi", "wake 3s")
	d.silent("n3", 0)
	d.member("n3").Heard, d.member("n3").LiveRevision = time.Millisecond, 31
	d.view("wake 4.499s")
	d.says3(true, "wake 2.75s") // nothing comes of it
	d.now = 2750 * time.Millisecond
	d.says(ha.Tick{}, "wake 4.499s")
}

func TestAMethodWhoseRehearsalFailedProvesNothing(t *testing.T) {
	d := fenceTalk(t, ha.FenceMethod{Name: "ipmi"})
	d.quiet(7 * second)
	d.view("wake 7.1s")
}

func TestABMCThatHangsDelaysNothing(t *testing.T) {
	d := fenceTalk(t, ha.FenceMethod{Name: "ipmi", Rehearsed: true}, ha.FenceMethod{Name: "redfish", Rehearsed: true})
	d.quiet(2 * second)
	d.view("ask n3 ipmi", "ask n3 redfish", "wake 3s")
	d.says(ha.FenceResult{Action: ha.AskFence{Node: "n3", Method: "redfish"}, Off: true}, "wake 2.5s")
	d.quiet(2500 * time.Millisecond)
	d.view("ask n3 redfish", "wake 3s")
	d.says(ha.FenceResult{Action: ha.AskFence{Node: "n3", Method: "redfish"}, Off: true}, "wake 2.5s")
	d.view("cut n3 epoch 5 by n1 [live 30]", "status vm:100 fence on n3")
}

// asked lets n3 be silent since a time, with a method that refuses each question, and returns when it was asked, in milliseconds.
func (d *managerTalk) asked(since, from, to time.Duration, refusal func() string) (at []int64) {
	n3 := d.member("n3")
	for now := from; now < to; now += 50 * time.Millisecond {
		n3.Silence, n3.Heard, n3.Beacons = now-since, now-since, false // so nobody shoots it
		for _, a := range d.step(now, d.v) {
			if _, ok := a.(ha.AskFence); ok {
				at = append(at, now.Milliseconds())
				d.step(now, ha.ActionFailed{Action: a, Kind: ha.FailOther, Reason: refusal()})
			}
		}
	}
	return at
}

func TestAMethodThatRefusesEachQuestionIsAskedLessAndLess(t *testing.T) {
	port := 4000
	timeout := func() string { port++; return fmt.Sprintf("read udp 10.10.1.1:%d: i/o timeout", port) }
	stranger := func() string { return "the BMC belongs to another machine" }
	for name, c := range map[string]struct {
		got  func(d *managerTalk) []int64
		want []int64
	}{
		"all alike": {
			func(d *managerTalk) []int64 { return d.asked(0, 0, 40*second, timeout) },
			[]int64{2000, 2250, 3250, 5250, 9250, 17250, 27250, 37250},
		},
		"another reason": {
			func(d *managerTalk) []int64 {
				return append(d.asked(0, 0, 5*second, timeout), d.asked(0, 5*second, 8*second, stranger)...)
			},
			[]int64{2000, 2250, 3250, 5250, 5500, 6500},
		},
		"another silence": {
			func(d *managerTalk) []int64 {
				return append(d.asked(0, 0, 10*second, timeout), d.asked(10*second, 10*second, 14*second, timeout)...)
			},
			[]int64{2000, 2250, 3250, 5250, 9250, 12000, 12250, 13250},
		},
	} {
		if diff := cmp.Diff(c.want, c.got(fenceTalk(t, bmc...))); diff != "" {
			t.Errorf("%s: asked at (-want +got):\n%s", name, diff)
		}
	}
}

// Nobody wakes the manager but itself.
func TestAMethodThatRefusesQuestionsIsToldToShootInTime(t *testing.T) {
	d := fenceTalk(t, bmc...)
	for now := 2 * second; now <= 6*second; {
		d.quiet(now)
		d.member("n3").Wait = 10520*time.Millisecond - now
		next := time.Minute
		actions := d.step(now, d.v)
		for i := 0; i < len(actions); i++ {
			switch a := actions[i].(type) {
			case ha.Wake:
				next = a.At
			case ha.AskFence:
				actions = append(actions, d.step(now, ha.ActionFailed{Action: a, Kind: ha.FailOther, Reason: "timeout"})...)
			case ha.Shoot:
				if now != 6*second {
					t.Errorf("shot at %s", now)
				}
				return
			}
		}
		now = next
	}
	t.Error("nobody looked again when it was time to shoot")
}

func TestWithoutAnAnswerTheLeaseDecides(t *testing.T) {
	d := fenceTalk(t, bmc...)
	d.quiet(7 * second)
	d.view("shoot n3 ipmi", "ask n3 ipmi", "wake 7.1s")
	d.failed("shoot n3", ha.FailOther, "timeout", "wake 7.1s")
	d.failed("ask n3", ha.FailOther, "timeout", "wake 7.1s")
	d.quiet(11 * second)
	d.view("cut n3 epoch 5 by n1 [live 30]", "status vm:100 fence on n3")
}

func TestABlocklistCoversGuestsAndNotTheNode(t *testing.T) {
	d := fenceTalk(t, ha.FenceMethod{Name: "ceph", Blocklist: true, Rehearsed: true})
	d.guest(101, "n3", pveconf.HAStarted)
	d.guest(102, "n3", pveconf.HAStarted) // on RBD, and an image of it is open elsewhere too
	d.v.Guests[1].RBD, d.v.Guests[2].RBD = true, true
	d.quiet(6 * second)
	d.view("shoot n3 ceph", "wake 6.1s")
	d.refused([]model.VMID{101}, "wake 6s")
	d.view("cut n3 epoch 5 by n1 [live 30]", "status vm:101 fence on n3", "wake 6.1s")
	cut := d.given("cut n3").(ha.Cut)
	if cut.NewLive.Covers != "101" {
		t.Errorf("got %+v", cut.NewLive)
	}
	d.says(ha.ActionDone{Action: cut, Revision: 1001}, "wake 6.1s")
	d.fenced("n3", 1001)
	m := d.member("n3")
	m.Live.Covers, m.Silence, m.MayTake = "101", 0, true // the observer takes every cut for the end of a lease
	d.view("move vm:101 n3→n2 [live 1001 conf 101 prot 201 node 2]", "wake 10.52s")
	d.done("move vm:101", 1002, "wake 10.52s")
	d.moved(101, "n2", 1002)
	d.now, m.Silence = 10520*time.Millisecond, 4520*time.Millisecond
	d.view("move vm:100 n3→n1 [live 1001 conf 100 prot 200 node 1]", "move vm:102 n3→n1 [live 1001 conf 102 prot 202 node 1]", "wake 13.02s")
}

func TestANewManagerReadsFromTheCutWhomABlocklistCovers(t *testing.T) {
	d := fenceTalk(t, ha.FenceMethod{Name: "ceph", Blocklist: true, Rehearsed: true})
	d.guest(101, "n3", pveconf.HAStarted)
	d.v.Guests[0].RBD, d.v.Guests[1].RBD = true, true
	d.fenced("n3", 1001)
	m := d.member("n3")
	m.Live.Covers, m.Silence, m.Heard, m.MayTake = "100", second, 3*second, true
	d.view("move vm:100 n3→n1 [live 1001 conf 100 prot 200 node 1]", "wake 3s")
}

// An older agent that becomes the manager would take every guest of a node that was cut off for some.
func TestABlocklistIsNotUsedWhileAMemberDoesNotKnowWhatACutCovers(t *testing.T) {
	d := fenceTalk(t, ha.FenceMethod{Name: "ceph", Blocklist: true, Rehearsed: true})
	d.v.Guests[0].RBD = true
	d.member("n2").Level = 0
	d.quiet(7 * second)
	d.view("wake 7.1s")
	d.member("n2").Level = ha.Level
	d.view("shoot n3 ceph", "wake 7.1s")
}

func TestASignOfLifeAfterAShotWasGivenOutVoidsWhatComesOfIt(t *testing.T) {
	ceph := ha.FenceMethod{Name: "ceph", Blocklist: true, Rehearsed: true}
	t.Run("a renewal", func(t *testing.T) {
		d := fenceTalk(t, ceph)
		d.v.Guests[0].RBD = true
		d.quiet(6 * second)
		d.view("shoot n3 ceph", "wake 6.1s")
		d.silent("n3", 40*time.Millisecond) // it has booted
		d.now, d.member("n3").Heard, d.member("n3").LiveRevision = 6100*time.Millisecond, 40*time.Millisecond, 31
		d.view("wake 8.06s")
		d.refused([]model.VMID{100}, "wake 8.06s")
	})
	t.Run("a beacon", func(t *testing.T) {
		d := fenceTalk(t, ceph)
		d.v.Guests[0].RBD = true
		d.quiet(6 * second)
		d.view("shoot n3 ceph", "wake 6.1s")
		d.quiet(6500 * time.Millisecond)
		d.member("n3").Heard = 100 * time.Millisecond
		d.view("wake 6.6s")
		d.refused([]model.VMID{100}, "wake 6.6s")
		d.quiet(13 * second)
		d.member("n3").MayTake = false // it would be over by the lease
		d.member("n3").Heard = 6500 * time.Millisecond
		d.view("shoot n3 ceph", "wake 13.1s")
		d.refused([]model.VMID{100}, "wake 13s")
		d.view("cut n3 epoch 5 by n1 [live 30]", "status vm:100 fence on n3", "wake 13.1s")
	})
	t.Run("after it was carried out", func(t *testing.T) {
		d := fenceTalk(t, bmc...)
		d.quiet(6 * second)
		d.view("shoot n3 ipmi", "ask n3 ipmi", "wake 6.1s")
		d.done("shoot n3", 0, "wake 6.1s")
		d.says3(false, "wake 6.1s")
		d.quiet(7 * second)
		d.member("n3").Heard = 100 * time.Millisecond
		d.view("wake 7.1s")
		d.quiet(13 * second)
		d.member("n3").MayTake, d.member("n3").Heard = false, 6100*time.Millisecond
		d.view("shoot n3 ipmi", "ask n3 ipmi", "wake 13.1s")
	})
}

func TestANewManagerWaitsALeaseAfterABlocklistedCut(t *testing.T) {
	d := fenceTalk(t, ha.FenceMethod{Name: "ceph", Blocklist: true, Rehearsed: true})
	d.fenced("n3", 1001)
	m := d.member("n3")
	m.Live.Covers, m.Silence, m.Heard, m.MayTake = "101", second, 7*second, true
	d.view("wake 9.52s")
	m.Silence = 10520 * time.Millisecond
	d.now = 9520 * time.Millisecond
	d.view("move vm:100 n3→n1 [live 1001 conf 100 prot 200 node 1]")
}

func TestAGuestThatNobodyGuardedComesBackByAProofOfPower(t *testing.T) {
	d := fenceTalk(t, bmc...)
	delete(d.v.Protected, 100)
	d.fenced("n3", 1001)
	m := d.member("n3")
	m.Silence, m.Heard, m.MayTake = time.Minute, time.Minute, true
	d.view("ask n3 ipmi", "status vm:100 recovery on n3")
	d.reason("status vm:100", "vm:100 is recovery: vm:100 cannot be taken over: not under guard on n3")
	d.says(ha.FenceResult{Action: d.given("ask n3"), Off: true, Lasted: second}, "wake 1ns")
	d.view("move vm:100 n3→n1 [live 1001 conf 100 prot 0 node 1]")
}

func TestNoProofIsSoughtForAnEndInOrder(t *testing.T) {
	d := fenceTalk(t, bmc...)
	d.v.Policy.Shutdown = ha.ShutdownFreeze
	m := d.member("n3")
	m.Mode = ha.NodeMode{Ends: ha.EndsShutdown, BootID: "boot-n3"}
	m.Live.Left, m.MayTake, m.Heard, m.Silence = true, true, time.Hour, time.Hour
	d.view("status vm:100 freeze on n3")
	m.Mode.BootID = "another" // of its last life
	d.view("cut n3 epoch 5 by n1 [live 30]")
}

func TestNobodyIsShotWhileDisarmed(t *testing.T) {
	d := fenceTalk(t, bmc...)
	d.v.Mode.Disarm = ha.DisarmFreeze
	d.quiet(time.Minute)
	d.view("status vm:100 freeze on n3")
	d.v.Mode.Disarm = ha.Armed
	d.member("n3").Request = ha.NodeRequest{Disarm: ha.DisarmIgnore}
	d.v.Statuses[100] = ha.StatusRecord{}
	d.v.Revision = 2000
	d.view()
}

func TestAnAnswerThatReadOffForAsLongAsTwoAreApartIsAProof(t *testing.T) {
	for _, c := range []struct {
		lasted time.Duration
		proved bool
	}{{500 * time.Millisecond, true}, {499 * time.Millisecond, false}} {
		d := fenceTalk(t, bmc...)
		d.quiet(2 * second)
		d.view("ask n3 ipmi", "wake 3s")
		ev := ha.FenceResult{Action: d.given("ask n3"), Off: true, Lasted: c.lasted}
		if !c.proved {
			d.says(ev, "wake 2.5s")
			continue
		}
		d.says(ev, "wake 2s")
		d.view("cut n3 epoch 5 by n1 [live 30]", "status vm:100 fence on n3")
	}
}

// The agent stood still while answers were under way: by the view before, every node has been silent all the time.
func TestAnAnswerDecidesNothingByAnOldView(t *testing.T) {
	for _, answer := range []string{"ask n3", "shoot n3"} {
		t.Run(answer, func(t *testing.T) {
			d := fenceTalk(t, ha.FenceMethod{Name: "ipmi", Rehearsed: true}, ha.FenceMethod{Name: "ceph", Blocklist: true, Rehearsed: true})
			d.guest(101, "n2", pveconf.HAStarted)
			d.v.Guests[0].RBD = true
			d.member("n2").Fencing = bmc
			d.quiet(6 * second)
			d.view("shoot n3 ipmi", "ask n3 ipmi", "shoot n3 ceph", "wake 6.1s")
			d.now = time.Minute
			if answer == "ask n3" {
				d.says(ha.FenceResult{Action: ha.AskFence{Node: "n3", Method: "ipmi"}, Off: true, Lasted: second}, "wake 1m0s")
				return
			}
			d.says(ha.FenceResult{Action: ha.Shoot{Node: "n3", Method: "ceph", Blocklist: true}, Guests: []model.VMID{100}}, "wake 1m0s")
		})
	}
}

func TestANodeWhoseBeaconsNobodyHeardIsAskedAndNeverShot(t *testing.T) {
	d := fenceTalk(t, bmc...)
	d.quiet(8 * second)
	d.member("n3").Beacons = false
	d.view("ask n3 ipmi", "wake 8.1s")
	d.says(ha.FenceResult{Action: d.given("ask n3"), Off: true, Lasted: second}, "wake 8s")
	d.view("cut n3 epoch 5 by n1 [live 30]", "status vm:100 fence on n3")
}

func TestAMethodOfAHigherOrderShootsWhenTheLowerOnesHaveFailedOrAreOfNoUse(t *testing.T) {
	pdu := ha.FenceMethod{Name: "pdu", Rehearsed: true, Order: 1}
	t.Run("failed", func(t *testing.T) {
		d := fenceTalk(t, pdu, ha.FenceMethod{Name: "ipmi", Rehearsed: true})
		d.quiet(6 * second)
		d.view("ask n3 pdu", "shoot n3 ipmi", "ask n3 ipmi", "wake 6.1s")
		d.failed("shoot n3", ha.FailConflict, "the lease is too short", "wake 6.1s")
		d.quiet(6900 * time.Millisecond)
		d.view("wake 7s")
		d.quiet(7 * second)
		d.view("shoot n3 ipmi", "wake 7.1s")
		d.failed("shoot n3", ha.FailOther, "it is on fire", "wake 7.1s")
		d.quiet(7100 * time.Millisecond)
		d.view("shoot n3 pdu", "wake 7.2s")
	})
	t.Run("worthless", func(t *testing.T) {
		d := fenceTalk(t, pdu, ha.FenceMethod{Name: "ipmi"})
		d.quiet(6 * second)
		d.view("shoot n3 pdu", "ask n3 pdu", "wake 6.1s")
	})
	t.Run("a blocklist for guests on no RBD", func(t *testing.T) {
		d := fenceTalk(t, pdu, ha.FenceMethod{Name: "ceph", Blocklist: true, Rehearsed: true})
		d.quiet(6 * second)
		d.view("shoot n3 pdu", "ask n3 pdu", "wake 6.1s")
	})
	t.Run("a blocklist that covers a part", func(t *testing.T) {
		d := fenceTalk(t, pdu, ha.FenceMethod{Name: "ceph", Blocklist: true, Rehearsed: true})
		d.guest(101, "n3", pveconf.HAStarted)
		d.v.Guests[1].RBD = true
		d.quiet(6 * second)
		d.view("ask n3 pdu", "shoot n3 ceph", "wake 6.1s")
		d.refused([]model.VMID{101}, "wake 6s")
		d.view("shoot n3 pdu", "cut n3 epoch 5 by n1 [live 30]", "status vm:101 fence on n3", "wake 6.1s")
	})
}

// Without having said goodbye it has crashed, and nothing would ever come that makes the manager look again.
func TestANodeThatFallsSilentWhileItEndsIsAskedAboutAndWaitedForLikeEveryOther(t *testing.T) {
	d := fenceTalk(t, ha.FenceMethod{Name: "redfish", Rehearsed: true})
	m := d.member("n3")
	m.Mode = ha.NodeMode{Ends: ha.EndsReboot, BootID: m.Live.BootID}
	d.v.Policy.Shutdown = ha.ShutdownFreeze
	d.view("status vm:100 freeze on n3", "wake 1.5s")
	d.quiet(2 * second) // not watched any more, and not yet taken for silent
	d.view("wake 3s")
	d.quiet(3 * second)
	d.view("ask n3 redfish", "wake 3.1s")
}
