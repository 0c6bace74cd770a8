package lease_test

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
)

// guardTalk drives a Guard by hand.
type guardTalk struct {
	t *testing.T
	g lease.Guard
}

func (d *guardTalk) step(now time.Duration, ev lease.GuardEvent, want ...lease.GuardAction) {
	d.t.Helper()
	var got []lease.GuardAction
	var err error
	d.g, got, err = d.g.Step(now, ev)
	if err != nil {
		d.t.Fatalf("at %v: %T refused: %v", now, ev, err)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		d.t.Fatalf("at %v after %T%+v (-want +got):\n%s", now, ev, ev, diff)
	}
}

func (d *guardTalk) refuse(now time.Duration, ev lease.GuardEvent, kind error) {
	d.t.Helper()
	names := func(g lease.Guard) (names []string) {
		for _, s := range g.Groups() {
			names = append(names, fmt.Sprint(s.Group))
		}
		return names
	}
	before := names(d.g)
	next, _, err := d.g.Step(now, ev)
	if !errors.Is(err, kind) {
		d.t.Fatalf("at %v: %T%+v gave %v, want %v", now, ev, ev, err, kind)
	}
	if diff := cmp.Diff(before, names(next)); diff != "" {
		d.t.Fatalf("a refused event changed the groups:\n%s", diff)
	}
	d.g = next
}

func group(name string, epoch uint64) lease.Group {
	return lease.Group{Name: name, Cgroup: "/c/" + name, Epoch: epoch, OnDeadline: lease.FreezeGroup, Pills: []string{"/nas/pill"}}
}

// protected is a guard at 1s with a lease of epoch 3 until 11s and the group 100, fed at 1s.
func protected(t *testing.T) *guardTalk {
	d := &guardTalk{t, lease.NewGuard(lease.DefaultParams(), true, 0, nil)}
	d.step(0, lease.Tick{}, lease.Feed{})
	d.step(0, lease.Done{Fed: true})
	d.step(1*sec, lease.Renewal{Epoch: 3, Deadline: 11 * sec}, lease.Feed{})
	d.step(1*sec, lease.Done{Fed: true})
	d.step(1*sec, lease.ProtectGroup{Group: group("100", 3)})
	return d
}

// frozen is protected at 10s with the group frozen, fed at 10s+5ms.
func frozen(t *testing.T) *guardTalk {
	d := protected(t)
	d.step(9*sec, lease.Tick{})
	d.step(10*sec, lease.Tick{}, lease.Freeze{Group: group("100", 3)})
	d.step(10*sec+5*ms, lease.Done{Frozen: []string{"100"}}, lease.Feed{})
	d.step(10*sec+5*ms, lease.Done{Fed: true})
	return d
}

func TestGuardFreezesAMarginBeforeTheDeadlineAndFeedsWhenThatIsConfirmed(t *testing.T) { frozen(t) }

func TestGuardDoesNotFeedBetweenTheLastSafeInstantAndTheConfirmedFreeze(t *testing.T) {
	d := protected(t)
	d.step(5950*ms, lease.Tick{}, lease.Feed{})
	d.step(5950*ms, lease.Done{Fed: true})
	d.step(6201*ms, lease.Tick{}) // due, and now+W is still before the deadline only until 6s
	d.step(10*sec, lease.Tick{}, lease.Freeze{Group: group("100", 3)})
	d.step(10*sec+300*ms, lease.Tick{}, lease.Freeze{Group: group("100", 3)})
}

func TestGuardThawsWhenTheSameEpochIsRenewed(t *testing.T) {
	d := frozen(t)
	d.step(12*sec, lease.Renewal{Epoch: 3, Deadline: 22 * sec}, lease.Thaw{Group: group("100", 3)}, lease.Feed{})
}

func TestGuardDoesNotThawForALeaseThatTheWatchdogOutlasts(t *testing.T) {
	d := frozen(t)
	// Fed at 10.005s the watchdog lasts until 15.005s: a hang after the thaw must end before the deadline.
	d.step(10*sec+6*ms, lease.Renewal{Epoch: 3, Deadline: 15 * sec})
	d.step(10*sec+7*ms, lease.Renewal{Epoch: 3, Deadline: 16 * sec}, lease.Thaw{Group: group("100", 3)})
}

func TestGuardKillsOnANewerEpochAndNeverThawsAgain(t *testing.T) {
	kill := lease.Kill{Group: group("100", 3)}
	for name, ev := range map[string]lease.GuardEvent{
		"renewal": lease.Renewal{Epoch: 4, Deadline: 22 * sec},
		"order":   lease.FenceOrder{Epoch: 4},
		"pill":    lease.PillRead{Epoch: 4},
	} {
		t.Run(name, func(t *testing.T) {
			d := frozen(t)
			d.step(12*sec, ev, kill)
			d.refuse(12*sec, lease.Renewal{Epoch: 3, Deadline: 22 * sec}, model.ErrConflict)
			d.step(12*sec+10*ms, lease.Renewal{Epoch: 4, Deadline: 22 * sec}, kill)
			d.refuse(12*sec+10*ms, lease.ProtectGroup{Group: group("100", 4)}, model.ErrBusy)
			if d.g.Clean(4) {
				t.Error("clean before the group is dead")
			}
			d.step(12*sec+20*ms, lease.Done{Dead: []string{"100"}}, lease.Feed{})
			if !d.g.Clean(4) {
				t.Error("not clean after the group is dead")
			}
		})
	}
}

