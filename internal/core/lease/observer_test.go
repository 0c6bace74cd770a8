package lease_test

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"sauh.dev/sauh/internal/core/lease"
)

func TestANodeIsTakenOnlyAfterItsLeaseCanNoLongerLast(t *testing.T) {
	o := lease.NewObserver(lease.DefaultParams(), "")
	o.Note("n1", live(3, 0), 40, 100*sec)
	v := o.MayTake("n1", 110*sec)
	want := lease.Verdict{Wait: 520 * ms, Reason: "silent for 10s of 10.52s", Live: live(3, 0), Revision: 40, Present: math.MaxInt64, Silent: 10 * sec}
	if diff := cmp.Diff(want, v); diff != "" {
		t.Error(diff)
	}
	if v := o.MayTake("n1", 110*sec+520*ms); !v.May || v.Revision != 40 {
		t.Errorf("after the whole wait: %+v", v)
	}
}

func TestTheSameRevisionSeenAgainIsNoArrival(t *testing.T) {
	o := lease.NewObserver(lease.DefaultParams(), "me")
	o.Note("n1", live(0, 0), 40, 100*sec)
	o.Note("n1", live(0, 0), 40, 105*sec)
	o.Note("n1", live(0, 0), 39, 106*sec)
	if got, _ := o.Silence("n1", 107*sec); got != 7*sec {
		t.Errorf("silence = %v, want 7s", got)
	}
	o.Note("n1", live(0, sec), 41, 107*sec)
	if got, _ := o.Silence("n1", 108*sec); got != sec {
		t.Errorf("silence after a renewal = %v, want 1s", got)
	}
}

func TestAnUnknownNodeIsNeverTaken(t *testing.T) {
	o := lease.NewObserver(lease.DefaultParams(), "me")
	if v := o.MayTake("n9", 1000*sec); v.May || v.Reason == "" {
		t.Errorf("verdict on a node never seen: %+v", v)
	}
	o.Note("n1", live(0, 0), 1, 0)
	o.Forget("n1")
	if v := o.MayTake("n1", 1000*sec); v.May {
		t.Errorf("verdict on a node forgotten: %+v", v)
	}
}

func TestANodeThatLeftOrWasFencedIsTakenAtOnce(t *testing.T) {
	o := lease.NewObserver(lease.DefaultParams(), "me")
	l := live(0, 0)
	l.Left = true
	o.Note("left", l, 1, sec)
	o.Note("cut", lease.Cut(live(0, 0), "n2"), 2, sec)
	for _, node := range []string{"left", "cut"} {
		if v := o.MayTake(node, sec); !v.May {
			t.Errorf("%s: %+v", node, v)
		}
		if o.Online(node, sec) {
			t.Errorf("%s is online", node)
		}
	}
}

func TestThreeMissedRenewalsMakeANodeSuspect(t *testing.T) {
	o := lease.NewObserver(lease.DefaultParams(), "me")
	o.Note("n1", live(0, 0), 1, 0)
	for _, tt := range []struct {
		now  time.Duration
		want bool
	}{{2999 * ms, false}, {3 * sec, true}} {
		if got := o.Suspect("n1", tt.now); got != tt.want || o.Online("n1", tt.now) == tt.want {
			t.Errorf("suspect after %v = %v, want %v", tt.now, got, tt.want)
		}
	}
	if !o.Suspect("n9", 0) {
		t.Error("a node never seen is not suspect")
	}
}

func TestTheCutRaisesTheEpochAndNamesWhoMadeIt(t *testing.T) {
	l := live(3, 5*sec)
	l.Left = true
	want := live(4, 5*sec)
	want.Fenced, want.By = true, "n2"
	if diff := cmp.Diff(want, lease.Cut(l, "n2")); diff != "" {
		t.Error(diff)
	}
}

func TestANodeThatWasCutOffItselfTakesNobodyUntilItIsBackForAWhile(t *testing.T) {
	o := lease.NewObserver(lease.DefaultParams(), "me")
	o.Note("me", live(1, 0), 40, 100*sec)
	o.Note("n2", live(1, 0), 41, 100*sec)
	may := func(now time.Duration, want bool, wait time.Duration, present time.Duration) {
		t.Helper()
		if v := o.MayTake("n2", now); v.May != want || v.Wait != wait || v.Silent > present {
			t.Errorf("at %v: %+v, want %v after %v", now, v, want, wait)
		}
		if got := o.Present(now); got != present {
			t.Errorf("at %v: present for %v, want %v", now, got, present)
		}
	}
	may(160*sec, false, 0, 0) // all networks were gone for a minute: nobody renewed
	o.Note("me", live(1, sec), 50, 160*sec)
	may(160*sec, false, 5*sec, 0)
	for s := range 4 {
		o.Note("me", live(1, sec), int64(51+s), time.Duration(161+s)*sec)
	}
	may(164*sec, false, sec, 4*sec)
	o.Note("me", live(1, sec), 60, 165*sec)
	may(165*sec, true, 0, 5*sec) // n2 did not come back with it
	o.Note("n2", live(1, sec), 61, 165*sec)
	may(165*sec, false, 10520*ms, 5*sec)
}

func TestAShortGapInTheOwnRenewalsDelaysNoTakeover(t *testing.T) {
	o := lease.NewObserver(lease.DefaultParams(), "me")
	o.Note("n2", live(1, 0), 40, 100*sec)
	o.Note("me", live(1, 0), 41, 106*sec)
	o.Note("me", live(1, 0), 42, 110*sec) // the store changed its leader
	if v := o.MayTake("n2", 111*sec); !v.May {
		t.Errorf("%+v", v)
	}
}
