//go:build room

package roomtest

import (
	"fmt"
	"strings"
	"syscall"
	"testing"
	"time"
)

func TestAStoppedAgentsGuestIsFrozenBeforeAnyoneTakesItOver(t *testing.T) {
	r := open(t)
	g := r.Guest(100).On("n3").Protected()
	old, epoch := g.QEMU(), r.epoch("n3")
	l := g.Ledger()
	since := r.Signal("n3", agentUnit, syscall.SIGSTOP)
	g.MustRunElsewhere("n3", since)
	frozen := r.Logged("n3", guardUnit, since, "guest is now frozen", "guest=100")
	cut := r.managersLog(since, "n3 is cut off")
	t.Logf("frozen %v, cut off %v after the agent stopped", frozen.Sub(since).Round(time.Millisecond), cut.Sub(since).Round(time.Millisecond))
	if !frozen.Before(cut) {
		t.Errorf("the guest was frozen at %v and the node cut off at %v", frozen, cut)
	}
	if d := frozen.Sub(since); d > leaseTime {
		t.Errorf("the guest was frozen %v after the agent stopped", d)
	}
	g.MustAnswer(patience)
	r.Signal("n3", agentUnit, syscall.SIGCONT)
	r.AllWell()
	if now := r.epoch("n3"); now != epoch+1 {
		t.Errorf("n3 joined again with epoch %d, want %d", now, epoch+1)
	}
	g.MustHaveMovedOnce(since, old)
	l.MustBeWhole()
}

// MustRunElsewhere waits until a QEMU of the guest runs on another node than from, which has to happen
// within 14 s of the fault, and returns how long it took.
func (g *guest) MustRunElsewhere(from string, fault time.Time) time.Duration {
	g.r.t.Helper()
	g.r.Eventually(fmt.Sprintf("a QEMU of guest %d runs elsewhere", g.id), 14*time.Second-time.Since(fault), func() error {
		for _, p := range g.r.sampler.alive(g.id) {
			if p.node != from && !p.frozen {
				return nil
			}
		}
		return fmt.Errorf("%v", g.Processes(fault))
	})
	took := time.Since(fault)
	g.r.t.Logf("another QEMU of guest %d runs %v after the fault", g.id, took.Round(time.Millisecond))
	return took
}

// managersLog is when an agent first logged that line.
func (r *room) managersLog(since time.Time, words ...string) time.Time {
	r.t.Helper()
	var found []entry
	for _, n := range r.names {
		if e, ok := first(r.LogOf(n, agentUnit, since), words...); ok {
			found = append(found, e)
		}
	}
	if len(found) == 0 {
		r.t.Fatalf("no agent has logged %q", words)
	}
	at := found[0].at
	for _, e := range found {
		if e.at.Before(at) {
			at = e.at
		}
	}
	return at
}

// MustHaveMovedOnce demands that the guest runs on another node than its process old did, that old
// was never thawed once it was frozen, and that it was dead when the new one started.
func (g *guest) MustHaveMovedOnce(since time.Time, old process) {
	t := g.r.t
	t.Helper()
	now := g.QEMU()
	if now.node == old.node {
		t.Errorf("the process is %v, and was %v", &now, &old)
	}
	for _, p := range g.Processes(since) {
		t.Logf("process %v", &p)
		switch {
		case p.pid != old.pid:
		case p.frozenAt.IsZero():
			t.Errorf("%v was never frozen", &p)
		case p.thawedAt.After(p.frozenAt):
			t.Errorf("%v was thawed", &p)
		case !p.last.Before(now.started):
			t.Errorf("%v was there when %v started", &p, &now)
		}
	}
	log := g.r.LogOf(old.node, guardUnit, since)
	frozen, ok := first(log, "guest is now frozen", "guest="+g.id.String())
	if !ok {
		t.Errorf("the guard of %s froze nothing", old.node)
	}
	g.r.NeverLogged(old.node, guardUnit, frozen.at, "guest is now running", "guest="+g.id.String())
}

func TestANodeWhoseGuardDiesIsResetByTheWatchdog(t *testing.T) {
	guardIsGone(t, syscall.SIGKILL)
}

func TestANodeWhoseGuardHangsIsResetByTheWatchdog(t *testing.T) {
	guardIsGone(t, syscall.SIGSTOP)
}

// guardIsGone ends or stops the guard: the watchdog resets the node within its time-out, and the guest comes back.
func guardIsGone(t *testing.T, sig syscall.Signal) {
	r := open(t)
	g := r.Guest(100).On("n2").Protected()
	old, resets := g.QEMU(), len(r.Node("n2").Resets)
	l := g.Ledger()
	since := r.Signal("n2", guardUnit, sig)
	var at time.Time
	r.Eventually("n2 is reset", watchdogTime+2*time.Second, func() error {
		n := r.Node("n2")
		if len(n.Resets) == resets {
			return fmt.Errorf("it is %s, %s", n.Power, n.Watchdog)
		}
		last := n.Resets[len(n.Resets)-1]
		if at = last.At; !strings.Contains(last.Why, "watchdog") {
			return fmt.Errorf("reset because %s", last.Why)
		}
		return nil
	})
	took := at.Sub(since)
	t.Logf("n2 was reset %v after %v to its guard", took.Round(time.Millisecond), sig)
	if took > watchdogTime+2*time.Second {
		t.Errorf("n2 was reset only after %v", took)
	}
	r.Eventually("the guest runs again", patience, func() error {
		for _, p := range r.sampler.alive(g.id) {
			if p.pid != old.pid && !p.frozen {
				return nil
			}
		}
		return fmt.Errorf("%v", g.Processes(since))
	})
	g.MustAnswer(patience)
	t.Logf("the guest answers %v after that", time.Since(since).Round(time.Millisecond))
	r.AllWell()
	for _, p := range g.Processes(since) {
		if p.pid == old.pid && p.last.After(at.Add(samplePace)) {
			t.Errorf("%v outlived the reset at %v", &p, at)
		}
	}
	l.MustBeWhole()
}
