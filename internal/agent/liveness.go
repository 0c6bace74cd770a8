package agent

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"sauh.dev/sauh/internal/api"
	"sauh.dev/sauh/internal/core/lease"
	"sauh.dev/sauh/internal/core/model"
	"sauh.dev/sauh/internal/guard"
	"sauh.dev/sauh/internal/store"
	"sauh.dev/sauh/internal/sys"
)

// guardDeadline bounds one question to the guard, which answers in microseconds
// unless the machine is in trouble; killing guests may take longer and has killDeadline.
const (
	guardDeadline = 500 * time.Millisecond
	killDeadline  = 5 * time.Second
)

// liveness is the shell of core/lease: it renews this node's record, passes
// deadlines on to the guard, and notes when other nodes' renewals arrive.
type liveness struct {
	m      *member
	params lease.Params
	gate   sync.Mutex // held while the record is written; pause holds it longer
	paused bool       // guarded by gate

	mu       sync.Mutex
	observer *lease.Observer // guarded by mu
	guard    *guard.Client   // guarded by mu; nil while it cannot be reached
	epoch    uint64          // of the last renewal; guarded by mu
	deadline time.Duration   // guarded by mu
}

func newLiveness(m *member) *liveness {
	p := m.agent.opts.Lease
	return &liveness{m: m, params: p, observer: lease.NewObserver(p)}
}

// observe takes in the liveness records of a batch from the store's watch.
func (l *liveness) observe(events []store.Event) {
	now := sys.BootTime()
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, e := range events {
		node, ok := strings.CutPrefix(e.Key, model.LivePrefix)
		if !ok {
			continue
		}
		var live model.Live
		if e.Deleted || json.Unmarshal(e.Value, &live) != nil {
			l.observer.Forget(node)
			continue
		}
		l.observer.Note(node, live, e.ModRevision, now)
	}
}

func (l *liveness) online(node string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.observer.Online(node, sys.BootTime())
}

// verdict says whether node's guests may be taken over, and how long it has been silent.
func (l *liveness) verdict(node string) (lease.Verdict, time.Duration) {
	now := sys.BootTime()
	l.mu.Lock()
	defer l.mu.Unlock()
	silence, _ := l.observer.Silence(node, now)
	return l.observer.MayTake(node, now), silence
}

func (l *liveness) haNode(node string) api.HANodeStatus {
	v, silence := l.verdict(node)
	s := api.HANodeStatus{Node: node, State: "online", Epoch: v.Live.Epoch, SilenceMS: silence.Milliseconds()}
	switch {
	case v.Live.Fenced:
		s.State = "fenced"
	case v.Live.Left:
		s.State = "left"
	case !l.online(node):
		s.State = "suspect"
	}
	return s
}

// valid reports whether this node's lease is not over, and its epoch.
func (l *liveness) valid() (epoch uint64, ok bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.epoch, l.deadline-l.params.FreezeMargin > sys.BootTime()
}

// pause keeps the record from being written until resume.
func (l *liveness) pause() {
	l.gate.Lock()
	defer l.gate.Unlock()
	l.paused = true
}

func (l *liveness) resume() {
	l.gate.Lock()
	defer l.gate.Unlock()
	l.paused = false
}

// run keeps the record alive until ctx is done.
func (l *liveness) run(ctx context.Context) {
	r := lease.NewRenewer(l.params, lease.Identity{
		BootID: l.m.agent.boot, Online: time.Now().Unix(), MinEpoch: l.firstEpoch(ctx),
	})
	var ev lease.Event = lease.Tick{}
	for ctx.Err() == nil {
		var actions []lease.Action
		r, actions = r.Step(sys.BootTime(), ev)
		ev = lease.Tick{}
		for _, a := range actions {
			if answer := l.do(ctx, a); answer != nil {
				ev = answer
			}
		}
		if _, tick := ev.(lease.Tick); !tick {
			continue
		}
		at, ok := r.Wake()
		if !ok {
			l.m.log.Warn("liveness ended: this node is no member any more")
			<-ctx.Done()
			return
		}
		sleep(ctx, at-sys.BootTime())
	}
}

