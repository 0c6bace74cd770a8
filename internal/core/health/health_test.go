package health

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

// stage is a storage and the time.
type stage struct {
	s   *Storage
	now time.Time
}

func newStage() *stage {
	st := &stage{NewStorage(DefaultParams()), time.Unix(1_700_000_000, 0)}
	st.s.Look(st.now)
	return st
}

// pass lets time go by second by second and returns the last verdict.
func (st *stage) pass(d time.Duration) Verdict {
	v := st.s.Look(st.now)
	for ; d > 0; d -= time.Second {
		st.now = st.now.Add(min(d, time.Second))
		v = st.s.Look(st.now)
	}
	return v
}

// probe asks and answers at once, then waits for the next one.
func (st *stage) probe(failure string) Verdict {
	st.s.Asked()
	st.s.Answered(failure)
	st.pass(0)
	return st.pass(st.s.p.ProbeEvery)
}

func wantVerdict(t *testing.T, got, want Verdict) {
	t.Helper()
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAStorageThatDoesNotAnswerIsLostAfterTwelveSeconds(t *testing.T) {
	st := newStage()
	st.probe("")
	st.s.Asked()
	wantVerdict(t, st.pass(12*time.Second-1), Verdict{})
	wantVerdict(t, st.pass(1), Verdict{true, "no answer for 12s"})
}

func TestAStorageThatAnswersSlowlyIsNotLost(t *testing.T) {
	st := newStage()
	for range 10 {
		st.s.Asked()
		wantVerdict(t, st.pass(11*time.Second), Verdict{})
		st.s.Answered("")
	}
}

func TestAStorageThatOnlyFailsIsLostAsSoonAsOneThatHangs(t *testing.T) {
	st := newStage()
	for range 3 {
		wantVerdict(t, st.probe("input/output error"), Verdict{})
	}
	st.probe("")
	for range 3 {
		wantVerdict(t, st.probe("input/output error"), Verdict{})
	}
	wantVerdict(t, st.probe("read-only file system"), Verdict{true, "4 probes in a row failed: read-only file system"})
}

func TestAStorageThatFailsAndThenHangsHasGivenNoAnswerSinceItFailed(t *testing.T) {
	st := newStage()
	st.probe("input/output error")
	st.probe("input/output error")
	st.s.Asked()
	wantVerdict(t, st.pass(6*time.Second-1), Verdict{})
	wantVerdict(t, st.pass(1), Verdict{true, "2 probes in a row failed: input/output error"})
}

// Whichever way nodes find a fault that they share, with guests there or without.
func TestNodesFindAFaultWithinTheirSpreadOfOneAnother(t *testing.T) {
	p := DefaultParams()
	found := func(late time.Duration, fails bool, guests int) time.Duration {
		st := newStage()
		var at time.Duration
		for id := range guests {
			st.s.GuestError(fmt.Sprint(100+id), "Input/output error")
		}
		begun := false
		for v := (Verdict{}); !v.Lost; at += p.Tick {
			if (at-late)%p.ProbeEvery == 0 && at >= late && (fails || !begun) {
				st.s.Asked()
				begun = true
				if fails {
					st.s.Answered("input/output error")
				}
			}
			v = st.pass(p.Tick)
		}
		return at
	}
	first, last := time.Hour, time.Duration(0)
	for late := range p.ProbeEvery / p.Tick {
		for _, fails := range []bool{false, true} {
			for guests := range 5 {
				at := found(late*p.Tick, fails, guests)
				first, last = min(first, at), max(last, at)
			}
		}
	}
	if first < p.LostAfter || last-first > p.Spread()-2*p.Tick || last+p.Spread() > 24*time.Second {
		t.Errorf("found after %s to %s", first, last)
	}
}

func TestWhatWasLostBeforeIsLostUntilItIsProvedToBeBack(t *testing.T) {
	st := &stage{LostStorage(DefaultParams()), time.Unix(1_700_000_000, 0)}
	for range 9 {
		if v := st.probe(""); !v.Lost || v.Reason == "" {
			t.Fatalf("%+v", v)
		}
	}
	wantVerdict(t, st.probe(""), Verdict{})
}

func TestALostStorageIsBackAfterTenGoodProbesInARow(t *testing.T) {
	st := newStage()
	st.s.Asked()
	lost := st.pass(20 * time.Second)
	st.s.Answered("")
	for range 8 {
		wantVerdict(t, st.probe(""), lost)
	}
	wantVerdict(t, st.probe("again"), lost)
	for range 9 {
		wantVerdict(t, st.probe(""), lost)
	}
	wantVerdict(t, st.probe(""), Verdict{})
}

func TestErrorsOfThreeGuestsLoseAStorageWhoseProbesAreGood(t *testing.T) {
	st := newStage()
	st.s.GuestError("100", "Input/output error")
	st.probe("")
	for range 5 {
		st.s.GuestError("101", "Input/output error") // one guest, however often
	}
	wantVerdict(t, st.probe(""), Verdict{})
	st.s.GuestError("102", "Input/output error")
	lost := Verdict{true, "I/O errors of guests 100, 101, 102: Input/output error"}
	wantVerdict(t, st.probe(""), Verdict{})
	wantVerdict(t, st.probe(""), lost)
	wantVerdict(t, st.probe(""), lost)
	for range 10 { // too few guests complain by now, and ten good probes count from then on
		wantVerdict(t, st.probe(""), lost)
	}
	wantVerdict(t, st.probe(""), Verdict{})
}

func TestErrorsOfGuestsAreForgottenAfterAWhile(t *testing.T) {
	st := newStage()
	for _, guest := range []string{"100", "101", "102", "103"} {
		st.s.GuestError(guest, "Input/output error")
		wantVerdict(t, st.pass(8*time.Second), Verdict{})
	}
}

func TestErrorsOfGuestsCountWithProbesThatFailNowAndThen(t *testing.T) {
	st := newStage()
	st.s.GuestError("100", "Input/output error")
	st.s.GuestError("101", "Input/output error")
	st.probe("")
	st.probe("")
	wantVerdict(t, st.probe(""), Verdict{})
	wantVerdict(t, st.probe("input/output error"), Verdict{
		true,
		"a probe failed: input/output error; I/O errors of guests 100, 101: Input/output error",
	})
}

func TestTimeInWhichThisProgramStoodStillIsNoSilence(t *testing.T) {
	st := newStage()
	st.s.Asked()
	st.now = st.now.Add(2 * time.Minute)
	wantVerdict(t, st.pass(0), Verdict{})
	wantVerdict(t, st.pass(9*time.Second), Verdict{})
	wantVerdict(t, st.pass(time.Second), Verdict{true, "no answer for 12s"})

	l, now := NewLink(DefaultParams()), st.now
	l.Look(now, down())
	wantVerdict(t, l.Look(now.Add(2*time.Minute), down()), Verdict{})
}

// However probes and guests behave: a storage is lost only with a reason, and none is lost or back sooner than the parameters say.
func TestAStorageNeverFlapsFasterThanItMay(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 0))
	for range 200 {
		st := newStage()
		was, changed, asked := Verdict{}, st.now, false
		for range 600 {
			switch n := r.IntN(12); {
			case n < 4 && asked:
				st.s.Answered("")
				asked = false
			case n == 4 && asked:
				st.s.Answered("x")
				asked = false
			case n < 9 && !asked:
				st.s.Asked()
				asked = true
			case n == 9:
				st.s.GuestError(fmt.Sprint(100+r.IntN(4)), "y")
			}
			v := st.pass(time.Second)
			if v.Lost == was.Lost {
				continue
			}
			if v.Lost != (v.Reason != "") {
				t.Fatalf("lost without a reason, or the other way round: %+v", v)
			}
			if !v.Lost && st.now.Sub(changed) < 6*time.Second {
				t.Fatalf("back after %s", st.now.Sub(changed))
			}
			was, changed = v, st.now
		}
	}
}

