package lease_test

import (
	"fmt"
	"testing"
	"time"

	"pgregory.net/rapid"

	"sauh.dev/sauh/internal/core/lease"
)

// world simulates what a Guard acts on: the kernel's cgroups, the watchdog, and
// a processor that may stop running the guard at any moment.
type world struct {
	now   time.Duration
	p     lease.Params
	g     lease.Guard
	wake  time.Duration // when the guard runs next
	calm  time.Duration // until then nothing stops the guard: one fault at a time
	armed bool
	fed   time.Duration
	reset bool

	cgroups   map[string]*cgroup
	permitted map[uint64]time.Duration // until when each epoch may run, as the renewals said
	stall     func() time.Duration     // how long the guard stands still before an action
	log       []string
}

type cgroup struct {
	lease.Group
	running  bool
	freezeAt time.Duration // when an ordered freeze takes hold; 0 if none is ordered
	dieAt    time.Duration
	latency  time.Duration // of a freeze or a kill; never if negative
	killed   bool
	dead     bool
}

func (w *world) note(format string, args ...any) {
	w.log = append(w.log, fmt.Sprintf("%v ", w.now)+fmt.Sprintf(format, args...))
}

// advance lets time pass to t, and the kernel and the watchdog do their part at each instant.
func (w *world) advance(t time.Duration) error {
	for w.now < t && !w.reset {
		w.now += ms
		if w.armed && w.now >= w.fed+w.p.Watchdog {
			w.reset = true
			w.note("watchdog")
			return nil
		}
		for _, c := range w.cgroups {
			if c.dieAt > 0 && w.now >= c.dieAt {
				c.running, c.dead = false, true
			}
			if c.freezeAt > 0 && w.now >= c.freezeAt {
				c.running = false
			}
			if c.running && w.now >= w.permitted[c.Epoch] {
				return fmt.Errorf("at %v guest %s of epoch %d runs, permitted until %v", w.now, c.Name, c.Epoch, w.permitted[c.Epoch])
			}
		}
	}
	return nil
}

// step has the guard handle ev and everything that follows from it.
func (w *world) step(ev lease.GuardEvent) (refused error, broken error) {
	var actions []lease.GuardAction
	w.g, actions, refused = w.g.Step(w.now, ev)
	for len(actions) > 0 {
		done := lease.Done{}
		progress := false
		for _, a := range actions {
			if d := w.stall(); d > 0 {
				if err := w.advance(w.now + d); err != nil {
					return nil, err
				}
			}
			if w.reset {
				return refused, nil
			}
			did, err := w.do(a, &done)
			if err != nil {
				return nil, err
			}
			progress = progress || did
		}
		if !progress || w.reset {
			break
		}
		w.g, actions, _ = w.g.Step(w.now, done)
	}
	w.wake = w.g.Next(w.now)
	return refused, nil
}

func (w *world) do(a lease.GuardAction, done *lease.Done) (progress bool, err error) {
	switch a := a.(type) {
	case lease.Feed:
		w.armed, w.fed, done.Fed = true, w.now, true
		return true, nil
	case lease.Reset:
		w.note("reset: %s", a.Reason)
		w.reset = true
	case lease.Freeze:
		c := w.cgroups[a.Group.Name]
		if c.freezeAt == 0 && c.latency >= 0 {
			c.freezeAt = w.now + c.latency
		}
		if c.dead || (c.freezeAt > 0 && w.now >= c.freezeAt) {
			c.running = false
			done.Frozen = append(done.Frozen, c.Name)
			return true, nil
		}
	case lease.Thaw:
		c := w.cgroups[a.Group.Name]
		if c.killed {
			return false, fmt.Errorf("at %v guest %s was killed and is thawed", w.now, c.Name)
		}
		c.freezeAt, c.running = 0, !c.dead
	case lease.Kill:
		c := w.cgroups[a.Group.Name]
		c.killed = true
		if c.dieAt == 0 && c.latency >= 0 {
			c.dieAt = w.now + c.latency
		}
		if c.dead || (c.dieAt > 0 && w.now >= c.dieAt) {
			c.running, c.dead = false, true
			done.Dead = append(done.Dead, c.Name)
			return true, nil
		}
	}
	return false, nil
}