// do carries out one action and returns its outcome, nil if it has none.
func (l *liveness) do(ctx context.Context, a lease.Action) lease.Event {
	switch a := a.(type) {
	case lease.Read:
		return l.read(ctx)
	case lease.Renew:
		return l.writeGuarded(ctx, a.Live, a.IfRevision)
	case lease.Register:
		l.m.log.Info("registering", "epoch", a.Live.Epoch, "boot", a.Live.BootID)
		return l.writeGuarded(ctx, a.Live, a.IfRevision)
	case lease.Extend:
		l.extend(ctx, a)
	case lease.Fenced:
		l.m.log.Warn("this node was fenced: its protected guests are killed", "epoch", a.Epoch)
		l.killBefore(ctx, a.Epoch)
		return lease.FencedHandled(a)
	case lease.Removed:
		l.m.log.Warn("this node's record is gone: its protected guests are killed")
		l.killBefore(ctx, a.Epoch)
	}
	return nil
}

func (l *liveness) read(ctx context.Context) lease.Event {
	kv, err := l.m.st.Get(ctx, model.LivePrefix+l.m.name, store.Linearizable)
	if errors.Is(err, store.ErrNotFound) {
		return lease.ReadMissing{}
	}
	var live model.Live
	if err != nil || json.Unmarshal(kv.Value, &live) != nil {
		return lease.Unknown{}
	}
	return lease.ReadBack{Live: live, Revision: kv.ModRevision}
}

// writeGuarded writes the record if the guard answers. A node without its guard
// could not keep the promise that the record makes, so it must count as dead.
func (l *liveness) writeGuarded(ctx context.Context, live model.Live, rev int64) lease.Event {
	err := l.ask(ctx, func(ctx context.Context, g *guard.Client) error {
		_, err := g.Status(ctx)
		return err
	})
	if err != nil {
		l.m.log.Warn("the guard does not answer, so this node does not count as alive", "err", err)
		sleep(ctx, l.params.Renew)
		return lease.Unknown{}
	}
	return l.write(ctx, live, rev)
}

func (l *liveness) write(ctx context.Context, live model.Live, rev int64) lease.Event {
	l.gate.Lock()
	defer l.gate.Unlock()
	if l.paused {
		sleep(ctx, l.params.Renew/4)
		return lease.Unknown{}
	}
	key := model.LivePrefix + l.m.name
	got, err := l.m.st.Txn(ctx, store.Txn{If: []store.Cond{{Key: key, Revision: rev}}, Then: []store.Op{store.Put(key, mustJSON(live))}})
	switch {
	case err == nil:
		return lease.Committed{Revision: got}
	case errors.Is(err, store.ErrConflict):
		return lease.Conflict{}
	}
	return lease.Unknown{}
}

// extend tells the guard the new deadline. Only what the guard has confirmed counts as a lease.
func (l *liveness) extend(ctx context.Context, a lease.Extend) {
	g, err := l.client(ctx)
	if err == nil {
		cctx, cancel := context.WithTimeout(ctx, guardDeadline)
		err = g.Renew(cctx, a.Epoch, a.Deadline)
		cancel()
	}
	if err != nil {
		l.m.log.Warn("the guard did not take the lease: protected guests cannot start here", "err", err)
		l.drop(g)
		return
	}
	l.mu.Lock()
	was := l.deadline-l.params.FreezeMargin > sys.BootTime()
	l.epoch, l.deadline = a.Epoch, a.Deadline
	l.mu.Unlock()
	if !was {
		l.m.kick()
	}
}

// killBefore returns when the guard has confirmed that no protected guest of an earlier epoch lives.
func (l *liveness) killBefore(ctx context.Context, epoch uint64) {
	l.mu.Lock()
	l.deadline = 0
	l.mu.Unlock()
	l.m.kick()
	for ctx.Err() == nil {
		g, err := l.client(ctx)
		if err == nil {
			cctx, cancel := context.WithTimeout(ctx, killDeadline)
			err = g.Fence(cctx, epoch)
			cancel()
		}
		if err == nil {
			return
		}
		l.m.log.Error("the guard has not killed the protected guests yet", "err", err)
		l.drop(g)
		sleep(ctx, 200*time.Millisecond)
	}
}

