package fence_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	core "sauh.dev/sauh/internal/core/fence"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/fence"
)

const (
	uuid  = "4c4c4544-004a-3810-8051-b4c04f433232"
	other = "4c4c4544-004a-3810-8051-b4c04f433299"
)

var errBroken = errors.New("broken")

// fake is a BMC of a test in a bubble: it answers after delay what power says.
type fake struct {
	delay, offAfter time.Duration
	id              string
	deaf, forgets   bool // it ignores its context; it forgets the first order
	fails           int  // status questions that fail

	power  core.PowerState
	offAt  time.Time // when an order takes effect
	orders int
	asked  int
}

func clock(start time.Time) func() time.Duration {
	return func() time.Duration { return time.Since(start) + time.Hour }
}

type timed struct {
	*fake
	now func() time.Duration
}

func (b timed) Status(ctx context.Context) (core.Reading, error) {
	r := core.Reading{Power: b.power, UUID: b.id, Asked: b.now()}
	if !b.offAt.IsZero() && !time.Now().Before(b.offAt) {
		r.Power = core.Off
	}
	b.asked++
	if b.deaf {
		<-time.After(b.delay)
	} else {
		select {
		case <-ctx.Done():
			return core.Reading{}, context.Cause(ctx)
		case <-time.After(b.delay):
		}
	}
	if b.fails > 0 {
		b.fails--
		return core.Reading{}, errBroken
	}
	r.Answered = b.now()
	return r, nil
}

func (b timed) PowerOff(ctx context.Context, same func(string) error) error {
	if err := same(b.id); err != nil {
		return err
	}
	b.orders++
	if b.forgets && b.orders == 1 {
		return nil
	}
	if b.offAt.IsZero() {
		b.offAt = time.Now().Add(b.offAfter)
	}
	return nil
}

// method is a BMC in a race, rehearsed.
func method(name string, b *fake, now func() time.Duration) fence.Method {
	m := core.Method{
		Name: name, Node: "n2", Kind: core.Power, UUID: uuid, Gap: 400 * time.Millisecond, Digest: "d", Rehearsal: core.Rehearsal{Digest: "d", At: 1},
	}
	return fence.Method{Method: m, Fencer: fence.Power(timed{b, now}, m), AskTimeout: 2 * time.Second, Timeout: 10 * time.Second}
}

func silent() []core.Sign { return nil }

// reasons maps the methods to what became of them, "proof" for one.
func reasons(o fence.Outcome) map[string]string {
	out := map[string]string{}
	for _, s := range o.Said {
		out[s.Method] = s.Reason
		if s.Proof != nil {
			out[s.Method] = "proof"
		}
	}
	return out
}

func TestAskingANodeThatIsOffIsAProofAfterTheGapAndHarmsNobody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now, start := clock(time.Now()), time.Now()
		b := &fake{id: uuid, power: core.Off, delay: 5 * time.Millisecond}
		set := fence.NewSet("n2", nil, now, method("a", b, now))
		defer set.Close()
		got := set.Ask(t.Context(), silent)
		want := &core.Proof{Node: "n2", Method: "a", Kind: core.Power, Grade: core.Rehearsed, Since: time.Hour, Lasted: 400 * time.Millisecond}
		if diff := cmp.Diff(want, got.Proof); diff != "" {
			t.Errorf("%+v (-want +got):\n%s", got.Said, diff)
		}
		if took := time.Since(start); took != 410*time.Millisecond || b.asked != 2 || b.orders != 0 {
			t.Errorf("took %v, %d questions, %d orders", took, b.asked, b.orders)
		}
	})
}

func TestAskingANodeThatIsOnAsksOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := clock(time.Now())
		b := &fake{id: uuid, power: core.On}
		set := fence.NewSet("n2", nil, now, method("a", b, now))
		defer set.Close()
		got := set.Ask(t.Context(), silent)
		if got.Proof != nil || !errors.Is(got.Said[0].Err, core.ErrNotOff) || b.asked != 1 || b.orders != 0 {
			t.Errorf("%+v, %d questions, %d orders", got, b.asked, b.orders)
		}
	})
}