// stuck says whether a living group will neither freeze nor die.
func (w *world) stuck() bool {
	for _, c := range w.cgroups {
		if c.latency < 0 && !c.dead {
			return true
		}
	}
	return false
}

// restart replaces the guard by a new one, as after its death: it knows only the marks on the cgroups.
func (w *world) restart() {
	var found []lease.Group
	for _, c := range w.cgroups {
		if !c.dead {
			found = append(found, c.Group)
		}
	}
	w.note("the guard dies; the next one finds %d groups", len(found))
	w.g = lease.NewGuard(w.p, true, w.now, found)
	w.wake = w.now
}

// act draws one thing that happens to the node.
func (w *world) act(t *rapid.T, epoch *uint64, seq int) error {
	switch rapid.IntRange(0, 11).Draw(t, "act") {
	default:
		deadline := w.now - time.Duration(rapid.IntRange(0, 9000).Draw(t, "rtt"))*ms + w.p.Lease
		ev := lease.Renewal{Epoch: *epoch, Deadline: deadline}
		if _, _, refused := w.g.Step(w.now, ev); refused == nil {
			w.permitted[*epoch] = max(w.permitted[*epoch], deadline)
		}
		_, broken := w.step(ev)
		return broken
	case 5, 6:
		g := lease.Group{Name: fmt.Sprint(100 + seq), Epoch: *epoch, OnDeadline: lease.FreezeGroup}
		if rapid.IntRange(0, 9).Draw(t, "late") == 0 {
			g.OnDeadline = lease.ResetMachine
		}
		latency := time.Duration(rapid.IntRange(0, 40).Draw(t, "latency")) * ms
		if rapid.IntRange(0, 9).Draw(t, "hangs") == 0 {
			latency = -1
		}
		w.cgroups[g.Name] = &cgroup{Group: g, latency: latency}
		refused, broken := w.step(lease.ProtectGroup{Group: g})
		if refused != nil {
			delete(w.cgroups, g.Name)
			return broken
		}
		if w.now >= w.permitted[g.Epoch] && !w.reset {
			return fmt.Errorf("at %v a guest was protected without a lease", w.now)
		}
		c := w.cgroups[g.Name]
		c.running = c.freezeAt == 0 && !c.killed
		return broken
	case 7:
		*epoch++
		_, broken := w.step(lease.FenceOrder{Epoch: *epoch})
		return broken
	case 8:
		_, broken := w.step(lease.PillRead{Epoch: *epoch + 1})
		*epoch++
		return broken
	case 9:
		if w.now >= w.calm { // the guard stands still, for a moment or for ever
			w.wake = max(w.wake, w.now+time.Duration(rapid.IntRange(0, 20_000).Draw(t, "stop"))*ms)
			w.calm = w.wake + sec
		}
		return nil
	case 10:
		w.restart()
		return nil
	case 11:
		for name := range w.cgroups {
			refused, broken := w.step(lease.UnprotectGroup{Name: name})
			if refused == nil {
				delete(w.cgroups, name)
			}
			return broken
		}
		return nil
	}
}

