package lease_test

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
)

const (
	ms  = time.Millisecond
	sec = time.Second
)

// dialogue drives a Renewer: each line is a time, an event and what must come of it.
type dialogue struct {
	t *testing.T
	r lease.Renewer
}

func newDialogue(t *testing.T, boot string) *dialogue {
	return &dialogue{t, lease.NewRenewer(lease.DefaultParams(), lease.Identity{BootID: boot, Online: 77})}
}

func (d *dialogue) step(now time.Duration, ev lease.Event, want ...lease.Action) {
	d.t.Helper()
	var got []lease.Action
	d.r, got = d.r.Step(now, ev)
	if diff := cmp.Diff(want, got); diff != "" {
		d.t.Fatalf("at %v after %T%+v (-want +got):\n%s", now, ev, ev, diff)
	}
}

// live is the record of boot "b" as an attempt sent at the time given writes it.
func live(epoch uint64, sent time.Duration) model.Live {
	return model.Live{BootID: "b", Epoch: epoch, Seq: uint64(sent / time.Microsecond), Online: 77}
}

func TestANodeRegistersAndRenewsEverySecondFromTheSendTime(t *testing.T) {
	d := newDialogue(t, "b")
	d.step(5*sec, lease.Tick{}, lease.Read{})
	d.step(5*sec+10*ms, lease.ReadMissing{}, lease.Register{Live: live(0, 5*sec+10*ms)})
	d.step(5*sec+400*ms, lease.Committed{Revision: 9}, lease.Extend{Deadline: 15*sec + 10*ms})
	d.step(6*sec, lease.Tick{})
	d.step(6*sec+10*ms, lease.Tick{}, lease.Renew{Live: live(0, 6*sec+10*ms), IfRevision: 9})
	d.step(6*sec+11*ms, lease.Tick{}) // one at a time
	d.step(7*sec+500*ms, lease.Committed{Revision: 12},
		lease.Extend{Deadline: 16*sec + 10*ms}, lease.Renew{Live: live(0, 7*sec+500*ms), IfRevision: 12})
}

func TestARenewalWhoseAnswerWasLostExtendsFromItsOwnSendTime(t *testing.T) {
	d := newDialogue(t, "b")
	d.step(1*sec, lease.Tick{}, lease.Read{})
	d.step(1*sec, lease.ReadBack{Live: live(3, 0), Revision: 4}, lease.Renew{Live: live(3, 1*sec), IfRevision: 4})
	d.step(2*sec, lease.Unknown{}, lease.Read{})
	// Not there yet: it is still in flight. A second attempt compares the same revision.
	d.step(2*sec, lease.ReadBack{Live: live(3, 0), Revision: 4}, lease.Renew{Live: live(3, 2*sec), IfRevision: 4})
	// The first attempt wins, late; the second is refused.
	d.step(3*sec, lease.Conflict{}, lease.Read{})
	d.step(3*sec, lease.ReadBack{Live: live(3, 1*sec), Revision: 5},
		lease.Extend{Epoch: 3, Deadline: 11 * sec}, lease.Renew{Live: live(3, 3*sec), IfRevision: 5})
}

func TestAnAgentRestartedInTheSameBootKeepsTheEpochAndRenewsBeforeItExtends(t *testing.T) {
	d := newDialogue(t, "b")
	old := live(4, 90*sec)
	old.Online = 11
	renewed := live(4, 100*sec)
	renewed.Online = 11
	d.step(100*sec, lease.Tick{}, lease.Read{})
	d.step(100*sec, lease.ReadBack{Live: old, Revision: 8}, lease.Renew{Live: renewed, IfRevision: 8})
	d.step(101*sec, lease.Committed{Revision: 9}, lease.Extend{Epoch: 4, Deadline: 110 * sec}, lease.Renew{Live: func() model.Live {
		l := live(4, 101*sec)
		l.Online = 11
		return l
	}(), IfRevision: 9})
}

// The attempt of an agent that died can be committed after its successor has started: the
// successor must not take it for its own, whose send time is later.
func TestAnAttemptOfAnEarlierAgentIsNotExtended(t *testing.T) {
	old := newDialogue(t, "b")
	old.step(1*sec, lease.Tick{}, lease.Read{})
	old.step(1*sec, lease.ReadBack{Live: live(0, 0), Revision: 4}, lease.Renew{Live: live(0, 1*sec), IfRevision: 4})

	d := newDialogue(t, "b")
	d.step(9*sec, lease.Tick{}, lease.Read{})
	d.step(9*sec, lease.ReadBack{Live: live(0, 0), Revision: 4}, lease.Renew{Live: live(0, 9*sec), IfRevision: 4})
	d.step(9*sec, lease.Conflict{}, lease.Read{})
	d.step(9*sec, lease.ReadBack{Live: live(0, 1*sec), Revision: 5},
		lease.Renew{Live: func() model.Live { l := live(0, 9*sec); l.Seq++; return l }(), IfRevision: 5})
}