func TestTheFirstProofWinsAndTheOthersAreCancelled(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now, start := clock(time.Now()), time.Now()
		set := fence.NewSet("n2", nil, now,
			method("hangs", &fake{id: uuid, power: core.On, delay: time.Hour}, now),
			method("slow", &fake{id: uuid, power: core.On, offAfter: 5 * time.Second}, now),
			method("fast", &fake{id: uuid, power: core.On, offAfter: time.Second}, now))
		got := set.Shoot(t.Context(), time.Hour, silent, nil)
		want := map[string]string{"hangs": fence.ErrBeaten.Error(), "slow": fence.ErrBeaten.Error(), "fast": "proof"}
		if diff := cmp.Diff(want, reasons(got)); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
		if took := time.Since(start); took > 1700*time.Millisecond {
			t.Errorf("it took %v", took)
		}
		set.Close() // all others end at once
		if took := time.Since(start); took > 1700*time.Millisecond {
			t.Errorf("the others ended after %v", took)
		}
	})
}

func TestAMethodThatIgnoresItsDeadlineCostsNothingBeyondIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now, start := clock(time.Now()), time.Now()
		set := fence.NewSet("n2", nil, now, method("deaf", &fake{id: uuid, power: core.Off, delay: time.Hour, deaf: true}, now))
		got := set.Ask(t.Context(), silent)
		if took := time.Since(start); got.Proof != nil || !errors.Is(got.Said[0].Err, fence.ErrTimeout) || took > 2500*time.Millisecond {
			t.Errorf("%+v after %v", got, took)
		}
		if again := set.Ask(t.Context(), silent); !errors.Is(again.Said[0].Err, fence.ErrBusy) {
			t.Errorf("while it hangs: %+v", again)
		}
		set.Close()
	})
}

func TestMethodsOfAHigherOrderFollowWhenTheLowerOnesFailed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := clock(time.Now())
		last, first := &fake{id: uuid, power: core.On}, &fake{id: uuid, power: core.On, delay: time.Hour}
		second := method("second", last, now)
		second.Order = 1
		set := fence.NewSet("n2", nil, now, second, method("first", first, now))
		defer set.Close()
		start := time.Now()
		got := set.Shoot(t.Context(), time.Hour, silent, nil)
		if got.Proof == nil || got.Proof.Method != "second" || time.Since(start) < 10*time.Second || time.Since(start) > 11*time.Second {
			t.Errorf("%+v after %v", got, time.Since(start))
		}
		if got.Said[0].Method != "first" || !errors.Is(got.Said[0].Err, fence.ErrTimeout) {
			t.Errorf("%+v", got.Said)
		}
	})
}

func TestANodeThatIsHeardOfDuringTheDelayIsNotShot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := clock(time.Now())
		b := &fake{id: uuid, power: core.On}
		m := method("a", b, now)
		m.Delay = 2 * time.Second
		set := fence.NewSet("n2", nil, now, m)
		defer set.Close()
		heard := now() + time.Second
		got := set.Shoot(t.Context(), now(), func() []core.Sign { return []core.Sign{{Kind: core.Beacon, At: heard}} }, nil)
		if got.Proof != nil || !errors.Is(got.Said[0].Err, fence.ErrHeardOf) || b.orders != 0 {
			t.Errorf("%+v, %d orders", got, b.orders)
		}
	})
}

func TestASignAfterTheReadingVoidsTheProof(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := clock(time.Now())
		set := fence.NewSet("n2", nil, now, method("liar", &fake{id: uuid, power: core.Off}, now))
		defer set.Close()
		heard := now() + 100*time.Millisecond
		got := set.Ask(t.Context(), func() []core.Sign { return []core.Sign{{Kind: core.Renewal, At: heard}} })
		if got.Proof != nil || !errors.Is(got.Said[0].Err, core.ErrAlive) {
			t.Errorf("%+v", got)
		}
	})
}

func TestABMCOfAnotherMachineIsNeitherBelievedNorOrdered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := clock(time.Now())
		b := &fake{id: other, power: core.Off}
		set := fence.NewSet("n2", nil, now, method("stranger", b, now))
		defer set.Close()
		for _, got := range []fence.Outcome{set.Ask(t.Context(), silent), set.Shoot(t.Context(), time.Hour, silent, nil)} {
			if got.Proof != nil || !errors.Is(got.Said[0].Err, core.ErrStranger) || b.orders != 0 {
				t.Errorf("%+v, %d orders", got, b.orders)
			}
		}
	})
}