func TestAnOldPillKillsNothing(t *testing.T) {
	d := frozen(t)
	d.step(10*sec+6*ms, lease.PillRead{Epoch: 3})
	if diff := cmp.Diff([]string{"/nas/pill"}, d.g.Pills()); diff != "" {
		t.Error(diff)
	}
}

func TestPillsAreReadOnlyWhileAGroupIsFrozen(t *testing.T) {
	if got := protected(t).g.Pills(); len(got) != 0 {
		t.Errorf("pills of a running group: %v", got)
	}
}

func TestProtectNeedsAnArmedWatchdogAndAValidLeaseOfTheCurrentEpoch(t *testing.T) {
	d := &guardTalk{t, lease.NewGuard(lease.DefaultParams(), true, 0, nil)}
	d.refuse(0, lease.ProtectGroup{Group: group("100", 3)}, model.ErrUnavailable) // not armed
	d.step(1*ms, lease.Done{Fed: true})
	d.refuse(1*ms, lease.ProtectGroup{Group: group("100", 3)}, model.ErrUnavailable) // no lease
	d.step(1*ms, lease.Renewal{Epoch: 3, Deadline: 5 * sec})
	d.refuse(1*ms, lease.ProtectGroup{Group: group("100", 3)}, model.ErrUnavailable) // the watchdog outlasts it
	d.step(2*ms, lease.Renewal{Epoch: 3, Deadline: 10 * sec})
	d.refuse(2*ms, lease.ProtectGroup{Group: group("100", 2)}, model.ErrConflict)
	d.refuse(2*ms, lease.ProtectGroup{Group: group("100", 4)}, model.ErrConflict)
	d.refuse(2*ms, lease.ProtectGroup{Group: group("", 3)}, model.ErrInvalid)
	d.refuse(2*ms, lease.ProtectGroup{Group: lease.Group{Name: "100", Epoch: 3}}, model.ErrInvalid)
	d.step(2*ms, lease.ProtectGroup{Group: group("100", 3)})
	d.step(2*ms, lease.ProtectGroup{Group: group("100", 3)}) // twice is once
	elsewhere := group("100", 3)
	elsewhere.Cgroup = "/c/x"
	d.refuse(2*ms, lease.ProtectGroup{Group: elsewhere}, model.ErrExists)
	d.refuse(9*sec, lease.ProtectGroup{Group: group("101", 3)}, model.ErrUnavailable) // the margin has begun
}

func TestAFrozenGroupIsNotReleased(t *testing.T) {
	d := frozen(t)
	d.refuse(11*sec, lease.UnprotectGroup{Name: "100"}, model.ErrBusy)
	d.step(12*sec, lease.Renewal{Epoch: 3, Deadline: 22 * sec}, lease.Thaw{Group: group("100", 3)}, lease.Feed{})
	d.step(12*sec, lease.UnprotectGroup{Name: "100"})
	d.step(12*sec, lease.UnprotectGroup{Name: "100"})
}

func TestADeadlineFurtherThanALeaseIsRefused(t *testing.T) {
	d := protected(t)
	d.refuse(2*sec, lease.Renewal{Epoch: 3, Deadline: 12*sec + 1}, model.ErrInvalid)
}

func TestAnEarlierDeadlineShortensNothing(t *testing.T) {
	d := protected(t)
	d.step(1*sec, lease.Renewal{Epoch: 3, Deadline: 9 * sec})
	if _, deadline, _ := d.g.Lease(); deadline != 11*sec {
		t.Errorf("deadline = %v, want 11s", deadline)
	}
}

func TestAFreezeThatIsNotConfirmedEndsInAReset(t *testing.T) {
	d := protected(t)
	g := group("100", 3)
	d.step(10*sec, lease.Tick{}, lease.Freeze{Group: g})
	d.step(10*sec+749*ms, lease.Tick{}, lease.Freeze{Group: g})
	reset := lease.Reset{Reason: "guest 100 does not freeze"}
	d.step(10*sec+750*ms, lease.Tick{}, lease.Kill{Group: g}, reset)
	d.step(10*sec+760*ms, lease.Tick{}, lease.Kill{Group: g})
	// Nothing makes it feed again, a renewal and a late death included.
	d.step(11*sec, lease.Renewal{Epoch: 3, Deadline: 21 * sec}, lease.Kill{Group: g}, reset)
	d.step(12*sec, lease.Done{Dead: []string{"100"}}, reset)
}