// killAll ends every protected guest of a node that is no member any more: others may have taken them over.
func (l *liveness) killAll() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(l.m.ctx), 2*killDeadline)
	defer cancel()
	var s guard.Status
	err := l.ask(ctx, func(ctx context.Context, g *guard.Client) (err error) {
		s, err = g.Status(ctx)
		return err
	})
	if err != nil {
		l.m.log.Error("the guard does not answer: it freezes what is left at the end of the lease", "err", err)
		return
	}
	l.killBefore(ctx, s.Epoch+1)
}

// client returns the connection to the guard, making it if need be.
func (l *liveness) client(ctx context.Context) (*guard.Client, error) {
	l.mu.Lock()
	known := l.guard
	l.mu.Unlock()
	if known != nil {
		return known, nil
	}
	// Not under mu: whoever wants to know about other nodes must not wait for a guard that hangs.
	cctx, cancel := context.WithTimeout(ctx, guardDeadline)
	defer cancel()
	g, err := guard.Dial(cctx, l.m.agent.opts.Paths.guardSocket())
	if err != nil {
		return nil, fmt.Errorf("reach the guard: %w", err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.guard = g
	return g, nil
}

func (l *liveness) drop(g *guard.Client) {
	if g == nil {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.guard == g {
		l.guard = nil
	}
}

// ask runs f with the guard's client; an error drops the connection.
func (l *liveness) ask(ctx context.Context, f func(context.Context, *guard.Client) error) error {
	g, err := l.client(ctx)
	if err != nil {
		return err
	}
	cctx, cancel := context.WithTimeout(ctx, guardDeadline)
	defer cancel()
	if err = f(cctx, g); cctx.Err() != nil {
		l.drop(g)
	}
	return err
}

// firstEpoch is the epoch for a record that does not exist: above that of every group that the guard
// still has, and above those of an earlier membership of this name, whose traces may lie on storages. It waits for the guard.
func (l *liveness) firstEpoch(ctx context.Context) uint64 {
	for ctx.Err() == nil {
		var s guard.Status
		err := l.ask(ctx, func(ctx context.Context, g *guard.Client) (err error) {
			s, err = g.Status(ctx)
			return err
		})
		if err == nil {
			kv, _ := l.m.mirror.Snapshot().Get(model.NodePrefix + l.m.name)
			return max(s.Epoch+1, uint64(kv.CreateRevision))
		}
		l.m.log.Warn("the guard does not answer, so this node does not count as alive", "err", err)
		sleep(ctx, l.params.Renew)
	}
	return 0
}

func (l *liveness) guardStatus(ctx context.Context) api.GuardStatus {
	var s guard.Status
	err := l.ask(ctx, func(ctx context.Context, g *guard.Client) (err error) {
		s, err = g.Status(ctx)
		return err
	})
	if err != nil {
		return api.GuardStatus{Watchdog: err.Error()}
	}
	out := api.GuardStatus{
		Connected: true, Epoch: s.Epoch, LeaseMS: s.LeftMS, WatchdogSec: int(s.TimeoutS),
		Watchdog: strings.TrimSpace(s.Watchdog + " " + s.Identity + " (" + s.Grade + ")"),
	}
	for _, g := range s.Groups {
		if g.State != lease.Running {
			out.Frozen = append(out.Frozen, g.Name)
		}
	}
	return out
}

// guarded lists the guests that the guard has in its care, as of now; ok is false when it does not answer.
func (l *liveness) guarded(ctx context.Context) (groups map[string]bool, ok bool) {
	groups = map[string]bool{}
	err := l.ask(ctx, func(ctx context.Context, g *guard.Client) error {
		s, err := g.Status(ctx)
		for _, x := range s.Groups {
			groups[x.Name] = x.State != lease.Killing
		}
		return err
	})
	if err != nil {
		l.m.log.Warn("the guard does not answer", "err", err)
	}
	return groups, err == nil
}