func up() Bridge {
	return Bridge{There: true, Up: true, Cards: []Card{{"eth0", false, "lowerlayerdown"}, {"eth1", true, "up"}}}
}

func down() Bridge {
	return Bridge{There: true, Up: true, Cards: []Card{{"eth0", false, "lowerlayerdown"}, {"eth1", false, "dormant"}}}
}

// watchLink shows a link the same thing each second and returns the last verdict.
func watchLink(l *Link, now *time.Time, b Bridge, seconds int) Verdict {
	var v Verdict
	for range seconds {
		v = l.Look(*now, b)
		*now = now.Add(time.Second)
	}
	return v
}

func TestALinkIsDownAfterThreeSecondsAndUpAfterTen(t *testing.T) {
	l, now := NewLink(DefaultParams()), time.Unix(1_700_000_000, 0)
	wantVerdict(t, watchLink(l, &now, up(), 5), Verdict{})
	wantVerdict(t, watchLink(l, &now, down(), 3), Verdict{})
	wantVerdict(t, watchLink(l, &now, up(), 1), Verdict{}) // a short break starts the count anew
	wantVerdict(t, watchLink(l, &now, down(), 3), Verdict{})
	lost := Verdict{true, "no network card has a link: eth0 is lowerlayerdown, eth1 is dormant"}
	wantVerdict(t, watchLink(l, &now, down(), 1), lost)
	wantVerdict(t, watchLink(l, &now, up(), 10), lost)
	wantVerdict(t, watchLink(l, &now, down(), 1), lost)
	wantVerdict(t, watchLink(l, &now, up(), 10), lost)
	wantVerdict(t, watchLink(l, &now, up(), 1), Verdict{})
}