func TestAGroupThatDoesNotDieEndsInAReset(t *testing.T) {
	d := protected(t)
	g := group("100", 3)
	d.step(2*sec, lease.FenceOrder{Epoch: 4}, lease.Kill{Group: g})
	d.step(6999*ms, lease.Tick{}, lease.Kill{Group: g})
	d.step(7*sec, lease.Tick{}, lease.Kill{Group: g}, lease.Reset{Reason: "guest 100 does not die"})
}

func TestAGroupOfAStorageWithLateWritesResetsTheMachineAtTheDeadline(t *testing.T) {
	d := &guardTalk{t, lease.NewGuard(lease.DefaultParams(), true, 0, nil)}
	g := group("100", 3)
	g.OnDeadline = lease.ResetMachine
	d.step(0, lease.Done{Fed: true})
	d.step(1*sec, lease.Renewal{Epoch: 3, Deadline: 11 * sec}, lease.Feed{})
	d.step(1*sec, lease.ProtectGroup{Group: g})
	d.step(10*sec, lease.Tick{}, lease.Kill{Group: g},
		lease.Reset{Reason: "the lease ended, and writes of guest 100 may be under way"})
	d.step(10*sec+10*ms, lease.Done{Dead: []string{"100"}})
	d.refuse(10*sec+10*ms, lease.ProtectGroup{Group: g}, model.ErrUnavailable)
}

func TestARestartedGuardFreezesWhatItFindsBeforeItOpensTheWatchdog(t *testing.T) {
	d := &guardTalk{t, lease.NewGuard(lease.DefaultParams(), true, 50*sec, []lease.Group{group("100", 3)})}
	d.step(50*sec, lease.Tick{}, lease.Freeze{Group: group("100", 3)})
	d.refuse(50*sec, lease.Renewal{Epoch: 2, Deadline: 60 * sec}, model.ErrConflict)
	d.step(50*sec+5*ms, lease.Done{Frozen: []string{"100"}}, lease.Feed{})
	d.step(50*sec+6*ms, lease.Done{Fed: true})
	d.step(51*sec, lease.Renewal{Epoch: 3, Deadline: 61 * sec}, lease.Thaw{Group: group("100", 3)}, lease.Feed{})
}

func TestARestartedGuardDoesNotFeedForAGroupWhoseStorageHasLateWrites(t *testing.T) {
	g := group("100", 3)
	g.OnDeadline = lease.ResetMachine
	d := &guardTalk{t, lease.NewGuard(lease.DefaultParams(), true, 50*sec, []lease.Group{g})}
	d.step(50*sec, lease.Tick{}, lease.Freeze{Group: g})
	d.step(50*sec+5*ms, lease.Done{Frozen: []string{"100"}})
	d.step(51*sec, lease.Tick{})
	d.step(52*sec, lease.Renewal{Epoch: 3, Deadline: 62 * sec}, lease.Thaw{Group: g}, lease.Feed{})
}

func TestAFeedingThatCameLateFreezesAtOnce(t *testing.T) {
	d := protected(t)
	d.step(5950*ms, lease.Tick{}, lease.Feed{})
	// The guard was not scheduled between the decision and the feeding: the watchdog now lasts until 12s.
	d.step(7*sec, lease.Done{Fed: true}, lease.Freeze{Group: group("100", 3)})
}

func TestAThawThatFailedIsDoneAgain(t *testing.T) {
	d := frozen(t)
	d.step(12*sec, lease.Renewal{Epoch: 3, Deadline: 22 * sec}, lease.Thaw{Group: group("100", 3)}, lease.Feed{})
	d.step(12*sec, lease.Done{Fed: true})
	d.step(12*sec+10*ms, lease.Done{ThawFailed: []string{"100"}}, lease.Thaw{Group: group("100", 3)})
}

func TestAGuardWithoutAWatchdogNeverFeeds(t *testing.T) {
	d := &guardTalk{t, lease.NewGuard(lease.DefaultParams(), false, 0, nil)}
	d.step(0, lease.Tick{})
	d.step(1*sec, lease.Renewal{Epoch: 0, Deadline: 11 * sec})
	d.step(1*sec, lease.ProtectGroup{Group: group("100", 0)})
	d.step(10*sec, lease.Tick{}, lease.Freeze{Group: group("100", 0)})
	d.step(10*sec+5*ms, lease.Done{Frozen: []string{"100"}})
}

func TestGuardWakesToFreezeAndToConfirm(t *testing.T) {
	d := protected(t)
	for _, tt := range []struct{ now, want time.Duration }{{2 * sec, 2250 * ms}, {9900 * ms, 10 * sec}} {
		if got := d.g.Next(tt.now); got != tt.want {
			t.Errorf("Next(%v) = %v, want %v", tt.now, got, tt.want)
		}
	}
	d.step(10*sec, lease.Tick{}, lease.Freeze{Group: group("100", 3)})
	if got := d.g.Next(10 * sec); got != 10*sec+10*ms {
		t.Errorf("Next while freezing = %v", got)
	}
}