func TestAFencedNodeRegistersOnlyAfterItsGuestsAreDead(t *testing.T) {
	d := newDialogue(t, "b")
	d.step(1*sec, lease.Tick{}, lease.Read{})
	d.step(1*sec, lease.ReadBack{Live: live(3, 0), Revision: 4}, lease.Renew{Live: live(3, 1*sec), IfRevision: 4})
	d.step(30*sec, lease.Conflict{}, lease.Read{})
	cut := lease.Cut(live(3, 0), "n2")
	d.step(30*sec, lease.ReadBack{Live: cut, Revision: 20}, lease.Fenced{Epoch: 4})
	d.step(40*sec, lease.Tick{})
	d.step(41*sec, lease.FencedHandled{Epoch: 3}) // of an earlier fencing: not enough
	d.step(42*sec, lease.FencedHandled{Epoch: 4}, lease.Register{Live: live(4, 42*sec), IfRevision: 20})
	d.step(42*sec+5*ms, lease.Unknown{}, lease.Read{})
	d.step(42*sec+9*ms, lease.ReadBack{Live: cut, Revision: 20}, lease.Register{Live: live(4, 42*sec+9*ms), IfRevision: 20})
	d.step(43*sec, lease.Committed{Revision: 21}, lease.Extend{Epoch: 4, Deadline: 52*sec + 9*ms})
	// And fenced again: handled again.
	d.step(44*sec, lease.Tick{}, lease.Renew{Live: live(4, 44*sec), IfRevision: 21})
	d.step(60*sec, lease.Conflict{}, lease.Read{})
	d.step(60*sec, lease.ReadBack{Live: lease.Cut(live(4, 43*sec), "n3"), Revision: 30}, lease.Fenced{Epoch: 5})
}

func TestAnAgentThatFindsItselfFencedInItsOwnBootHasTheGuestsKilled(t *testing.T) {
	d := newDialogue(t, "b")
	d.step(1*sec, lease.Tick{}, lease.Read{})
	d.step(1*sec, lease.ReadBack{Live: lease.Cut(live(0, 0), "n2"), Revision: 4}, lease.Fenced{Epoch: 1})
}

func TestANewBootNeedsNoKillingAndKeepsTheEpoch(t *testing.T) {
	for _, record := range []model.Live{
		{BootID: "a", Epoch: 6, Seq: 99, Online: 1},
		{BootID: "a", Epoch: 6, Seq: 99, Online: 1, Fenced: true, By: "n2"},
		{BootID: "a", Epoch: 6, Seq: 99, Online: 1, Left: true},
	} {
		d := newDialogue(t, "b")
		d.step(1*sec, lease.Tick{}, lease.Read{})
		d.step(1*sec, lease.ReadBack{Live: record, Revision: 4}, lease.Register{Live: live(6, 1*sec), IfRevision: 4})
	}
}

func TestANodeThatLeavesSaysSoAndExtendsNothing(t *testing.T) {
	d := newDialogue(t, "b")
	d.step(1*sec, lease.Tick{}, lease.Read{})
	d.step(1*sec, lease.ReadBack{Live: live(0, 0), Revision: 4}, lease.Renew{Live: live(0, 1*sec), IfRevision: 4})
	d.step(1*sec+ms, lease.Leave{}) // the renewal is out: its answer first
	leaving := live(0, 1*sec+2*ms)
	leaving.Left = true
	d.step(1*sec+2*ms, lease.Committed{Revision: 5}, lease.Extend{Deadline: 11 * sec}, lease.Renew{Live: leaving, IfRevision: 5})
	d.step(1*sec+4*ms, lease.Committed{Revision: 6})
	if _, ok := d.r.Wake(); ok {
		t.Error("a node that left wants to be woken")
	}
}

func TestANodeWhoseRecordIsGoneOrTakenKillsAndStops(t *testing.T) {
	start := func() *dialogue {
		d := newDialogue(t, "b")
		d.step(1*sec, lease.Tick{}, lease.Read{})
		d.step(1*sec, lease.ReadBack{Live: live(2, 0), Revision: 4}, lease.Renew{Live: live(2, 1*sec), IfRevision: 4})
		d.step(2*sec, lease.Conflict{}, lease.Read{})
		return d
	}
	start().step(2*sec, lease.ReadMissing{}, lease.Removed{Epoch: 3})
	start().step(2*sec, lease.ReadBack{Live: model.Live{BootID: "x", Epoch: 2}, Revision: 9}, lease.Removed{Epoch: 3})
}

func TestAStoreWithoutAQuorumIsAskedAtABoundedPace(t *testing.T) {
	d := newDialogue(t, "b")
	d.step(1*sec, lease.Tick{}, lease.Read{})
	d.step(2*sec, lease.Unknown{})
	d.step(2*sec+200*ms, lease.Tick{})
	d.step(2*sec+250*ms, lease.Tick{}, lease.Read{})
}

func TestANodeThatJoinsAgainStartsAtTheEpochOfItsGuard(t *testing.T) {
	d := &dialogue{t, lease.NewRenewer(lease.DefaultParams(), lease.Identity{BootID: "b", Online: 77, MinEpoch: 3})}
	d.step(1*sec, lease.Tick{}, lease.Read{})
	d.step(1*sec, lease.ReadMissing{}, lease.Register{Live: live(3, 1*sec)})
}