func TestEachWayToLoseANetworkHasItsReason(t *testing.T) {
	for want, b := range map[string]Bridge{
		"the bridge is not there":              {},
		"the bridge is switched off":           {There: true, Cards: up().Cards},
		"the bridge has lost its network card": {There: true, Up: true},
	} {
		l, now := NewLink(DefaultParams()), time.Unix(1_700_000_000, 0)
		watchLink(l, &now, up(), 1)
		wantVerdict(t, watchLink(l, &now, b, 4), Verdict{true, want})
	}
}

func TestABridgeThatNeverHadACardHasNoLinkToLose(t *testing.T) {
	l, now := NewLink(DefaultParams()), time.Unix(1_700_000_000, 0)
	wantVerdict(t, watchLink(l, &now, Bridge{There: true, Up: true}, 60), Verdict{})
}

// ask asks a guest n times and has each question end the same way.
func ask(g *Guest, n int, miss string) {
	for range n {
		if q, ok := g.Ask(); ok {
			g.Answered(q, miss)
		}
	}
}

func runningGuest() *Guest {
	g := NewGuest(DefaultParams())
	g.Observe(Incident{Kind: StatusKnown, Status: "running"})
	return g
}

func wantCondition(t *testing.T, g *Guest, want Condition) {
	t.Helper()
	if diff := cmp.Diff(want, g.Condition()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func TestAGuestThatAnsweredOnceAndDoesNotAnyMoreIsSilent(t *testing.T) {
	g := runningGuest()
	wantCondition(t, g, Condition{})
	ask(g, 1, "")
	wantCondition(t, g, Condition{Answers: true})
	ask(g, 2, "timeout")
	wantCondition(t, g, Condition{Answers: true})
	ask(g, 1, "")
	ask(g, 2, "timeout")
	wantCondition(t, g, Condition{Answers: true})
	ask(g, 1, "timeout")
	wantCondition(t, g, Condition{true, SickSilent, "its agent left 3 questions in a row unanswered: timeout"})
	ask(g, 1, "")
	wantCondition(t, g, Condition{Answers: true})
}

func TestAGuestWithoutAnAgentIsNeverSilent(t *testing.T) {
	g := runningGuest()
	ask(g, 100, "timeout")
	wantCondition(t, g, Condition{})
}

func TestAGuestThatBootsAnewIsGivenItsTime(t *testing.T) {
	g := runningGuest()
	ask(g, 1, "")
	ask(g, 2, "timeout")
	q, _ := g.Ask()
	g.Observe(Incident{Kind: Reset})
	wantCondition(t, g, Condition{})
	g.Answered(q, "") // from before
	ask(g, 100, "timeout")
	wantCondition(t, g, Condition{})
	ask(g, 1, "")
	wantCondition(t, g, Condition{Answers: true})
}

func TestTheSilenceOfAGuestThatCannotAnswerDoesNotCount(t *testing.T) {
	for name, c := range map[string]struct{ begin, end func(g *Guest) }{
		"paused": {
			func(g *Guest) { g.Observe(Incident{Kind: Stopped}) },
			func(g *Guest) { g.Observe(Incident{Kind: Resumed}) },
		},
		"paused, by QEMU's status": {
			func(g *Guest) { g.Observe(Incident{Kind: StatusKnown, Status: "io-error"}) },
			func(g *Guest) { g.Observe(Incident{Kind: StatusKnown, Status: "running"}) },
		},
		"frozen": {func(g *Guest) { g.Hold("frozen") }, func(g *Guest) { g.Hold("") }},
	} {
		t.Run(name, func(t *testing.T) {
			g := runningGuest()
			ask(g, 1, "")
			ask(g, 2, "timeout")
			before, ok := g.Ask()
			if !ok {
				t.Fatal("a guest that runs is not asked")
			}
			c.begin(g)
			if _, ok := g.Ask(); ok {
				t.Error("it is asked")
			}
			g.Answered(before, "timeout")
			c.end(g)
			ask(g, 2, "timeout") // and counted from the beginning
			wantCondition(t, g, Condition{Answers: true})
			ask(g, 1, "timeout")
			if g.Condition().Sick != SickSilent {
				t.Error("it is not silent when it could answer again")
			}
		})
	}
}

func TestAnAnswerCountsEvenIfTheGuestWasPausedMeanwhile(t *testing.T) {
	g := runningGuest()
	q, _ := g.Ask()
	g.Observe(Incident{Kind: Stopped})
	g.Answered(q, "")
	wantCondition(t, g, Condition{Answers: true})
}

func TestAPanickedGuestIsSickUntilItIsReset(t *testing.T) {
	g := runningGuest()
	ask(g, 1, "")
	g.Observe(Incident{Kind: Panicked, Action: "run"})
	ask(g, 5, "timeout")
	wantCondition(t, g, Condition{true, SickPanicked, "its kernel panicked"})
	g.Observe(Incident{Kind: Reset})
	wantCondition(t, g, Condition{})
}

func TestAPanicThatWasSeenBeforeCountsUntilTheGuestIsResetOrAnswers(t *testing.T) {
	before := Incident{Kind: PanickedBefore}
	want := Condition{Sick: SickPanicked, Reason: "its kernel has panicked, as was seen before this agent was started"}
	g := NewGuest(DefaultParams())
	g.Observe(before)
	g.Observe(Incident{Kind: StatusKnown, Status: "running"})
	ask(g, 5, "timeout")
	wantCondition(t, g, want)
	g.Observe(Incident{Kind: Reset})
	wantCondition(t, g, Condition{})

	g.Observe(before)
	wantCondition(t, g, want)
	ask(g, 1, "") // it has booted anew while nobody watched
	wantCondition(t, g, Condition{Answers: true})

	g.Observe(before)
	g.Observe(Incident{Kind: Panicked})
	ask(g, 1, "") // from before the panic that was seen
	wantCondition(t, g, Condition{true, SickPanicked, "its kernel panicked"})
}

func TestAPanicThatTheNodeBeforeSawCountsUnlessTheGuestHasLivedHereSince(t *testing.T) {
	moved := func(since func(*Guest)) *Guest {
		g := NewGuest(DefaultParams())
		g.Observe(Incident{Kind: StatusKnown, Status: "running"})
		since(g)
		g.Observe(Incident{Kind: PanickedElsewhere})
		return g
	}
	sick := Condition{Sick: SickPanicked, Reason: "its kernel has panicked, as the node has seen from which it came"}
	g := moved(func(*Guest) {})
	wantCondition(t, g, sick)
	g.Observe(Incident{Kind: Reset})
	wantCondition(t, g, Condition{})

	wantCondition(t, moved(func(g *Guest) { g.Observe(Incident{Kind: Reset}) }), Condition{})
	wantCondition(t, moved(func(g *Guest) { ask(g, 1, "") }), Condition{Answers: true})
	wantCondition(t, moved(func(g *Guest) { g.Observe(Incident{Kind: Panicked}) }), Condition{Sick: SickPanicked, Reason: "its kernel panicked"})
}

func TestAPanicThatNobodySawIsReadFromQEMUsStatus(t *testing.T) {
	g := NewGuest(DefaultParams())
	g.Observe(Incident{Kind: StatusKnown, Status: "guest-panicked"})
	wantCondition(t, g, Condition{Sick: SickPanicked, Reason: "it stands still since its kernel panicked"})
}

func TestAnIOErrorIsNotTheGuestsSickness(t *testing.T) {
	g := runningGuest()
	g.Observe(Incident{Kind: IOError, Disk: "virtio0", Reason: "Input/output error"})
	g.Observe(Incident{Kind: WatchdogFired, Action: "reset"})
	wantCondition(t, g, Condition{})
}

func TestAStorageIsInDoubtUntilItAnswersAndWhenItDoesNot(t *testing.T) {
	st := newStage()
	doubt := func(when string, want bool) {
		t.Helper()
		if got := st.s.Doubtful(); got != want {
			t.Errorf("%s: %v", when, got)
		}
	}
	doubt("nothing is known", true)
	st.probe("")
	doubt("it is well", false)
	st.s.Asked()
	st.pass(st.s.p.ProbeEvery - 1)
	doubt("it is slow", false)
	st.pass(1)
	doubt("it hangs", true)
	st.s.Answered("")
	st.pass(0)
	doubt("it was slow", false)
	st.probe("input/output error")
	doubt("it fails", true)
	st.probe("")
	doubt("it failed once", false)
	st.s = LostStorage(DefaultParams())
	for range st.s.p.Good - 1 {
		st.probe("")
	}
	doubt("it was lost, and is not proved to be back", true)
	st.probe("")
	doubt("it is", false)
}
