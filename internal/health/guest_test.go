package health

import (
	"context"
	"encoding/json"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	core "sauh.dev/sauh/internal/core/health"
	"sauh.dev/sauh/internal/qemu"
	"sauh.dev/sauh/internal/qga"
	"sauh.dev/sauh/internal/qga/qgatest"
)

// What the agent wires fits.
var (
	_ Follower = (*qemu.Process)(nil)
	_ Pinger   = (*qga.Client)(nil)
	_ Prober   = (*Child)(nil)
)

// fakeQEMU tells what it is told.
type fakeQEMU chan core.Incident

func (q fakeQEMU) Follow(ctx context.Context, tell func(core.Incident)) {
	for {
		select {
		case <-ctx.Done():
			return
		case i, ok := <-q:
			if !ok {
				return
			}
			tell(i)
		}
	}
}

// patient is a guest that is watched.
type patient struct {
	agent *qgatest.Agent
	qemu  fakeQEMU
	done  chan struct{}

	mu     sync.Mutex
	held   string
	told   []core.Condition
	errors []core.Incident
}

func (p *patient) conditions() []core.Condition {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]core.Condition(nil), p.told...)
}

func (p *patient) hold(why string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.held = why
}

func watch(t *testing.T, f func(t *testing.T, p *patient)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		p := &patient{agent: qgatest.Start(), qemu: make(fakeQEMU), done: make(chan struct{})}
		defer p.agent.Close()
		g := &Guest{
			Params: core.DefaultParams(), QEMU: p.qemu, Agent: p.agent.Client(),
			Held: func() string { p.mu.Lock(); defer p.mu.Unlock(); return p.held },
			Changed: func(c core.Condition) {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.told = append(p.told, c)
			},
			IOError: func(i core.Incident) {
				p.mu.Lock()
				defer p.mu.Unlock()
				p.errors = append(p.errors, i)
			},
		}
		ctx, cancel := context.WithCancel(t.Context())
		go func() { defer close(p.done); g.Run(ctx) }()
		p.qemu <- core.Incident{Kind: core.StatusKnown, Status: "running"}
		f(t, p)
		cancel()
		<-p.done
	})
}

func (p *patient) want(t *testing.T, want ...core.Condition) {
	t.Helper()
	synctest.Wait()
	if diff := cmp.Diff(want, p.conditions()); diff != "" {
		t.Errorf("(-want +got):\n%s", diff)
	}
}

func silentSince(t *testing.T, p *patient) core.Condition {
	t.Helper()
	all := p.conditions()
	last := all[len(all)-1]
	if last.Sick != core.SickSilent || !last.Answers || last.Reason == "" {
		t.Fatalf("it is not silent: %+v", all)
	}
	return last
}

func TestAGuestWhoseAgentFallsSilentIsSickAndWellAgain(t *testing.T) {
	watch(t, func(t *testing.T, p *patient) {
		time.Sleep(3 * time.Second)
		p.want(t, core.Condition{Answers: true})
		time.Sleep(time.Hour)
		p.want(t, core.Condition{Answers: true})
		p.agent.Silence(true)
		time.Sleep(46 * time.Second)
		sick := silentSince(t, p)
		p.agent.Silence(false)
		time.Sleep(15 * time.Second)
		p.want(t, core.Condition{Answers: true}, sick, core.Condition{Answers: true})
	})
}

func TestAFrozenGuestIsNotSilent(t *testing.T) {
	watch(t, func(t *testing.T, p *patient) {
		time.Sleep(time.Minute)
		p.agent.Silence(true)
		time.Sleep(20 * time.Second)
		p.hold("frozen")
		time.Sleep(time.Hour)
		p.hold("")
		time.Sleep(29 * time.Second)
		p.want(t, core.Condition{Answers: true})
		time.Sleep(30 * time.Second)
		silentSince(t, p)
	})
}

func TestAGuestThatResetsIsAskedAnew(t *testing.T) {
	watch(t, func(t *testing.T, p *patient) {
		time.Sleep(time.Minute)
		p.qemu <- core.Incident{Kind: core.Panicked}
		p.agent.Silence(true)
		p.qemu <- core.Incident{Kind: core.Reset}
		time.Sleep(10 * time.Minute) // a long boot
		p.agent.Silence(false)
		time.Sleep(10 * time.Second)
		p.want(t, core.Condition{Answers: true},
			core.Condition{Answers: true, Sick: core.SickPanicked, Reason: "its kernel panicked"},
			core.Condition{}, core.Condition{Answers: true})
	})
}

func TestACallThatIsUnderWayIsNoSilence(t *testing.T) {
	watch(t, func(t *testing.T, p *patient) {
		time.Sleep(time.Minute)
		p.agent.Handle("guest-ping", func(json.RawMessage) (any, error) { return nil, context.Canceled }) // it refuses, so it is there
		time.Sleep(10 * time.Minute)
		p.want(t, core.Condition{Answers: true})
	})
}

func TestIOErrorsArePassedOn(t *testing.T) {
	watch(t, func(t *testing.T, p *patient) {
		i := core.Incident{Kind: core.IOError, Disk: "virtio0", Volume: "nas:100/a", Reason: "Input/output error"}
		p.qemu <- i
		synctest.Wait()
		if diff := cmp.Diff([]core.Incident{i}, p.errors); diff != "" {
			t.Error(diff)
		}
		p.want(t)
	})
}

func TestTheWatchEndsWithTheGuest(t *testing.T) {
	watch(t, func(t *testing.T, p *patient) {
		close(p.qemu)
		select {
		case <-p.done:
		case <-time.After(time.Minute):
			t.Error("it goes on")
		}
	})
}
