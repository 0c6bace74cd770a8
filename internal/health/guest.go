package health

import (
	"context"
	"errors"
	"sync"
	"time"

	core "sauh.dev/sauh/internal/core/health"
	"sauh.dev/sauh/internal/qga"
)

// Follower tells what happens to a guest; *qemu.Process is one.
type Follower interface {
	// Follow calls tell until ctx is done or the guest has ended.
	Follow(ctx context.Context, tell func(core.Incident))
}

// Pinger asks a guest's agent; *qga.Client is one.
type Pinger interface {
	// Ping returns an error with qga.ErrSilent in its chain if the guest did not answer in time; other errors say nothing about the guest.
	Ping(ctx context.Context) error
}

// Guest watches one guest. All fields but Agent and IOError must be set before Run.
type Guest struct {
	Params core.Params
	QEMU   Follower
	// Agent is nil for a guest that expects none.
	Agent Pinger
	// Held says why the guest's silence does not count at the moment: "frozen", "migrating", "shutting down"; "" if it does. It
	// is asked before and after each ping.
	Held func() string
	// Changed is told each new condition, never twice at a time. The first is not told: it is the zero value.
	Changed func(core.Condition)
	// IOError is told each I/O error of one of the guest's disks.
	IOError func(core.Incident)

	mu      sync.Mutex
	machine *core.Guest
	last    core.Condition
}

// Run watches until ctx is done or the guest has ended; nothing of it is left running then. It is called once.
func (g *Guest) Run(ctx context.Context) {
	g.machine = core.NewGuest(g.Params)
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() {
		defer cancel()
		g.QEMU.Follow(ctx, g.observe)
	})
	if g.Agent == nil {
		<-ctx.Done()
		return
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(g.wait()):
			g.ping(ctx)
		}
	}
}

// wait is the time until the next ping: short while others may wait for the guest's first answer.
func (g *Guest) wait() time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.last.Answers {
		return g.Params.PingEvery
	}
	return g.Params.PingFirst
}

func (g *Guest) observe(i core.Incident) {
	g.step(func(m *core.Guest) { m.Observe(i) })
	if i.Kind == core.IOError && g.IOError != nil {
		g.IOError(i)
	}
}

// step changes the machine and tells of a change of the condition.
func (g *Guest) step(change func(m *core.Guest)) {
	g.mu.Lock()
	defer g.mu.Unlock()
	change(g.machine)
	if c := g.machine.Condition(); c.Answers != g.last.Answers || c.Sick != g.last.Sick {
		g.last = c
		g.Changed(c)
	}
}

func (g *Guest) ping(ctx context.Context) {
	var q core.Question
	var ok bool
	held := g.Held()
	g.step(func(m *core.Guest) {
		m.Hold(held)
		q, ok = m.Ask()
	})
	if !ok {
		return
	}
	short, cancel := context.WithTimeout(ctx, g.Params.PingWait)
	err := g.Agent.Ping(short)
	cancel()
	if err != nil && !errors.Is(err, qga.ErrSilent) {
		return
	}
	held = g.Held()
	g.step(func(m *core.Guest) {
		m.Hold(held)
		miss := ""
		if err != nil {
			miss = err.Error()
		}
		m.Answered(q, miss)
	})
}