func TestAtNoInstantAfterTheDeadlineDoesAProtectedGuestRun(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := &world{p: lease.DefaultParams(), cgroups: map[string]*cgroup{}, permitted: map[uint64]time.Duration{}}
		w.now = sec
		w.g = lease.NewGuard(w.p, true, w.now, nil)
		w.stall = func() time.Duration {
			// A stall between the decision to feed and the feeding, a group that neither
			// freezes nor dies, and a second stall right after are three faults: too many.
			if w.now < w.calm || w.stuck() || rapid.IntRange(0, 40).Draw(t, "stalls") > 0 {
				return 0
			}
			d := time.Duration(rapid.IntRange(0, 6000).Draw(t, "stall")) * ms
			w.calm = w.now + d + sec
			return d
		}
		epoch := uint64(1)
		check := func(err error) {
			if err != nil {
				t.Fatalf("%v\n%v", err, w.log)
			}
		}
		steps := rapid.IntRange(1, 60).Draw(t, "steps")
		for i := 0; i < steps && !w.reset; i++ {
			until := w.now + time.Duration(rapid.IntRange(0, 2500).Draw(t, "pause"))*ms
			for w.now < until && !w.reset {
				check(w.advance(min(until, max(w.wake, w.now+ms))))
				if !w.reset && w.now >= w.wake {
					_, broken := w.step(lease.Tick{})
					check(broken)
				}
			}
			if !w.reset && w.now >= w.wake-w.p.FreezeMargin/4 {
				check(w.act(t, &epoch, i))
			}
		}
	})
}

// hangFor is longer than a whole lease.
const hangFor = 15 * sec

func TestAGuardThatHangsAtAnyInstantIsEndedByTheWatchdogBeforeTheDeadline(t *testing.T) {
	for hang := sec; hang < 25*sec; hang += 23 * ms {
		w := &world{p: lease.DefaultParams(), cgroups: map[string]*cgroup{}, permitted: map[uint64]time.Duration{}}
		w.stall = func() time.Duration { return 0 }
		w.g = lease.NewGuard(w.p, true, 0, nil)
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatalf("hang at %v: %v", hang, err)
			}
		}
		for w.now < hang && !w.reset {
			// Renewals until 5s, silence until 20s, renewals again.
			if w.now%sec == 0 && (w.now <= 5*sec || w.now >= 20*sec) {
				deadline := w.now + w.p.Lease - 200*ms
				_, broken := w.step(lease.Renewal{Epoch: 1, Deadline: deadline})
				must(broken)
				w.permitted[1] = deadline
			}
			if w.now == sec {
				w.cgroups["100"] = &cgroup{Group: group("100", 1), running: true, latency: 3 * ms}
				refused, broken := w.step(lease.ProtectGroup{Group: group("100", 1)})
				must(refused)
				must(broken)
			}
			must(w.advance(w.now + ms))
			if w.now >= w.wake {
				_, broken := w.step(lease.Tick{})
				must(broken)
			}
		}
		if w.reset {
			t.Fatalf("a healthy guard was reset before it hung at %v", hang)
		}
		must(w.advance(w.now + hangFor))
		if !w.reset {
			t.Fatalf("hang at %v: no reset", hang)
		}
	}
}

func TestAnUndisturbedNodeIsNeverFrozenNorReset(t *testing.T) {
	w := &world{p: lease.DefaultParams(), cgroups: map[string]*cgroup{}, permitted: map[uint64]time.Duration{}}
	w.stall = func() time.Duration { return 0 }
	w.g = lease.NewGuard(w.p, true, 0, nil)
	for w.now < 120*sec {
		if w.now%sec == 0 {
			w.permitted[1] = w.now + w.p.Lease - sec // answers take a whole second
			_, _ = w.step(lease.Renewal{Epoch: 1, Deadline: w.permitted[1]})
		}
		if w.now == sec {
			w.cgroups["100"] = &cgroup{Group: group("100", 1), running: true}
			if refused, _ := w.step(lease.ProtectGroup{Group: group("100", 1)}); refused != nil {
				t.Fatal(refused)
			}
		}
		if err := w.advance(w.now + ms); err != nil {
			t.Fatal(err)
		}
		if w.now >= w.wake {
			_, _ = w.step(lease.Tick{})
		}
		if c := w.cgroups["100"]; w.reset || (c != nil && !c.running) {
			t.Fatalf("at %v: reset %v, running %v", w.now, w.reset, c.running)
		}
	}
}