func TestAMethodWhoseRehearsalFailedIsNotEvenAsked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := clock(time.Now())
		b := &fake{id: uuid, power: core.Off}
		m := method("a", b, now)
		m.Rehearsal = core.Rehearsal{At: 1, Digest: "d", Failed: "it was on fire"}
		set := fence.NewSet("n2", nil, now, m)
		defer set.Close()
		for _, got := range []fence.Outcome{set.Ask(t.Context(), silent), set.Shoot(t.Context(), time.Hour, silent, nil)} {
			if got.Proof != nil || !errors.Is(got.Said[0].Err, core.ErrRehearsalFailed) || b.asked+b.orders != 0 {
				t.Errorf("%+v", got)
			}
		}
		if got := set.Methods(); got[0].Grade != core.Worthless || got[0].Reason == "" {
			t.Errorf("%+v", got)
		}
	})
}

func TestAnOrderWithoutEffectIsGivenAgainAndAReadingThatFailsIsRepeated(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now, start := clock(time.Now()), time.Now()
		b := &fake{id: uuid, power: core.On, forgets: true, fails: 3}
		set := fence.NewSet("n2", nil, now, method("a", b, now))
		defer set.Close()
		got := set.Shoot(t.Context(), time.Hour, silent, nil)
		if got.Proof == nil || b.orders != 2 || time.Since(start) > 4*time.Second {
			t.Errorf("%+v, %d orders after %v", got, b.orders, time.Since(start))
		}
	})
}

func TestANodeThatDoesNotGoOffIsNoProofAtTheEndOfItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now, start := clock(time.Now()), time.Now()
		b := &fake{id: uuid, power: core.On, offAfter: time.Hour}
		set := fence.NewSet("n2", nil, now, method("a", b, now))
		got := set.Shoot(t.Context(), time.Hour, silent, nil)
		if got.Proof != nil || got.Said[0].Err == nil || time.Since(start) > 10*time.Second+time.Second {
			t.Errorf("%+v after %v", got, time.Since(start))
		}
		set.Close()
	})
}

// storage is a Fencer that covers some guests.
type storage struct {
	after  time.Duration
	guests []model.VMID
	now    func() time.Duration
}

func (s storage) Ask(ctx context.Context) (core.Evidence, error) { return s.Shoot(ctx) }

func (s storage) Shoot(ctx context.Context) (core.Evidence, error) {
	select {
	case <-ctx.Done():
		return core.Evidence{}, context.Cause(ctx)
	case <-time.After(s.after):
	}
	return core.Evidence{Refusal: &core.Refusal{At: s.now(), Guests: s.guests}}, nil
}

func (s storage) Rehearse(context.Context) error { return nil }

func TestAfterAProofAboutSomeGuestsTheRaceGoesOn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for _, c := range []struct {
			guests  []model.VMID
			winner  string
			partial int
		}{{[]model.VMID{100, 101}, "bmc", 1}, {[]model.VMID{100}, "ceph", 0}, {nil, "bmc", 1}} {
			now := clock(time.Now())
			ceph := fence.Method{
				Method: core.Method{Name: "ceph", Node: "n2", Kind: core.Storage}, Timeout: 10 * time.Second,
				Fencer: storage{after: time.Second, guests: []model.VMID{100}, now: now},
			}
			set := fence.NewSet("n2", c.guests, now, method("bmc", &fake{id: uuid, power: core.On, offAfter: 3 * time.Second}, now), ceph)
			got := set.Shoot(t.Context(), time.Hour, silent, nil)
			if got.Proof == nil || got.Proof.Method != c.winner || len(got.Partial) != c.partial {
				t.Errorf("%v: %+v", c.guests, got)
			}
			set.Close()
		}
	})
}

func TestRehearsals(t *testing.T) {
	const s = time.Second
	for _, c := range []struct {
		name      string
		bmc       fake
		switching bool
		// lives is how long after the beginning beacons come every 200 ms; 0 for not at all.
		lives  time.Duration
		failed error
		early  bool
	}{
		{name: "a node that is on", bmc: fake{id: uuid, power: core.On}, lives: time.Hour},
		{name: "a BMC that says off of a node that runs", bmc: fake{id: uuid, power: core.Off}, lives: time.Hour, failed: errBroken},
		{name: "another machine's", bmc: fake{id: other, power: core.On}, lives: time.Hour, failed: core.ErrStranger},
		{name: "one that hangs", bmc: fake{id: uuid, power: core.On, delay: time.Hour}, failed: fence.ErrTimeout},
		{name: "switched", bmc: fake{id: uuid, power: core.On, offAfter: 2 * s}, switching: true, lives: 2 * s},
		{name: "switched, early", bmc: fake{id: uuid, power: core.On, offAfter: s}, switching: true, lives: 2 * s, early: true},
		{name: "said off, and goes on", bmc: fake{id: uuid, power: core.On, offAfter: s}, switching: true, lives: time.Hour, failed: core.ErrAlive},
		{name: "does not go off", bmc: fake{id: uuid, power: core.On, offAfter: time.Hour}, switching: true, lives: time.Hour, failed: fence.ErrTimeout},
	} {
		synctest.Test(t, func(t *testing.T) {
			now, start := clock(time.Now()), time.Now()
			signs := func() []core.Sign {
				heard := min(time.Since(start), c.lives).Truncate(200 * time.Millisecond)
				return []core.Sign{{Kind: core.Beacon, At: time.Hour + heard}}
			}
			b := c.bmc
			set := fence.NewSet("n2", nil, now, method("a", &b, now))
			defer set.Close()
			how := fence.Rehearsing{At: 7, Signs: signs}
			if c.switching {
				how.Switch = func(context.Context) error { return nil }
			}
			got := set.Rehearse(t.Context(), how)[0]
			passed := c.failed == nil
			if (got.Failed == "") != passed || got.Switched != (c.switching && passed) || got.Refuted != (c.switching && !passed) || got.Digest != "d" || got.At != 7 {
				t.Errorf("%s: %+v", c.name, got)
			}
			if (got.Early > 0) != c.early {
				t.Errorf("%s: early by %v", c.name, got.Early)
			}
			if !c.switching && b.orders > 0 {
				t.Errorf("%s: %d orders", c.name, b.orders)
			}
		})
	}
}

func TestARehearsalBySwitchingEndsWithTheFirstMethodThatSwitched(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := clock(time.Now())
		b, failing := &fake{id: uuid, power: core.On}, &fake{id: other, power: core.On}
		ceph := fence.Method{Method: core.Method{Name: "ceph", Node: "n2", Kind: core.Storage}, Timeout: time.Second, Fencer: storage{now: now}}
		set := fence.NewSet("n2", nil, now, method("stranger", failing, now), method("bmc", b, now), ceph, method("pdu", b, now))
		defer set.Close()
		try := func(names ...string) (out []string) {
			b.offAt = time.Time{} // somebody switched it on
			how := fence.Rehearsing{At: 7, Signs: silent, Switch: func(context.Context) error { return nil }, Names: names}
			for _, r := range set.Rehearse(t.Context(), how) {
				out = append(out, fmt.Sprint(r.Method, " ", r.Switched, " ", r.Failed == ""))
			}
			return out
		}
		if diff := cmp.Diff([]string{"stranger false false", "bmc true true"}, try()); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff([]string{"ceph false true", "pdu true true"}, try("ceph", "pdu", "bmc")); diff != "" {
			t.Error(diff)
		}
	})
}

func TestARehearsalSwitchesNothingThatMustNotBeSwitchedAtThatMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := clock(time.Now())
		b := &fake{id: uuid, power: core.On}
		set := fence.NewSet("n2", nil, now, method("bmc", b, now))
		defer set.Close()
		got := set.Rehearse(t.Context(), fence.Rehearsing{At: 7, Signs: silent, Switch: func(context.Context) error { return errBroken }})
		if len(got) != 1 || got[0].Failed != errBroken.Error() || got[0].Switched || got[0].Refuted || b.orders != 0 {
			t.Errorf("%+v, %d orders", got, b.orders)
		}
	})
}
